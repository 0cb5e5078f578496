import Foundation

/// A model that continues one sequence of tokens.
///
/// A call writes its tokens into the cache from `position` on; what the cache holds beyond them is never looked at, so going
/// back to an earlier position is all that forgetting takes.
public protocol Engine: Sendable {
    /// Tokens that the cache holds.
    var maxContext: Int { get }
    /// Tokens that one call takes.
    var maxPrefill: Int { get }
    /// Run `tokens`, of which the first belongs at `position`; the logits behind the last one, one for each row of the vocabulary.
    func run(_ tokens: [Int], at position: Int) async throws -> [Float]
}

/// What went wrong in an engine, apart from what the bundle is to blame for.
public struct EngineError: Error, Equatable, CustomStringConvertible, Sendable {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}

/// An engine that answers what it is told to: for tests and previews.
public actor ScriptedEngine: Engine {
    public nonisolated let maxContext: Int
    public nonisolated let maxPrefill: Int
    private let vocabularySize: Int
    private let endToken: Int
    private var answers: [[Int]]
    private var answer: [Int] = []
    private var cache: [Int] = []
    /// Every call: position and tokens.
    public private(set) var calls: [(position: Int, tokens: [Int])] = []

    /// Each answer is given after one prompt, `endToken` behind it; a prompt is a call of more than one token, or the first.
    public init(answers: [[Int]], endToken: Int, vocabularySize: Int, maxContext: Int = 2048, maxPrefill: Int = 512) {
        self.answers = answers
        self.endToken = endToken
        self.vocabularySize = vocabularySize
        self.maxContext = maxContext
        self.maxPrefill = maxPrefill
    }

    public func run(_ tokens: [Int], at position: Int) async throws -> [Float] {
        guard !tokens.isEmpty, tokens.count <= maxPrefill, position >= 0, position <= cache.count,
            position + tokens.count <= maxContext
        else { throw EngineError("\(tokens.count) tokens at \(position) do not fit") }
        calls.append((position, tokens))
        cache = cache[..<position] + tokens
        if tokens.count > 1 || answer.isEmpty { answer = (answers.isEmpty ? [] : answers.removeFirst()) + [endToken] }
        // So far apart that no temperature lets another token in.
        var logits = [Float](repeating: -1000, count: vocabularySize)
        logits[answer.removeFirst()] = 0
        return logits
    }
}
