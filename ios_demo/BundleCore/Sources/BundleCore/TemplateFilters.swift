import Foundation

/// Filters, tests and methods, as Jinja and Python define them.
enum TemplateFilters {
    static let names: Set<String> = [
        "capitalize", "count", "d", "default", "first", "int", "items", "join", "last", "length", "list", "lower", "replace", "string",
        "tojson", "trim", "upper",
    ]
    static let tests: Set<String> = [
        "boolean", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number", "sequence", "string", "true",
        "undefined",
    ]

    struct Arguments {
        let positional: [TemplateValue]
        let named: [String: TemplateValue]

        func value(_ place: Int, _ name: String) -> TemplateValue? {
            place < positional.count ? positional[place] : named[name]
        }

        func text(_ place: Int, _ name: String) throws -> String {
            guard let text = value(place, name)?.string else { throw TextError("the chat template gives \(name) no text") }
            return text
        }
    }

    static func apply(_ name: String, to value: TemplateValue, _ arguments: Arguments) throws -> TemplateValue {
        switch name {
        case "trim": return .string(strip(try value.text(), try arguments.value(0, "chars").map { try $0.text() }))
        case "length", "count":
            guard let count = value.count else { throw TextError("the chat template asks for the length of what has none") }
            return .int(count)
        case "upper", "lower", "capitalize", "replace", "string": return .string(try text(name, value.text(), arguments))
        case "tojson":
            let indent = arguments.value(1, "indent")?.integer
            return .string(try value.json().dumped(indent: indent, sortKeys: arguments.named["sort_keys"]?.isTrue ?? false))
        case "default", "d":
            let otherwise = arguments.value(0, "default_value") ?? .string("")
            if case .undefined = value { return otherwise }
            return arguments.value(1, "boolean")?.isTrue == true && !value.isTrue ? otherwise : value
        case "first": return try value.items().first ?? .undefined
        case "last": return try value.items().last ?? .undefined
        case "list": return .list(try value.items())
        case "items": return pairs(value)
        case "int": return .int(value.integer ?? value.number.map { Int($0) } ?? value.string.flatMap { Int($0) } ?? 0)
        case "join":
            let separator = try arguments.value(0, "d")?.text() ?? ""
            return .string(try value.items().map { try $0.text() }.joined(separator: separator))
        default: throw TextError("the chat template has the filter \(name), which is not supported here")
        }
    }

    private static func text(_ name: String, _ text: String, _ arguments: Arguments) throws -> String {
        switch name {
        case "upper": return text.uppercased()
        case "lower": return text.lowercased()
        case "capitalize":
            guard let first = text.unicodeScalars.first else { return "" }
            return first.properties.titlecaseMapping + String(text.unicodeScalars.dropFirst()).lowercased()
        case "replace": return try replace(text, try arguments.text(0, "old"), try arguments.text(1, "new"))
        default: return text
        }
    }

    static func test(_ name: String, _ value: TemplateValue) throws -> Bool {
        switch (name, value) {
        case ("defined", .undefined): return false
        case ("defined", _): return true
        case ("undefined", .undefined), ("none", .none): return true
        case ("string", .string), ("mapping", .object), ("boolean", .bool), ("integer", .int), ("float", .double): return true
        case ("number", .int), ("number", .double), ("number", .bool): return true
        case ("true", .bool(let flag)): return flag
        case ("false", .bool(let flag)): return !flag
        case ("iterable", .undefined), ("sequence", .undefined): return true
        case ("iterable", .string), ("iterable", .list), ("iterable", .object): return true
        case ("sequence", .string), ("sequence", .list), ("sequence", .object): return true
        default: return false
        }
    }

    static func call(_ name: String, on value: TemplateValue, _ arguments: Arguments) throws -> TemplateValue {
        if case .object = value { return try callObject(name, value, arguments) }
        guard let text = value.string else {
            throw TextError("the chat template calls \(name) of a value that has no such method here")
        }
        let chars = arguments.positional.first?.string
        switch name {
        case "strip": return .string(strip(text, chars))
        case "lstrip": return .string(strip(text, chars, end: false))
        case "rstrip": return .string(strip(text, chars, start: false))
        case "upper", "lower", "capitalize", "replace": return .string(try self.text(name, text, arguments))
        case "startswith": return .bool(text.utf8.starts(with: try arguments.text(0, "prefix").utf8))
        case "endswith": return .bool(text.utf8.reversed().starts(with: try arguments.text(0, "suffix").utf8.reversed()))
        case "split": return .list(try split(text, chars).map { .string($0) })
        default: throw TextError("the chat template calls the method \(name), which is not supported here")
        }
    }

    private static func callObject(_ name: String, _ value: TemplateValue, _ arguments: Arguments) throws -> TemplateValue {
        switch name {
        case "items": return pairs(value)
        case "keys": return .list(try value.items())
        case "values":
            guard case .object(let members) = value else { return .undefined }
            return .list(members.map(\.value))
        case "get":
            let found = value.member(try arguments.text(0, "key"))
            if case .undefined = found { return arguments.value(1, "default") ?? .none }
            return found
        default: throw TextError("the chat template calls the method \(name), which is not supported here")
        }
    }

    private static func pairs(_ value: TemplateValue) -> TemplateValue {
        guard case .object(let members) = value else { return .list([]) }
        return .list(members.map { .list([.string($0.key), $0.value]) })
    }

    private static func strip(_ text: String, _ chars: String?, start: Bool = true, end: Bool = true) -> String {
        let gone = chars.map { Set($0.unicodeScalars) } ?? pythonSpaces
        var scalars = text.unicodeScalars[...]
        while start, let first = scalars.first, gone.contains(first) { scalars.removeFirst() }
        while end, let last = scalars.last, gone.contains(last) { scalars.removeLast() }
        return String(scalars)
    }

    private static func replace(_ text: String, _ old: String, _ new: String) throws -> String {
        guard !old.isEmpty else { throw TextError("the chat template replaces an empty text, which is not supported here") }
        return try split(text, old).joined(separator: new)
    }

    private static func split(_ text: String, _ separator: String?) throws -> [String] {
        guard let separator else {
            return text.unicodeScalars.split { pythonSpaces.contains($0) }.map { String($0) }
        }
        guard !separator.isEmpty else { throw TextError("the chat template splits at an empty text") }
        let bytes = Array(text.utf8)
        let mark = Array(separator.utf8)
        var parts: [String] = []
        var start = 0
        var place = 0
        while place + mark.count <= bytes.count {
            guard bytes[place] == mark[0], bytes[place...].starts(with: mark) else {
                place += 1
                continue
            }
            parts.append(String(decoding: bytes[start..<place], as: UTF8.self))
            place += mark.count
            start = place
        }
        return parts + [String(decoding: bytes[start...], as: UTF8.self)]
    }
}
