import Foundation

/// How the next token is chosen; the default takes the most probable one.
public struct SamplingConfig: Equatable, Sendable {
    /// 0 is greedy; 1 samples from the model's own distribution
    public var temperature: Double
    /// keep the smallest set of tokens whose probabilities sum to at least this
    public var topP: Double
    /// keep this many most probable tokens; 0 keeps all
    public var topK: Int

    public static let greedy = SamplingConfig(temperature: 0, topP: 1, topK: 0)

    public init(temperature: Double, topP: Double, topK: Int) {
        self.temperature = temperature
        self.topP = topP
        self.topK = topK
    }

    /// The model's own defaults, as the manifest has them.
    public init(_ defaults: [String: JSONValue]) {
        let temperature = defaults["temperature"]?.doubleValue ?? 0
        let samples = defaults["do_sample"]?.boolValue ?? (temperature > 0)
        self.init(
            temperature: samples ? max(temperature, 0) : 0, topP: defaults["top_p"]?.doubleValue ?? 1, topK: defaults["top_k"]?.intValue ?? 0)
    }
}

/// A stream of numbers that a seed settles (SplitMix64, Steele et al. 2014), so that a test can repeat an answer.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(seed: UInt64) {
        state = seed
    }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var word = state
        word = (word ^ word >> 30) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ word >> 27) &* 0x94D0_49BB_1331_11EB
        return word ^ word >> 31
    }
}

public enum Sampler {
    /// A token that may be chosen, and its weight in proportion to the others'.
    struct Candidate {
        let token: Int
        let weight: Double
    }

    /// Temperature, then top_k, then top_p: the order of transformers' `LogitsProcessorList`, and of `llama_edge/text/generate.py`.
    public static func choose(
        _ logits: [Float], _ config: SamplingConfig, using random: inout some RandomNumberGenerator
    ) throws -> Int {
        guard config.temperature >= 0, config.temperature.isFinite else {
            throw EngineError("the temperature is \(config.temperature); it must be 0 or a number above")
        }
        let best = try best(logits)
        if config.temperature == 0 { return best }
        let kept = candidates(logits, best: best, config).kept
        let sum = kept.reduce(0) { $0 + $1.weight }
        // The best one's weight is 1, so the range is not empty.
        var point = Double.random(in: 0..<sum, using: &random)
        for candidate in kept {
            point -= candidate.weight
            if point < 0 { return candidate.token }
        }
        return kept.last?.token ?? best
    }

    /// The token with the largest logit, the first of equal ones.
    static func best(_ logits: [Float]) throws -> Int {
        var best = 0
        for place in logits.indices {
            guard !logits[place].isNaN else { throw EngineError("the model gave a logit that is no number; the file is damaged, or its runtime is") }
            if logits[place] > logits[best] { best = place }
        }
        guard logits.indices.contains(best), logits[best].isFinite else {
            throw EngineError("the model gave no finite logit; the file is damaged, or its runtime is")
        }
        return best
    }

    /// The tokens that may be chosen, and how many comparisons of two logits that took. The vocabulary is never sorted: a heap
    /// gives the best ones in turn, until there are enough.
    static func candidates(_ logits: [Float], best: Int, _ config: SamplingConfig) -> (kept: [Candidate], comparisons: Int) {
        let top = Double(logits[best])
        func candidate(_ token: Int) -> Candidate {
            Candidate(token: token, weight: exp((Double(logits[token]) - top) / config.temperature))
        }
        guard config.topK > 0 || config.topP < 1 else { return (logits.indices.map(candidate), 0) }
        var comparisons = 0
        // Of equal ones the first, as a stable sort leaves them.
        var heap = Heap(Array(logits.indices)) { a, b in
            comparisons += 1
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b
        }
        var kept: [Candidate] = []
        if config.topK > 0 {
            while kept.count < config.topK, let token = heap.pop() { kept.append(candidate(token)) }
            return (prefix(of: kept, config.topP), comparisons)
        }
        let enough = config.topP * logits.indices.reduce(0) { $0 + candidate($1).weight }
        var sum = 0.0
        while kept.isEmpty || sum < enough, let token = heap.pop() {
            kept.append(candidate(token))
            sum += kept[kept.count - 1].weight
        }
        return (kept, comparisons)
    }

    /// A token stays while the ones before it have not reached top_p, so one always stays.
    private static func prefix(of candidates: [Candidate], _ topP: Double) -> [Candidate] {
        let enough = topP * candidates.reduce(0) { $0 + $1.weight }
        var sum = 0.0
        var count = 0
        while count < candidates.count, count == 0 || sum < enough {
            sum += candidates[count].weight
            count += 1
        }
        return Array(candidates[..<count])
    }
}
