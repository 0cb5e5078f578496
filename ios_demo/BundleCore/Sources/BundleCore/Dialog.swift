import Foundation

/// The last exchange alone is too long for the context.
public struct DialogTooLong: Error, Equatable, Sendable {
    public let tokens: Int
    public let limit: Int
}

public enum Dialog {
    /// The newest part of a dialog that fits; system messages in front stay.
    ///
    /// An exchange is a user's message and everything up to the next one: an answer without its question, or a tool's result
    /// without its call, would mislead the model, so they go together.
    public static func trimmed(
        _ messages: [JSONValue], limit: Int, countTokens: ([JSONValue]) throws -> Int
    ) throws -> [JSONValue] {
        func role(_ message: JSONValue) -> String { message["role"]?.stringValue ?? "" }
        let first = messages.firstIndex { role($0) != "system" } ?? messages.count
        let system = messages[..<first]
        let rest = Array(messages[first...])
        var tokens = 0
        for start in [0] + rest.indices.filter({ $0 > 0 && role(rest[$0]) == "user" }) {
            let kept = Array(system) + rest[start...]
            tokens = try countTokens(kept)
            if tokens <= limit { return kept }
        }
        throw DialogTooLong(tokens: tokens, limit: limit)
    }
}
