import Foundation
import XCTest

@testable import BundleCore

/// Good files, changed by chance. Each is read, or refused with an error of the app's own; none traps.
///
/// `MUTATION_ROUNDS` sets how many there are of each kind.
final class MutationTests: XCTestCase {
    private let rounds = Int(ProcessInfo.processInfo.environment["MUTATION_ROUNDS"] ?? "") ?? 300

    private static let leaves: [JSONValue] = [
        .null, .bool(true), .bool(false), .int(.max), .int(.min), .int(-1), .int(0), .int(1 << 40), .double(1e300), .double(-0.5), .string(""),
        .string("\0"),
        .string("é"), .string("<|end|>"), .string("{{ range(99999999) }}"), .string("(a+)+b"), .string(String(repeating: "a", count: 5_000)),
        .array([]), .object(JSONObject()),
        .array([.array([.array([])])]),
    ]

    /// One place of the value replaced, left out or doubled.
    private func mutated(_ value: JSONValue, _ random: inout SeededGenerator) -> JSONValue {
        func leaf() -> JSONValue { Self.leaves.randomElement(using: &random) ?? .null }
        switch value {
        case .array(var values) where !values.isEmpty && Int.random(in: 0..<8, using: &random) > 0:
            let place = Int.random(in: values.indices, using: &random)
            switch Int.random(in: 0..<6, using: &random) {
            case 0: values.remove(at: place)
            case 1: values.append(values[place])
            default: values[place] = mutated(values[place], &random)
            }
            return .array(values)
        case .object(let object) where object.count > 0 && Int.random(in: 0..<8, using: &random) > 0:
            var members = object.members.map { ($0.key, $0.value) }
            let place = Int.random(in: members.indices, using: &random)
            switch Int.random(in: 0..<8, using: &random) {
            case 0: members.remove(at: place)
            case 1: members[place].0 += "x"
            default: members[place].1 = mutated(members[place].1, &random)
            }
            return .object(JSONObject(members))
        default: return leaf()
        }
    }

    private func mutatedBytes(_ data: Data, _ random: inout SeededGenerator) -> Data {
        var bytes = Array(data)
        for _ in 0..<Int.random(in: 1...4, using: &random) where !bytes.isEmpty {
            let place = Int.random(in: bytes.indices, using: &random)
            switch Int.random(in: 0..<4, using: &random) {
            case 0: bytes.remove(at: place)
            case 1: bytes.insert(UInt8.random(in: 0...255, using: &random), at: place)
            case 2: bytes = Array(bytes[..<place])
            default: bytes[place] = UInt8(ascii: "\"{}[]:,0-\\".unicodeScalars.randomElement(using: &random) ?? "0")
            }
        }
        return Data(bytes)
    }

    func testManifests() throws {
        var random = SeededGenerator(seed: 21)
        let data = try Fixtures.data("bundles/good-ios/manifest.json")
        let good = try JSONValue(parsing: data)
        for round in 0..<rounds {
            let changed = round % 2 == 0 ? Data(mutated(good, &random).dumped().utf8) : mutatedBytes(data, &random)
            do { _ = try onSmallStack { try Manifest(json: changed) } } catch { XCTAssertTrue(error is Finding, "\(error)") }
        }
    }

    func testTokenizers() throws {
        var random = SeededGenerator(seed: 22)
        for name in ["tokenizers/llama3.json", "tokenizers/chatml.json"] {
            let data = try Fixtures.data(name)
            let good = try JSONValue(parsing: data)
            for round in 0..<rounds {
                let changed = round % 2 == 0 ? Data(mutated(good, &random).dumped().utf8) : mutatedBytes(data, &random)
                do {
                    try onSmallStack {
                        let tokenizer = try Tokenizer(json: changed)
                        for text in ["Grüezi 123  \n<|eot_id|>aaaa <|im_end|>", "é😀\0"] {
                            let ids = try tokenizer.encode(text, controlTokens: true)
                            _ = tokenizer.decode(ids, skipSpecialTokens: false)
                        }
                    }
                } catch { XCTAssertTrue(error is TextError, "\(error)") }
            }
        }
    }

    func testTemplates() throws {
        var random = SeededGenerator(seed: 23)
        let messages = try XCTUnwrap(JSONValue(parsing: #"[{"role": "system", "content": "a"}, {"role": "user", "content": " b "}]"#).arrayValue)
        for name in ["templates/tools.jinja", "templates/smollm2.jinja"] {
            let good = Array(try Fixtures.text(name).unicodeScalars)
            let parts = [
                "{{", "}}", "{%", "%}", "'", "(", ")", "[", "]", "|", " - ", " 9223372036854775807 ", "for x in ", "if ", "endif", "set ", "~", "*",
                "-%}", "not ", ".a", "\0", "é",
            ]
            for _ in 0..<rounds {
                var scalars = good
                for _ in 0..<Int.random(in: 1...3, using: &random) {
                    let place = Int.random(in: scalars.indices, using: &random)
                    if Bool.random(using: &random) {
                        scalars.removeSubrange(place..<min(place + Int.random(in: 1...5, using: &random), scalars.count))
                    }
                    scalars.insert(contentsOf: (parts.randomElement(using: &random) ?? "").unicodeScalars, at: min(place, scalars.count))
                }
                let source = String(String.UnicodeScalarView(scalars))
                do {
                    _ = try onSmallStack { try ChatTemplate(source).render(messages) }
                } catch { XCTAssertTrue(error is TextError, "\(error)") }
            }
        }
    }

    func testConfigsAndSignatures() throws {
        var random = SeededGenerator(seed: 24)
        let folder = try Fixtures.namedBundle("signed")
        for name in ["tokenizer_config.json", "generation_config.json", BundleSignature.fileName] {
            let url = folder.appendingPathComponent(name)
            let data = try Data(contentsOf: url)
            let good = try JSONValue(parsing: data)
            for round in 0..<rounds / 10 {
                try (round % 2 == 0 ? Data(mutated(good, &random).dumped().utf8) : mutatedBytes(data, &random)).write(to: url)
                if name == BundleSignature.fileName {
                    _ = try onSmallStack { try BundleSignature.check(folder: folder, publicKey: Data(repeating: 1, count: 32)) }
                } else {
                    do { _ = try onSmallStack { try TextAssets(folder: folder).compiledTemplate() } } catch {
                        XCTAssertTrue(error is TextError, "\(error)")
                    }
                }
            }
            try data.write(to: url)
        }
    }

    func testAnswers() throws {
        var random = SeededGenerator(seed: 25)
        let good = [
            #"{"name": "f", "parameters": {"a": [1, 2.5, "é", null]}}"#, #"[f(a=1, b='x', c=[1, {'d': -2.5}]), g.h(x="\u00e9\n")]"#,
            #"<|python_tag|>f.call(a=True)"#,
        ]
        for answer in good {
            for _ in 0..<rounds {
                let text = String(decoding: mutatedBytes(Data(answer.utf8), &random), as: UTF8.self)
                do { _ = try onSmallStack { try ToolCall.parse(text) } } catch { XCTAssertTrue(error is ToolCallError, "\(error)") }
            }
        }
    }
}
