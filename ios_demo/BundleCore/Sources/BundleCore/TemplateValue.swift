import Foundation

/// What `{% set ns = namespace() %}` makes: a variable whose fields inner blocks can change. It is held by its name alone, so
/// that none can hold itself or a chain of others.
final class TemplateNamespace {
    private var values: [String: TemplateValue] = [:]

    subscript(name: String) -> TemplateValue? { values[TypedText.withoutMarks(name)] }

    func set(_ name: String, _ value: TemplateValue) throws {
        _ = try value.depth()
        values[name] = value
    }
}

/// The values of a list, which nothing changes, and how deeply they are nested.
final class TemplateList {
    /// Values are compared, written and freed recursively.
    static let maxDepth = 64

    let items: [TemplateValue]
    fileprivate let depth: Int

    init(_ items: [TemplateValue]) throws {
        self.items = items
        depth = try deeper(items)
    }
}

/// Members in the order in which they were first set, of two with one name the last one, as in Python. A name may have been
/// typed; it is found without its marks.
final class TemplateObject {
    let members: [(key: String, value: TemplateValue)]
    fileprivate let depth: Int
    private let places: [ExactString: Int]

    init(_ given: [(key: String, value: TemplateValue)]) throws {
        var members: [(key: String, value: TemplateValue)] = []
        var places: [ExactString: Int] = [:]
        for member in given {
            let name = ExactString(TypedText.withoutMarks(member.key))
            let place = places[name, default: members.count]
            if place < members.count {
                members[place].value = member.value
            } else {
                places[name] = place
                members.append(member)
            }
        }
        self.members = members
        self.places = places
        depth = try deeper(members.lazy.map(\.value))
    }

    /// By name, as it is without marks.
    var sorted: [(key: String, value: TemplateValue)] {
        places.sorted { $0.key.value.unicodeScalars.lexicographicallyPrecedes($1.key.value.unicodeScalars) }.map { members[$0.value] }
    }

    subscript(name: String) -> TemplateValue? {
        places[ExactString(TypedText.withoutMarks(name))].map { members[$0].value }
    }
}

/// One more than the depth of the deepest of `values`.
private func deeper(_ values: some Sequence<TemplateValue>) throws -> Int {
    let depth = try values.reduce(0) { max($0, try $1.depth()) } + 1
    guard depth <= TemplateList.maxDepth else {
        throw TextError("the chat template nests values more than \(TemplateList.maxDepth) deep")
    }
    return depth
}

/// A value while a template runs, with Python's meaning of truth, equality and text.
enum TemplateValue {
    case undefined
    case none
    case bool(Bool)
    case int(Int)
    case double(Double)
    case string(String)
    case list(TemplateList)
    case object(TemplateObject)
    case namespace(TemplateNamespace)

    init(_ json: JSONValue) throws {
        switch json {
        case .null: self = .none
        case .bool(let value): self = .bool(value)
        case .int(let value): self = .int(value)
        case .double(let value): self = .double(value)
        case .string(var value):
            value.makeContiguousUTF8()  // a string of Foundation's counts its bytes one by one
            self = .string(value)
        case .array(let values): self = .list(try TemplateList(values.map { try TemplateValue($0) }))
        case .object(let object): self = .object(try TemplateObject(object.members.map { ($0.key, try TemplateValue($0.value)) }))
        }
    }

    /// Levels of lists and objects. A namespace has none that could be told.
    fileprivate func depth() throws -> Int {
        switch self {
        case .list(let list): return list.depth
        case .object(let object): return object.depth
        case .namespace: throw TextError("the chat template puts a namespace into another value, which is not supported here")
        default: return 0
        }
    }

    var isTrue: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let value): value
        case .int(let value): value != 0
        case .double(let value): value != 0
        case .string(let value): !value.isEmpty
        case .list(let list): !list.items.isEmpty
        case .object(let object): !object.members.isEmpty
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

    var isUndefined: Bool {
        if case .undefined = self { return true }
        return false
    }

    var isNone: Bool {
        if case .none = self { return true }
        return false
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

    func json(_ budget: TemplateBudget, sortKeys: Bool) throws -> JSONValue {
        try budget.node()
        switch self {
        case .undefined, .namespace: throw TextError("the chat template gives tojson what is not defined")
        case .none: return .null
        case .bool(let value): return .bool(value)
        case .int(let value): return .int(value)
        case .double(let value): return .double(value)
        case .string(let value): return .string(value)
        case .list(let list):
            try budget.makeEntries(list.items.count)
            return .array(try list.items.map { try $0.json(budget, sortKeys: sortKeys) })
        case .object(let object):
            try budget.makeEntries(object.members.count)
            let members = sortKeys ? object.sorted : object.members
            return .object(JSONObject(try members.map { ($0.key, try $0.value.json(budget, sortKeys: sortKeys)) }))
        }
    }

    func member(_ name: String) -> TemplateValue {
        switch self {
        case .object(let object): object[name] ?? .undefined
        case .namespace(let space): space[name] ?? .undefined
        default: .undefined
        }
    }

    func equals(_ other: TemplateValue, _ budget: TemplateBudget) throws -> Bool {
        try budget.node()
        switch (self, other) {
        case (.undefined, .undefined), (.none, .none): return true
        case (.string(let a), .string(let b)):
            return sameText(try Unmarked(a, budget).text, try Unmarked(b, budget).text)
        case (.list(let a), .list(let b)):
            return try a.items.count == b.items.count && zip(a.items, b.items).allSatisfy { try $0.equals($1, budget) }
        case (.object(let a), .object(let b)):
            return try a.members.count == b.members.count
                && a.members.allSatisfy { try b[$0.key]?.equals($0.value, budget) ?? false }
        case (.namespace(let a), .namespace(let b)): return a === b
        default:
            guard let a = number, let b = other.number else { return false }
            return a == b
        }
    }

    /// What a loop goes through: items, keys, characters.
    func items(_ budget: TemplateBudget) throws -> [TemplateValue] {
        switch self {
        case .undefined: return []
        case .list(let list): return list.items
        case .object(let object):
            try budget.makeEntries(object.members.count)
            return object.members.map { .string($0.key) }
        case .string(let text):
            let seen = try Unmarked(text, budget)
            try budget.makeEntries(scalarCount(seen.text))
            var place = 0
            return seen.text.unicodeScalars.map { scalar in
                defer { place += UTF8.width(scalar) }
                return .string(seen.cut(place..<place + UTF8.width(scalar)))
            }
        default: throw TextError("the chat template loops over what has no items")
        }
    }

    func count(_ budget: TemplateBudget) throws -> Int? {
        switch self {
        case .undefined: return 0
        case .list(let list): return list.items.count
        case .object(let object): return object.members.count
        case .string(let text):
            return scalarCount(try Unmarked(text, budget).text)
        default: return nil
        }
    }

    /// A character of a text, from the end where `place` is negative.
    func character(_ place: Int, _ budget: TemplateBudget) throws -> TemplateValue {
        guard let text = string else { return .undefined }
        let seen = try Unmarked(text, budget)
        let count = scalarCount(seen.text)
        let positive = place < 0 ? place + count : place
        return (0..<count).contains(positive) ? .string(seen.cut(characters: positive..<positive + 1)) : .undefined
    }

    func contains(_ item: TemplateValue, _ budget: TemplateBudget) throws -> Bool {
        switch self {
        case .undefined: return false
        case .list(let list): return try list.items.contains { try $0.equals(item, budget) }
        case .object(let object): return item.string.flatMap { object[$0] } != nil
        case .string(let text):
            guard let part = item.string else { throw TextError("the chat template looks for what is no text in a text") }
            let (seen, wanted) = (try Unmarked(text, budget).text, try Unmarked(part, budget).text)
            return try wanted.isEmpty || !TextSearch(wanted, budget).places(in: seen, limit: 1).isEmpty
        default: throw TextError("the chat template looks for a value in what has no items")
        }
    }
}

/// Code points, counted by the bytes that begin one.
private func scalarCount(_ text: String) -> Int {
    var text = text
    return text.withUTF8 { bytes in
        var count = 0
        for byte in bytes where byte & 0xC0 != 0x80 { count += 1 }
        return count
    }
}
