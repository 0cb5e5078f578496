import Foundation

/// How `json.dumps(value, ensure_ascii=False)` of Python is asked to write.
public struct JSONStyle: Sendable {
    /// Spaces for each level, each value on a line of its own; nil writes one line.
    public var indent: Int?
    public var sortKeys = false
    public var itemSeparator: String
    public var keySeparator = ": "

    public init(indent: Int? = nil, sortKeys: Bool = false) {
        self.indent = indent
        self.sortKeys = sortKeys
        itemSeparator = indent == nil ? ", " : ","
    }
}

extension JSONValue {
    public func dumped(_ style: JSONStyle = JSONStyle()) -> String {
        var writer = JSONWriter(style, limit: .max)
        writer.write(self, level: 0)
        return writer.text
    }

    /// nil where it would have more than `limit` bytes of UTF-8; no more than those are ever written.
    func dumped(_ style: JSONStyle, limit: Int) -> String? {
        var writer = JSONWriter(style, limit: limit)
        writer.write(self, level: 0)
        return writer.isCut ? nil : writer.text
    }

    /// One line, short enough for a message.
    var compact: String {
        var writer = JSONWriter(JSONStyle(), limit: 70)
        writer.write(self, level: 0)
        return writer.isCut ? String(writer.text.unicodeScalars.prefix(67)) + "..." : writer.text
    }

    /// Python's `repr` of a float: both languages write the shortest digits that read back the same.
    static func pythonFloat(_ value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value < 0 ? "-Infinity" : "Infinity" }
        return value.description
    }
}

/// Writes until the limit, then nothing more.
private struct JSONWriter {
    private(set) var text = ""
    private(set) var isCut = false
    private let style: JSONStyle
    private let limit: Int

    init(_ style: JSONStyle, limit: Int) {
        self.style = style
        self.limit = limit
    }

    mutating func write(_ value: JSONValue, level: Int) {
        guard !isCut else { return }
        switch value {
        case .null: add("null")
        case .bool(let value): add(value ? "true" : "false")
        case .int(let value): add(String(value))
        case .double(let value): add(JSONValue.pythonFloat(value))
        case .string(let value): addQuoted(value)
        case .array(let values):
            write(values, "[", "]", level: level) { writer, value in writer.write(value, level: level + 1) }
        case .object(let object):
            var members = object.members
            if style.sortKeys { members.sort { $0.key.unicodeScalars.lexicographicallyPrecedes($1.key.unicodeScalars) } }
            write(members, "{", "}", level: level) { writer, member in
                writer.addQuoted(member.key)
                writer.add(writer.style.keySeparator)
                writer.write(member.value, level: level + 1)
            }
        }
    }

    private mutating func write<Entry>(
        _ entries: [Entry], _ open: String, _ close: String, level: Int, _ entry: (inout JSONWriter, Entry) -> Void
    ) {
        add(open)
        for (place, value) in entries.enumerated() where !isCut {
            if place > 0 { add(style.itemSeparator) }
            addLine(level + 1)
            entry(&self, value)
        }
        if !entries.isEmpty { addLine(level) }
        add(close)
    }

    private mutating func addLine(_ level: Int) {
        guard let indent = style.indent, !isCut else { return }
        add("\n")
        // A negative indent is none, as in Python.
        let (count, isOver) = max(indent, 0).multipliedReportingOverflow(by: level)
        guard !isOver, count <= limit - text.utf8.count else {
            isCut = true
            return
        }
        add(String(repeating: " ", count: count))
    }

    private mutating func add(_ part: String) {
        guard !isCut else { return }
        var room = limit - text.utf8.count
        guard part.utf8.count > room else {
            text += part
            return
        }
        isCut = true
        for scalar in part.unicodeScalars {
            room -= UTF8.width(scalar)
            guard room >= 0 else { return }
            text.unicodeScalars.append(scalar)
        }
    }

    private mutating func addQuoted(_ value: String) {
        add("\"")
        var plain = value.unicodeScalars.startIndex
        let scalars = value.unicodeScalars
        for place in scalars.indices {
            guard let escaped = Self.escape(scalars[place]) else { continue }
            add(String(scalars[plain..<place]))
            add(escaped)
            plain = scalars.index(after: place)
            if isCut { return }
        }
        add(String(scalars[plain...]))
        add("\"")
    }

    private static func escape(_ scalar: Unicode.Scalar) -> String? {
        switch scalar {
        case "\"": "\\\""
        case "\\": "\\\\"
        case "\n": "\\n"
        case "\r": "\\r"
        case "\t": "\\t"
        case "\u{08}": "\\b"
        case "\u{0C}": "\\f"
        case ..<"\u{20}": String(format: "\\u%04x", scalar.value)
        default: nil
        }
    }
}
