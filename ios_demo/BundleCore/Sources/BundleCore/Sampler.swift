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
    /// Temperature, then top_k, then top_p: the order of transformers' `LogitsProcessorList`, and of `llama_edge/text/generate.py`.
    public static func choose(
        _ logits: [Float], _ config: SamplingConfig, using random: inout some RandomNumberGenerator
    ) throws -> Int {
        guard let best = logits.indices.max(by: { logits[$0] < logits[$1] }), logits[best].isFinite else {
            throw EngineError("the model's answer is no number; the file is damaged, or its runtime is")
        }
        if config.temperature == 0 { return best }
        var order = Array(logits.indices)
        order.sort { logits[$0] > logits[$1] }
        if config.topK > 0 { order = Array(order.prefix(config.topK)) }
        let top = Double(logits[best])
        let weights = order.map { exp((Double(logits[$0]) - top) / config.temperature) }
        let total = weights.reduce(0, +)
        // A token stays while the ones before it have not reached top_p, so one always stays.
        var kept = 0
        var sum = 0.0
        while kept < order.count, sum < config.topP * total {
            sum += weights[kept]
            kept += 1
        }
        var point = Double.random(in: 0..<max(sum, .leastNonzeroMagnitude), using: &random)
        for place in 0..<max(kept, 1) {
            point -= weights[place]
            if point < 0 { return order[place] }
        }
        return order[max(kept, 1) - 1]
    }
}
