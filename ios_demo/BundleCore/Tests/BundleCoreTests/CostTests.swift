import Foundation
import XCTest

@testable import BundleCore

/// What grows with the input, counted in operations, not in seconds.
final class CostTests: XCTestCase {
    func testALongWordCostsNoSquare() throws {
        let cases = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Cases/bpe.json")
        let models = [
            try JSONValue(parsing: Fixtures.data("tokenizers/llama3.json"))["model"],
            try JSONValue(parsing: Data(contentsOf: cases))["tokenizer"]?["model"],
        ]
        for model in models {
            let bpe = try ByteLevelBPE(XCTUnwrap(model))
            for letters in ["thing", "a", "\u{e9}", "aab", "abcd"] {
                let word = Array(String(repeating: letters, count: 60_000 / letters.utf8.count).utf8)
                let (ids, considered) = bpe.merged(word)
                XCTAssertGreaterThan(ids.count, 0)
                // A scan of all pairs for each merge would consider the square: 3.6 billion.
                XCTAssertLessThanOrEqual(considered, 3 * word.count, letters)
                print("pairs considered: \(considered) for \(word.count) bytes of \(letters.debugDescription)")
            }
        }
    }

    func testAVocabularyIsNotSorted() throws {
        var random = SeededGenerator(seed: 11)
        // Llama 3's vocabulary.
        let logits = (0..<128_256).map { _ in Float.random(in: -10...10, using: &random) }
        let best = try Sampler.best(logits)
        func comparisons(_ config: SamplingConfig) -> Int { Sampler.candidates(logits, best: best, config).comparisons }
        // A sort takes 3,500,000.
        XCTAssertEqual(comparisons(SamplingConfig(temperature: 0.6, topP: 1, topK: 0)), 0)
        XCTAssertLessThan(comparisons(SamplingConfig(temperature: 0.6, topP: 1, topK: 50)), 2 * logits.count + 50 * 2 * 17)
        let config = SamplingConfig(temperature: 0.3, topP: 0.2, topK: 0)
        let kept = Sampler.candidates(logits, best: best, config).kept.count
        XCTAssertLessThan(comparisons(config), 2 * logits.count + kept * 2 * 17)
        print("comparisons: \(comparisons(SamplingConfig(temperature: 0.6, topP: 1, topK: 50))) for 50; \(comparisons(config)) for \(kept) of top_p")
    }

    func testEqualLogitsKeepTheirOrder() {
        let kept = Sampler.candidates([1, 3, 3, 2, 3], best: 1, SamplingConfig(temperature: 1, topP: 1, topK: 4)).kept
        XCTAssertEqual(kept.map(\.token), [1, 2, 4, 3])
    }

    func testWhatCannotBeSampledIsAnError() {
        var random = SeededGenerator(seed: 1)
        let odd: [[Float]] = [[], [.nan], [1, .nan], [.nan, 1], [.infinity, 1], [-.infinity, -.infinity]]
        for logits in odd {
            for temperature in [0, 1.0] {
                let config = SamplingConfig(temperature: temperature, topP: 0.9, topK: 0)
                XCTAssertThrowsError(try Sampler.choose(logits, config, using: &random)) { XCTAssertTrue($0 is EngineError) }
            }
        }
        for temperature in [-1, .nan, .infinity] {
            XCTAssertThrowsError(try Sampler.choose([1, 2], SamplingConfig(temperature: temperature, topP: 1, topK: 0), using: &random))
        }
        // Strange, and harmless.
        for (topP, topK) in [(0.0, 0), (-1, 0), (.nan, 0), (.infinity, 0), (1, .max), (0.5, .max), (1, -5), (1e-300, 1)] {
            for temperature in [Double.leastNonzeroMagnitude, 1e-300, 1, 1e300] {
                let config = SamplingConfig(temperature: temperature, topP: topP, topK: topK)
                XCTAssertNoThrow(try Sampler.choose([-.infinity, 2, 1, -3e38], config, using: &random))
            }
        }
    }

    func testManyAddedTokensCostNoMoreForEachLetter() throws {
        let entries = (0..<20_000).map { #"{"id":\#($0),"content":"<|reserved_\#($0)|>","special":true}"# }
        let added = try AddedTokens(JSONValue(parsing: "[" + entries.joined(separator: ",") + "]"))
        let text = String(repeating: "<|reserved_19999|>x<|reserved_", count: 500)
        let pieces = added.split(text) { _ in true }
        XCTAssertEqual(pieces.filter { $0 == .token(19_999) }.count, 500)
        XCTAssertEqual(pieces.count, 1_000)
    }
}
