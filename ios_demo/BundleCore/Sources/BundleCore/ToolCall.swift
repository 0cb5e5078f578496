import Foundation

/// One function and what it is called with.
public struct ToolCall: Equatable, Sendable {
    public let name: String
    public let arguments: JSONValue

    public init(name: String, arguments: JSONValue) {
        self.name = name
        self.arguments = arguments
    }
}

/// An answer that begins as a call and does not end as one.
public struct ToolCallError: Error, Equatable, CustomStringConvertible, Sendable {
    public let description: String
}

extension ToolCall {
    static let pythonTag = "<|python_tag|>"
    /// A call longer than this is no call, whatever it looks like.
    static let maxCharacters = 1 << 16
    static let maxDepth = 16

    /// The calls in a whole answer, in the three forms that Llama 3.2 was trained to write; none where it is plain text.
    ///
    /// JSON `{"name": ..., "parameters": {...}}`, several parted by `;` or white space; a list of Python calls `[f(a=1)]`; either
    /// of them after `<|python_tag|>`. The rules are those of `llama_edge/text/tool_calls.py`.
    public static func parse(_ answer: String) throws -> [ToolCall] {
        var text = trimmed(answer)
        let isTagged = text.hasPrefix(pythonTag)
        if isTagged { text = trimmed(String(text.dropFirst(pythonTag.count))) }
        if text.hasPrefix("["), beginsPythonCall(trimmed(String(text.dropFirst()))) { return try python(text) }
        if isTagged, beginsPythonCall(text) { return try python("[\(text)]") }
        if text.hasPrefix("{") || text.hasPrefix("[") {
            let calls = try json(text)
            if !calls.isEmpty { return calls }
        }
        if isTagged { throw ToolCallError(description: "after \(pythonTag) comes \(text.prefix(60)), which is no call") }
        return []
    }

    private static func trimmed(_ text: String) -> String {
        var scalars = text.unicodeScalars[...]
        while let first = scalars.first, pythonSpaces.contains(first) { scalars.removeFirst() }
        while let last = scalars.last, pythonSpaces.contains(last) { scalars.removeLast() }
        return String(scalars)
    }

    private static func beginsPythonCall(_ text: String) -> Bool {
        text.range(of: #"^[A-Za-z_][A-Za-z0-9_.]*\("#, options: .regularExpression) != nil
    }

    private static func python(_ text: String) throws -> [ToolCall] {
        guard text.unicodeScalars.count <= maxCharacters else {
            throw ToolCallError(description: "the call has more than \(maxCharacters) characters")
        }
        var parser = PythonCallParser(text)
        return try parser.calls()
    }

    private static func json(_ text: String) throws -> [ToolCall] {
        let looksLikeCall = text.range(of: #"^\[?\s*\{\s*"(name|type)"\s*:"#, options: .regularExpression) != nil
        guard text.unicodeScalars.count <= maxCharacters, let values = JSONValue.row(text) else {
            if looksLikeCall { throw ToolCallError(description: "the call \(text.prefix(60)) is not whole JSON") }
            return []
        }
        let calls = try values.map(call)
        return calls.contains { $0 == nil } ? [] : calls.compactMap { $0 }
    }

    private static func call(_ value: JSONValue) throws -> ToolCall? {
        guard let name = value["name"]?.stringValue,
            let arguments = value["parameters"] ?? value["arguments"], arguments.objectValue != nil
        else { return nil }
        try check(arguments, depth: 0)
        return ToolCall(name: name, arguments: arguments)
    }

    /// No argument that one of the apps could not hold.
    static func check(_ value: JSONValue, depth: Int) throws {
        guard depth <= maxDepth else { throw ToolCallError(description: "arguments are nested more than \(maxDepth) deep") }
        switch value {
        case .double(let number) where !number.isFinite: throw ToolCallError(description: "an argument is not a finite number")
        case .array(let items): for item in items { try check(item, depth: depth + 1) }
        case .object(let object): for member in object.members { try check(member.value, depth: depth + 1) }
        default: break
        }
    }
}
