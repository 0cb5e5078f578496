import Foundation

/// What `{% set ns = namespace() %}` makes: a value that inner blocks can change.
final class TemplateNamespace {
    var values: [String: TemplateValue] = [:]
}

/// A value while a template runs, with Python's meaning of truth, equality and text.
indirect enum TemplateValue {
    case undefined
    case none
    case bool(Bool)
    case int(Int)
    case double(Double)
    case string(String)
    case list([TemplateValue])
    case object([(key: String, value: TemplateValue)])
    case namespace(TemplateNamespace)

    init(_ json: JSONValue) {
        self =
            switch json {
            case .null: .none
            case .bool(let value): .bool(value)
            case .int(let value): .int(value)
            case .double(let value): .double(value)
            case .string(let value): .string(value)
            case .array(let values): .list(values.map { TemplateValue($0) })
            case .object(let object): .object(object.members.map { ($0.key, TemplateValue($0.value)) })
            }
    }

    var isTrue: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let value): value
        case .int(let value): value != 0
        case .double(let value): value != 0
        case .string(let value): !value.isEmpty
        case .list(let values): !values.isEmpty
        case .object(let members): !members.isEmpty
        case .namespace: true
        }
    }

    /// Numbers, and truth values as 0 and 1.
    var number: Double? {
        switch self {
        case .bool(let value): value ? 1 : 0
        case .int(let value): Double(value)
        case .double(let value): value
        default: nil
        }
    }

    var integer: Int? {
        switch self {
        case .bool(let value): value ? 1 : 0
        case .int(let value): value
        default: nil
        }
    }

    var string: String? {
        if case .string(let value) = self { return value }
        return nil
    }

    /// As `{{ value }}` prints it. A list or an object would be printed in Python's own notation, which no model was trained on.
    func text() throws -> String {
        switch self {
        case .undefined: return ""
        case .none: return "None"
        case .bool(let value): return value ? "True" : "False"
        case .int(let value): return String(value)
        case .double(let value): return JSONValue.pythonFloat(value)
        case .string(let value): return value
        case .list, .object, .namespace: throw TextError("the chat template prints a list or an object without tojson")
        }
    }

    func json() throws -> JSONValue {
        switch self {
        case .undefined, .namespace: throw TextError("the chat template gives tojson what is not defined")
        case .none: return .null
        case .bool(let value): return .bool(value)
        case .int(let value): return .int(value)
        case .double(let value): return .double(value)
        case .string(let value): return .string(value)
        case .list(let values): return .array(try values.map { try $0.json() })
        case .object(let members): return .object(JSONObject(try members.map { ($0.key, try $0.value.json()) }))
        }
    }

    func member(_ name: String) -> TemplateValue {
        switch self {
        case .object(let members): members.first { sameText($0.key, name) }?.value ?? .undefined
        case .namespace(let space): space.values[name] ?? .undefined
        default: .undefined
        }
    }

    func equals(_ other: TemplateValue) -> Bool {
        switch (self, other) {
        case (.undefined, .undefined), (.none, .none): return true
        case (.string(let a), .string(let b)): return sameText(a, b)
        case (.list(let a), .list(let b)): return a.count == b.count && zip(a, b).allSatisfy { $0.equals($1) }
        case (.object(let a), .object(let b)):
            return a.count == b.count && a.allSatisfy { member in other.member(member.key).equals(member.value) }
        case (.namespace(let a), .namespace(let b)): return a === b
        default:
            guard let a = number, let b = other.number else { return false }
            return a == b
        }
    }

    /// What a loop goes through: items, keys, characters.
    func items() throws -> [TemplateValue] {
        switch self {
        case .undefined: return []
        case .list(let values): return values
        case .object(let members): return members.map { .string($0.key) }
        case .string(let text): return text.unicodeScalars.map { .string(String($0)) }
        default: throw TextError("the chat template loops over what has no items")
        }
    }

    var count: Int? {
        switch self {
        case .undefined: 0
        case .list(let values): values.count
        case .object(let members): members.count
        case .string(let text): text.unicodeScalars.count
        default: nil
        }
    }

    func contains(_ item: TemplateValue) throws -> Bool {
        guard case .string(let text) = self else {
            return try items().contains { $0.equals(item) }
        }
        guard let part = item.string else { throw TextError("the chat template looks for what is no text in a text") }
        return part.isEmpty || Array(text.utf8).contains(Array(part.utf8))
    }
}

extension Array where Element: Equatable {
    /// Whether these elements are somewhere in a row.
    func contains(_ part: [Element]) -> Bool {
        firstIndex(of: part) != nil
    }

    func firstIndex(of part: [Element]) -> Int? {
        guard part.count <= count else { return nil }
        return (0...count - part.count).first { self[$0...].starts(with: part) }
    }
}
