import Foundation
import XCTest

@testable import BundleCore

/// The same results as Hugging Face's libraries. The files of `Cases` hold what those give; `tests/ios_demo/test_cases.py`
/// asks them again.
final class ReferenceTests: XCTestCase {
    private func cases(_ name: String) throws -> JSONValue {
        try JSONValue(
            parsing: Data(contentsOf: URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Cases/\(name).json")))
    }

    func testTemplatesRenderAsInTransformers() throws {
        let all = try cases("jinja")
        let messages = try XCTUnwrap(all["messages"]?.arrayValue)
        for value in try XCTUnwrap(all["cases"]?.arrayValue) {
            let source = try value.string("template")
            func render() throws -> String { try ChatTemplate(source, specialTokens: ["bos_token": "<s>", "eos_token": "</s>"]).render(messages) }
            if let text = value["text"]?.stringValue {
                do {
                    assertSame(try render(), text, source)
                } catch {
                    XCTFail("\(source): \(error)")
                }
            } else {
                XCTAssertThrowsError(try render(), source) { XCTAssertTrue($0 is TextError, source) }
            }
        }
    }

    /// Merges that compete for the same letters: the one learned first, then the leftmost.
    func testPairsMergeAsInTokenizers() throws {
        let all = try cases("bpe")
        let tokenizer = try Tokenizer(json: Data(XCTUnwrap(all["tokenizer"]).dumped().utf8))
        for value in try XCTUnwrap(all["cases"]?.arrayValue) {
            let text = try value.string("text")
            XCTAssertEqual(try tokenizer.encode(text, controlTokens: true), try value.ints("tokens"), text)
        }
    }

    func testSamplingWarpsAsInTransformers() throws {
        for value in try XCTUnwrap(cases("sampling").arrayValue) {
            func number(_ key: String) throws -> Double { try XCTUnwrap(value[key]?.doubleValue) }
            let config = SamplingConfig(temperature: try number("temperature"), topP: try number("top_p"), topK: Int(try number("top_k")))
            let logits = try XCTUnwrap(value["logits"]?.arrayValue).map { Float($0.doubleValue ?? .nan) }
            let kept = Sampler.candidates(logits, best: try Sampler.best(logits), config).kept
            let total = kept.reduce(0) { $0 + $1.weight }
            var probabilities = [Double](repeating: 0, count: logits.count)
            for candidate in kept { probabilities[candidate.token] += candidate.weight / total }
            let expected = try XCTUnwrap(value["probabilities"]?.arrayValue).map { $0.doubleValue ?? .nan }
            XCTAssertEqual(expected.map { $0 == 0 }, probabilities.map { $0 < 5e-7 }, "\(config)")
            for (found, wanted) in zip(probabilities, expected) { XCTAssertEqual(found, wanted, accuracy: 2e-6, "\(config)") }
        }
    }
}
