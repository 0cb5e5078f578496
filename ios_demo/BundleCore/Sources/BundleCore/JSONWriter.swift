import Foundation

extension JSONValue {
    /// As Python's `json.dumps(value, ensure_ascii=False)` writes it, with `indent` and `sort_keys` where they are given.
    public func dumped(indent: Int? = nil, sortKeys: Bool = false) -> String {
        var text = ""
        write(to: &text, indent: indent, sortKeys: sortKeys, level: 0)
        return text
    }

    /// One line, short enough for a message.
    var compact: String {
        let text = dumped()
        return text.count <= 70 ? text : "\(text.prefix(67))..."
    }

    private func write(to text: inout String, indent: Int?, sortKeys: Bool, level: Int) {
        switch self {
        case .null: text += "null"
        case .bool(let value): text += value ? "true" : "false"
        case .int(let value): text += String(value)
        case .double(let value): text += Self.pythonFloat(value)
        case .string(let value): text += Self.quoted(value)
        case .array(let values):
            Self.write(values.count, "[", "]", to: &text, indent: indent, level: level) { place, text in
                values[place].write(to: &text, indent: indent, sortKeys: sortKeys, level: level + 1)
            }
        case .object(let object):
            var members = object.members
            if sortKeys { members.sort { $0.key.unicodeScalars.lexicographicallyPrecedes($1.key.unicodeScalars) } }
            Self.write(members.count, "{", "}", to: &text, indent: indent, level: level) { place, text in
                text += Self.quoted(members[place].key) + ": "
                members[place].value.write(to: &text, indent: indent, sortKeys: sortKeys, level: level + 1)
            }
        }
    }

    private static func write(
        _ count: Int, _ open: String, _ close: String, to text: inout String, indent: Int?, level: Int,
        _ entry: (Int, inout String) -> Void
    ) {
        text += open
        for place in 0..<count {
            if place > 0 { text += indent == nil ? ", " : "," }
            if let indent { text += "\n" + String(repeating: " ", count: indent * (level + 1)) }
            entry(place, &text)
        }
        if let indent, count > 0 { text += "\n" + String(repeating: " ", count: indent * level) }
        text += close
    }

    /// Python's `repr` of a float: both languages write the shortest digits that read back the same.
    static func pythonFloat(_ value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value < 0 ? "-Infinity" : "Infinity" }
        return value.description
    }

    private static func quoted(_ value: String) -> String {
        var text = "\""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\r": text += "\\r"
            case "\t": text += "\\t"
            case "\u{08}": text += "\\b"
            case "\u{0C}": text += "\\f"
            case ..<"\u{20}": text += String(format: "\\u%04x", scalar.value)
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text + "\""
    }
}
