import Foundation

/// Why an answer ended.
public enum StopReason: String, Sendable {
    case endToken, stopSequence, maxNewTokens, contextFull
}

/// What an answer cost.
public struct GenerationSummary: Equatable, Sendable {
    public let reason: StopReason
    public let promptTokens: Int
    /// Tokens of the prompt that the cache did not hold already.
    public let prefilledTokens: Int
    public let newTokens: Int
    public let timeToFirstToken: Double
    public let decodeSeconds: Double

    /// New tokens a second after the first; nil for less than two.
    public var tokensPerSecond: Double? {
        newTokens > 1 && decodeSeconds > 0 ? Double(newTokens - 1) / decodeSeconds : nil
    }
}

/// Text that was passed on so far.
actor SaidText {
    private(set) var text = ""

    func append(_ piece: String) {
        text += piece
    }
}

/// Continues prompts on one engine, keeping what the cache already holds of them. There is one for each engine: it knows what is
/// in the cache, whoever asked.
public actor Generator {
    /// What the app stops after when nothing else ends the answer.
    public static let defaultMaxNewTokens = 256

    /// Tokens that a prompt and its answer may have together.
    public nonisolated let maxContext: Int
    private let engine: any Engine
    private let tokenizer: Tokenizer
    private let endTokens: Set<Int>
    private var cached: [Int] = []
    private var isBusy = false
    private var random: SeededGenerator
    private let clock = ContinuousClock()

    public init(engine: any Engine, tokenizer: Tokenizer, endTokens: [Int], seed: UInt64 = .random(in: .min ... .max)) {
        self.engine = engine
        maxContext = engine.maxContext
        self.tokenizer = tokenizer
        self.endTokens = Set(endTokens)
        random = SeededGenerator(seed: seed)
    }

    /// Forget everything; the next prompt is read from its first token.
    public func reset() {
        cached = []
    }

    /// Answer a prompt, passing text on as it comes. Ends with `CancellationError` when the task is cancelled; what was said
    /// until then has been passed on.
    public func generate(
        _ prompt: [Int], sampling: SamplingConfig, maxNewTokens: Int = defaultMaxNewTokens, stops: [String] = [],
        onText: @Sendable (String) async -> Void
    ) async throws -> GenerationSummary {
        guard !prompt.isEmpty, prompt.count <= engine.maxContext else {
            throw DialogTooLong(tokens: prompt.count, limit: engine.maxContext)
        }
        // An actor lets others in while it waits, and a cache holds one sequence.
        guard !isBusy else { throw EngineError("the model is answering something else; stop that first") }
        isBusy = true
        defer { isBusy = false }
        let start = clock.now
        var stream = TokenStream(tokenizer)
        var filter = try StopFilter(stops)
        // The last token of a prompt always runs: its logits are what is asked for.
        let shared = min(zip(cached, prompt).prefix { $0 == $1 }.count, prompt.count - 1)
        cached = Array(prompt[..<shared])
        var logits = try await prefill(prompt[shared...])
        var newTokens = 0
        var firstAt: ContinuousClock.Instant?
        var reason = StopReason.maxNewTokens
        while newTokens < maxNewTokens {
            try Task.checkCancellation()
            let token = try choose(logits, sampling)
            if firstAt == nil { firstAt = clock.now }
            if endTokens.contains(token) {
                reason = .endToken
                break
            }
            newTokens += 1
            let text = filter.push(stream.push(token))
            if !text.isEmpty { await onText(text) }
            if filter.stopped {
                reason = .stopSequence
                break
            }
            if newTokens == maxNewTokens { break }
            if cached.count == engine.maxContext {
                reason = .contextFull
                break
            }
            logits = try await run([token])
        }
        let rest = filter.stopped ? "" : filter.push(stream.flush()) + filter.flush()
        if !rest.isEmpty { await onText(rest) }
        let first = firstAt ?? clock.now
        return GenerationSummary(
            reason: reason, promptTokens: prompt.count, prefilledTokens: prompt.count - shared, newTokens: newTokens,
            timeToFirstToken: seconds(from: start, to: first), decodeSeconds: seconds(from: first, to: clock.now))
    }

    private func choose(_ logits: [Float], _ sampling: SamplingConfig) throws -> Int {
        try Sampler.choose(logits, sampling, using: &random)
    }

    private func prefill(_ tokens: ArraySlice<Int>) async throws -> [Float] {
        var logits: [Float] = []
        var rest = tokens
        while !rest.isEmpty {
            try Task.checkCancellation()
            logits = try await run(Array(rest.prefix(engine.maxPrefill)))
            rest = rest.dropFirst(engine.maxPrefill)
        }
        return logits
    }

    private func run(_ tokens: [Int]) async throws -> [Float] {
        let logits = try await engine.run(tokens, at: cached.count)
        cached += tokens
        return logits
    }

    private func seconds(from start: ContinuousClock.Instant, to end: ContinuousClock.Instant) -> Double {
        let (seconds, attoseconds) = start.duration(to: end).components
        return Double(seconds) + Double(attoseconds) * 1e-18
    }
}
