import Foundation
import XCTest

@testable import BundleCore

/// Every case of the shared fixtures: the same verdict and the same codes as Python and Kotlin.
final class SharedFixtureTests: XCTestCase {
    func testBundles() throws {
        try Fixtures.forEach("bundle", atLeast: 40) { value, name in
            let key = value["public_key"]?.stringValue.flatMap(Self.publicKey)
            XCTAssertEqual(key == nil, value["public_key"] == nil, name)
            let accepts = (value["accepts"]?.arrayValue ?? []).map {
                AppTarget(target: $0["target"]?.stringValue ?? "", backend: $0["backend"]?.stringValue ?? "")
            }
            var codes: [String] = []
            do {
                _ = try ContractCheck(accepts: accepts, publicKey: key).open(Fixtures.bundle(value))
            } catch let refused as RefusedBundle {
                for finding in refused.findings where !codes.contains(finding.code) { codes.append(finding.code) }
                for finding in refused.findings { XCTAssertFalse(finding.remedy.isEmpty, finding.code) }
            }
            XCTAssertEqual(codes, try value.strings("codes"), name)
        }
    }

    func testAManifestOfTooManyValuesIsRefusedUnread() throws {
        let text = try Fixtures.text("bundles/good-android/manifest.json").dropFirst()
        func code(_ values: Int) -> String? {
            let many = "{\"surprise\":[" + String(repeating: "0,", count: values) + "0],"
            do {
                _ = try Manifest(json: Data((many + text).utf8))
            } catch {
                return (error as? Finding)?.code
            }
            return nil
        }
        XCTAssertEqual(code(Manifest.maxValues), "manifest.too_large")
        XCTAssertEqual(code(Manifest.maxValues / 2), "manifest.schema")
    }

    /// PEM, or the 32 bytes in hexadecimal digits or base64.
    private static func publicKey(_ text: String) -> Data? {
        if text.hasPrefix("-----") { return BundleSignature.publicKey(pem: text) }
        return text.utf8.count == 64 ? bytes(text).map { Data($0) } : Data(base64Encoded: text)
    }

    private static func bytes(_ hexadecimal: String) -> [UInt8]? {
        let digits = Array(hexadecimal)
        let bytes = stride(from: 0, to: digits.count - 1, by: 2).compactMap { UInt8(String(digits[$0...$0 + 1]), radix: 16) }
        return bytes.count * 2 == digits.count ? bytes : nil
    }

    func testTokens() throws {
        try Fixtures.forEach("tokens", atLeast: 20) { value, name in
            let tokenizer = try Tokenizer(json: Fixtures.data(value.string("tokenizer")))
            let tokens = try value.ints("tokens")
            XCTAssertEqual(try tokenizer.encode(value.string("text"), controlTokens: value["control_tokens"]?.boolValue ?? false), tokens, name)
            var stream = TokenStream(tokenizer)
            let streamed = tokens.map { stream.push($0) }.joined() + stream.flush()
            assertSame(streamed, try value.string("decoded"), name)
            assertSame(tokenizer.decode(tokens), try value.string("decoded"), name)
        }
    }

    func testChatTokens() throws {
        try Fixtures.forEach("chat_tokens", atLeast: 18) { value, name in
            let tokenizer = try Tokenizer(json: Fixtures.data(value.string("tokenizer")))
            let template = try ChatTemplate(value.string("template"), specialTokens: value.texts("special_tokens"))
            let dialog = DialogEncoder(
                tokenizer: tokenizer, template: template,
                beginsOrEnds: Set(try value.ints("eos_token_ids") + (value["bos_token_id"]?.intValue.map { [$0] } ?? [])),
                contentParts: try XCTUnwrap(value["content_parts"]?.boolValue))
            XCTAssertEqual(try dialog.encode(value["messages"]?.arrayValue ?? []), try value.ints("tokens"), name)
        }
    }

    func testChats() throws {
        try Fixtures.forEach("chat", atLeast: 10) { value, name in
            func render() throws -> String {
                let source = try Fixtures.text(value.string("template"))
                let template = try ChatTemplate(source, specialTokens: value.texts("special_tokens"))
                let day = try value.string("date").split(separator: "-").compactMap { Int($0) }
                return try template.render(
                    value["messages"]?.arrayValue ?? [], addGenerationPrompt: value["add_generation_prompt"]?.boolValue ?? true,
                    tools: value["tools"]?.arrayValue, today: TemplateDate(year: day[0], month: day[1], day: day[2]))
            }
            guard let expected = value["text"]?.stringValue else {
                XCTAssertThrowsError(try render(), name) { XCTAssertTrue($0 is TextError, name) }
                return
            }
            assertSame(try render(), expected, name)
        }
    }

    /// Which tokens may be chosen, and how probable each is; the draw itself differs between languages.
    func testSampling() throws {
        try Fixtures.forEach("sampling", atLeast: 20) { value, name in
            func numbers(_ key: String) throws -> [Double] { try XCTUnwrap(value[key]?.arrayValue).map { try XCTUnwrap($0.doubleValue) } }
            let logits = try numbers("logits").map { Float($0) }
            let config = SamplingConfig(
                temperature: try XCTUnwrap(value["temperature"]?.doubleValue), topP: try XCTUnwrap(value["top_p"]?.doubleValue),
                topK: try XCTUnwrap(value["top_k"]?.intValue))
            let kept = Sampler.candidates(logits, best: try Sampler.best(logits), config).kept.sorted { $0.token < $1.token }
            XCTAssertEqual(kept.map(\.token), try value.ints("tokens"), name)
            let total = kept.reduce(0) { $0 + $1.weight }
            for (candidate, wanted) in zip(kept, try numbers("probabilities")) {
                XCTAssertEqual(candidate.weight / total, wanted, accuracy: 1e-12, name)
            }
        }
    }

    func testToolCalls() throws {
        try Fixtures.forEach("tool_calls", atLeast: 20) { value, name in
            let text = try value.string("text")
            guard let expected = value["calls"]?.arrayValue else {
                XCTAssertThrowsError(try ToolCall.parse(text), name) { XCTAssertTrue($0 is ToolCallError, name) }
                return
            }
            let calls = try ToolCall.parse(text).map {
                JSONValue.object(JSONObject([("name", .string($0.name)), ("arguments", $0.arguments)]))
            }
            XCTAssertEqual(calls, expected, name)
        }
    }

    func testGuards() throws {
        try Fixtures.forEach("guard", atLeast: 15) { value, name in
            let categories = try GuardModel.categories(in: value.string("text"))
            XCTAssertEqual(categories == nil, try value.string("verdict") == "safe", name)
            XCTAssertEqual(categories ?? [], try value.strings("categories"), name)
        }
    }

    func testUTF8() throws {
        try Fixtures.forEach("utf8", atLeast: 10) { value, name in
            var stream = UTF8Stream()
            let pieces = try value.strings("chunks").map { stream.push(try XCTUnwrap(Self.bytes($0))) }
            XCTAssertEqual(pieces.map(ExactString.init), try value.strings("pieces").map(ExactString.init), name)
            assertSame(stream.flush(), try value.string("rest"), name)
        }
    }

    func testStopSequences() throws {
        try Fixtures.forEach("stop", atLeast: 8) { value, name in
            var filter = try StopFilter(value.strings("stops"))
            let passed = try value.strings("pieces").map { filter.push($0) }
            XCTAssertEqual(passed.map(ExactString.init), try value.strings("expected").map(ExactString.init), name)
            XCTAssertEqual(filter.stopped, value["stopped"]?.boolValue, name)
            assertSame(filter.flush(), try value.string("rest"), name)
        }
    }

    func testTrimming() throws {
        try Fixtures.forEach("trim", atLeast: 8) { value, name in
            let messages = value["messages"]?.arrayValue ?? []
            func cost(_ messages: [JSONValue]) throws -> Int {
                try messages.map { try 4 + $0.string("content").unicodeScalars.count }.reduce(0, +)
            }
            let limit = try XCTUnwrap(value["limit"]?.intValue)
            guard value["kept"]?.arrayValue != nil else {
                XCTAssertThrowsError(try Dialog.trimmed(messages, limit: limit, countTokens: cost), name) {
                    XCTAssertTrue($0 is DialogTooLong, name)
                }
                return
            }
            XCTAssertEqual(
                try Dialog.trimmed(messages, limit: limit, countTokens: cost), try value.ints("kept").map { messages[$0] }, name)
        }
    }
}
