import Foundation
import XCTest

@testable import BundleCore

/// Files that try to end the app, or to keep it busy. Each has to end in an error, on the stack of a background thread.
final class HostileFileTests: XCTestCase {
    private func assertRefused(_ json: String, _ words: String = "", line: UInt = #line) {
        XCTAssertThrowsError(try onSmallStack { try JSONValue(parsing: Data(json.utf8)) }, "\(json.prefix(60))", line: line) { error in
            XCTAssertTrue(error is JSONError, "\(json.prefix(60)): \(error)", line: line)
            XCTAssertTrue(words.isEmpty || "\(error)".contains(words), "\(json.prefix(60)): \(error)", line: line)
        }
    }

    // MARK: JSON

    func testWrongJSONIsRefused() {
        let wrong = [
            "", "{", "[1,]", "{\"a\":1,}", "01", "+1", ".5", "1.", "1e", "1e+", "-", "--1", "tru", "\"\n\"", "\"\\x\"", "1 2", "NaN", "Infinity",
            "'a'", "\"",
            "\"\\", "\"\\u", "\"\\u12", "\"\\u+123\"", "{1:2}", "{\"a\" 1}", "[1 2]", "\u{feff}1", "nul", "[", "\"a", "{\"a\":", "{\"a\"",
        ]
        for text in wrong { assertRefused(text) }
    }

    func testAMemberThatIsThereTwiceIsRefused() {
        for text in [#"{"a":1,"a":1}"#, #"{"a":1,"b":2,"\u0061":3}"#, #"[{"x":{"":1,"":2}}]"#] { assertRefused(text, "there twice") }
    }

    func testHalvesOfSurrogatePairsAreRefused() throws {
        for text in [
            #""\ud800""#, #""\udc00""#, #""\ud800\n""#, #""\ud800\u0041""#, #""\ud800\ud800""#, #""\ud800x""#, #""\ud800\"#, #"{"\udfff":1}"#,
        ] {
            assertRefused(text)
        }
        // The same as bytes, which are no UTF-8; and other bytes that are none.
        for bytes: [UInt8] in [
            [0x22, 0xED, 0xA0, 0x80, 0x22], [0x22, 0xFF, 0x22], [0x22, 0xC0, 0xAF, 0x22], [0x22, 0xF4, 0x90, 0x80, 0x80, 0x22],
        ] {
            XCTAssertThrowsError(try JSONValue(parsing: Data(bytes))) { XCTAssertTrue("\($0)".contains("UTF-8")) }
        }
        XCTAssertEqual(try JSONValue(parsing: #""\ud83d\ude00\u0000""#), .string("😀\0"))
    }

    func testLongNumbersAreRefused() throws {
        for text in [String(repeating: "1", count: 401), "0." + String(repeating: "1", count: 1_000_000), "1e" + String(repeating: "0", count: 500)] {
            assertRefused(text, "characters")
        }
        for text in ["1e309", "-1e309", "1e99999", String(repeating: "9", count: 390)] { assertRefused(text, "range of a double") }
        // `model_max_length` of many tokenizers.
        XCTAssertEqual(try JSONValue(parsing: "1000000000000000019884624838656").doubleValue, 1e30)
        XCTAssertEqual(try JSONValue(parsing: "-9223372036854775808"), .int(.min))
        XCTAssertEqual(try JSONValue(parsing: "1e-99999"), .double(0))
    }

    func testDeepJSONIsRefused() throws {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            for count in [65, 1_000, 300_000] {
                let text = String(repeating: open, count: count) + "1" + String(repeating: close, count: count)
                assertRefused(text, "nested deeper")
                assertRefused(String(repeating: open, count: count))
            }
        }
        let deepest = String(repeating: "{\"a\":", count: 64) + "1" + String(repeating: "}", count: 64)
        XCTAssertEqual(try onSmallStack { try JSONValue(parsing: deepest).dumped() }.utf8.count, deepest.utf8.count + 64)
    }

    func testManyValuesAreNotRead() {
        let text = "[" + String(repeating: "[],", count: 100) + "1]"
        XCTAssertThrowsError(try JSONValue(parsing: text, maxValues: 100)) { XCTAssertTrue($0 is JSONTooManyValues) }
        XCTAssertNoThrow(try JSONValue(parsing: text, maxValues: 101))
    }

    func testTextsForMessagesAreShort() throws {
        let long = try JSONValue(parsing: "[\"" + String(repeating: "é", count: 1_000_000) + "\"]")
        XCTAssertLessThanOrEqual(long.compact.utf8.count, 73)
        XCTAssertNil(long.dumped(JSONStyle(), limit: 1_000))
        XCTAssertEqual(try JSONValue(parsing: "[1]").compact, "[1]")
    }

    func testEntriesThatAreThereTwiceAreFoundInOnePass() throws {
        let schema = JSONSchema(try JSONValue(parsing: #"{"uniqueItems": true}"#))
        func items(_ last: String) throws -> JSONValue { try JSONValue(parsing: "[" + (0..<100_000).map { "\($0)," }.joined() + last + "]") }
        XCTAssertNoThrow(try schema.validate(items("-1")))
        for last in ["99999", "5.0"] { XCTAssertThrowsError(try schema.validate(items(last))) }
        XCTAssertThrowsError(try schema.validate(JSONValue(parsing: #"[{"a": 1, "b": [2]}, 1, {"b": [2.0], "a": 1}]"#)))
        XCTAssertNoThrow(try schema.validate(JSONValue(parsing: #"[{"a": 1}, {"a": 2}, [1], "1", 1, true, null, 0, false, "é", "e\u0301"]"#)))
    }

    // MARK: tokenizer.json

    private func assertTokenizerRefused(_ change: (String) -> String, _ words: String, line: UInt = #line) throws {
        let text = change(try Fixtures.text("tokenizers/llama3.json"))
        XCTAssertThrowsError(try onSmallStack { try Tokenizer(json: Data(text.utf8)) }, words, line: line) { error in
            XCTAssertTrue(error is TextError, "\(error)", line: line)
            XCTAssertTrue("\(error)".contains(words), "\(error)", line: line)
        }
    }

    func testIdsBeyondAnyVocabularyAreRefused() throws {
        for id in ["9223372036854775807", "-1", "16777217", "1.5", "1e300"] {
            let entry = #"{"id":\#(id),"content":"<|x|>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false},"#
            try assertTokenizerRefused({ $0.replacingOccurrences(of: #""added_tokens":["#, with: #""added_tokens":["# + entry) }, "added_tokens")
            try assertTokenizerRefused({ $0.replacingOccurrences(of: #""vocab":{"#, with: #""vocab":{"xx":\#(id),"#) }, "model")
        }
    }

    func testAddedTokensAreLimited() throws {
        func entry(_ id: Int, _ content: String) -> String { #"{"id":\#(id),"content":"\#(content)","special":true},"# }
        let changes = [
            (entry(500, "<x>") + entry(501, "<x>"), "there twice"), (entry(500, String(repeating: "a", count: 1_025)), "1024"),
            ((0..<1_200).map { entry($0 + 500, "\($0)" + String(repeating: "a", count: 1_000)) }.joined(), "bytes of text"),
            (entry(500, ""), "without"),
        ]
        for (entries, words) in changes {
            try assertTokenizerRefused({ $0.replacingOccurrences(of: #""added_tokens":["#, with: #""added_tokens":["# + entries) }, words)
        }
    }

    func testAPatternThatBacktracksEndsInAnError() throws {
        let good = try JSONValue(parsing: Fixtures.data("tokenizers/llama3.json"))
        func tokenizer(_ pattern: String) throws -> Tokenizer {
            let split = JSONValue.object(
                JSONObject([
                    ("type", .string("Split")), ("pattern", .object(JSONObject([("Regex", .string(pattern))]))), ("behavior", .string("Isolated")),
                    ("invert", .bool(false)),
                ]))
            let bytes = try JSONValue(parsing: #"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}"#)
            var object = try XCTUnwrap(good.objectValue)
            object["pre_tokenizer"] = .object(JSONObject([("type", .string("Sequence")), ("pretokenizers", .array([split, bytes]))]))
            return try Tokenizer(json: Data(JSONValue.object(object).dumped().utf8))
        }
        let cases = [
            ("(a+)+b", String(repeating: "a", count: 60)), ("(a|a)*b", String(repeating: "a", count: 60)),
            ("a*a*a*a*a*b", String(repeating: "a", count: 5_000)),
            ("(a|ab)*c", String(repeating: "ab", count: 1_000_000)), ("((a*)*)*b", String(repeating: "a", count: 60)),
        ]
        for (pattern, text) in cases {
            let tokenizer = try tokenizer(pattern)
            XCTAssertThrowsError(try onSmallStack { try tokenizer.encode(text, controlTokens: false) }, pattern) { error in
                XCTAssertTrue("\(error)".contains("takes too long") || "\(error)".contains("gives up"), "\(error)")
            }
        }
        for pattern in ["(", "a{99999999999}", "\\", "[", String(repeating: "(", count: 4_000), String(repeating: "a", count: 5_000)] {
            XCTAssertThrowsError(try onSmallStack { try tokenizer(pattern) }, pattern) { XCTAssertTrue($0 is TextError) }
        }
        // What a person may paste.
        let real = try Tokenizer(json: Fixtures.data("tokenizers/llama3.json"))
        for text in ["a", " ", "1", "\n", "Ab ", "it's ", "ก", "😀", "\r\n \t"] {
            XCTAssertNoThrow(try real.encode(String(repeating: text, count: 100_000), controlTokens: false), text)
        }
    }

    func testStepsOfAPreTokenizerAreLimited() throws {
        let digits = String(repeating: #"{"type":"Digits","individual_digits":true},"#, count: 20)
        try assertTokenizerRefused({ $0.replacingOccurrences(of: #""pretokenizers":["#, with: #""pretokenizers":["# + digits) }, "steps")
    }

    // MARK: bundles

    private func codes(_ folder: URL) throws -> [String] {
        do {
            _ = try onSmallStack { try ContractCheck(accepts: [AppTarget(target: "ios", backend: "coreml")]).open(folder) }
            return []
        } catch let refused as RefusedBundle {
            return refused.findings.map(\.code)
        }
    }

    func testAManifestOfHostileNumbersIsRefused() throws {
        let folder = try Fixtures.namedBundle("good-ios")
        let url = folder.appendingPathComponent(Manifest.fileName)
        let good = try String(contentsOf: url, encoding: .utf8)
        let names = [
            "max_context", "max_prefill", "vocab_size", "max_position_embeddings", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "size_bytes", "bos_token_id",
        ]
        let expression = try NSRegularExpression(pattern: "\"(\(names.joined(separator: "|")))\": ?[0-9]+")
        XCTAssertGreaterThan(expression.numberOfMatches(in: good, range: NSRange(good.startIndex..., in: good)), 8)
        for number in ["9223372036854775807", "0", "-1", "1e300", "9223372036854775808", "0.5", "1e400"] {
            for match in expression.matches(in: good, range: NSRange(good.startIndex..., in: good)) {
                var text = good
                let range = try XCTUnwrap(Range(match.range, in: good))
                let name = good[try XCTUnwrap(Range(match.range(at: 1), in: good))]
                text.replaceSubrange(range, with: "\"\(name)\": \(number)")
                try Data(text.utf8).write(to: url)
                // A larger model than it is harms nobody.
                let isHarmless =
                    number == "9223372036854775807"
                    && ["vocab_size", "max_position_embeddings", "num_attention_heads", "intermediate_size"].contains(String(name))
                if !isHarmless { XCTAssertNotEqual(try codes(folder), [], "\(name) \(number)") }
            }
        }
    }

    func testManyGoldenEntriesAreRefused() throws {
        let folder = try Fixtures.namedBundle("good-ios")
        let url = folder.appendingPathComponent(Manifest.fileName)
        let good = try String(contentsOf: url, encoding: .utf8)
        for name in ["golden_tokens", "golden_chats"] {
            let value = try XCTUnwrap(JSONValue(parsing: good)["text"]?[name]?.arrayValue?.first).dumped()
            let start = try XCTUnwrap(good.range(of: #""\#(name)": ?\["#, options: .regularExpression))
            let text = good.replacingCharacters(in: start, with: "\"\(name)\": [" + String(repeating: value + ",", count: 64))
            try Data(text.utf8).write(to: url)
            XCTAssertEqual(try codes(folder), ["manifest.too_large"], name)
        }
    }

    func testAHostileTemplateIsAFinding() throws {
        let endings = [
            "{{ range(-9223372036854775807, 9223372036854775807) }}", "{{ 'a' * 9223372036854775807 }}", "{{ 'a'.strip(1) }}",
            "{{ (4611686018427387904 * 4.0) | int }}", "{{ 1" + String(repeating: " + 1", count: 20_000) + " }}",
            String(repeating: "{% if 1 %}", count: 5_000),
            "{% for i in range(50000) %}{% for j in range(50000) %}{% endfor %}{% endfor %}",
        ]
        for hostile in endings {
            let folder = try Fixtures.namedBundle("template-in-its-own-file")
            let manifestURL = folder.appendingPathComponent(Manifest.fileName)
            let templateURL = folder.appendingPathComponent("chat_template.jinja")
            let template = try String(contentsOf: templateURL, encoding: .utf8) + hostile
            try Data(template.utf8).write(to: templateURL)
            // The manifest knows the file, as a bundle of the same stranger's would.
            var entry = try XCTUnwrap(JSONValue(parsing: Data(contentsOf: manifestURL)).objectValue)
            let files = try XCTUnwrap(entry["files"]?.arrayValue).map { file -> JSONValue in
                guard file["path"] == .string("chat_template.jinja"), case .object(var object) = file else { return file }
                object["size_bytes"] = .int(template.utf8.count)
                object["sha256"] = .string(sha256(of: Data(template.utf8)))
                return .object(object)
            }
            entry["files"] = .array(files)
            try Data(JSONValue.object(entry).dumped().utf8).write(to: manifestURL)
            let target = try XCTUnwrap(entry["target"]?.stringValue)
            let backend = try XCTUnwrap(entry["backend"]?.stringValue)
            XCTAssertThrowsError(try onSmallStack { try ContractCheck(accepts: [AppTarget(target: target, backend: backend)]).open(folder) }) {
                error in
                let codes = (error as? RefusedBundle)?.findings.map(\.code) ?? []
                XCTAssertTrue(codes.contains("template.unrenderable"), "\(hostile.prefix(60)): \(error)")
            }
        }
    }

    func testDeepFoldersAreWalked() throws {
        let folder = try Fixtures.namedBundle("good-ios")
        // As deep as a path may be.
        var path = folder.path
        while path.utf8.count < 4_000 {
            path += "/d"
            guard mkdir(path, 0o700) == 0 else { break }
        }
        XCTAssertEqual(try codes(folder), ["files.unlisted"])
    }

    func testAConfigOfManyValuesIsRefused() throws {
        let folder = try Fixtures.namedBundle("good-ios")
        let url = folder.appendingPathComponent("config.json")
        try Data(("[" + String(repeating: "0,", count: 500_000) + "0]").utf8).write(to: url)
        XCTAssertThrowsError(try TextAssets(folder: folder)) { XCTAssertTrue("\($0)".contains("values"), "\($0)") }
        try Data(#"{"eos_token_id": 1, "eos_token_id": 2}"#.utf8).write(to: url)
        XCTAssertThrowsError(try TextAssets(folder: folder)) { XCTAssertTrue("\($0)".contains("there twice"), "\($0)") }
    }

    // MARK: answers of a model

    func testHostileAnswersAreNoCalls() throws {
        let answers = [
            "[f(a=" + String(repeating: "[", count: 60_000), "[f(a=" + String(repeating: "{'a':", count: 10_000),
            "[f(a=" + String(repeating: "9", count: 400) + ")]",
            "[f(a=1e999)]", "[f(a=-)]", "[f(a=.)]", "[f(a='\\ud800')]", "[f(a='\\U00110000')]", "[f(a='\\x')]", "[f(",
            #"{"name": "f", "parameters": {"a": 1e999}}"#, #"{"name": "f", "parameters": {"a": 1, "a": 2}}"#,
            #"{"name": "f", "parameters": {"a": "# + String(repeating: "[", count: 60_000), #"{"name": "f", "parameters": {"a": "\ud800"}}"#,
            #"{"name": "f", "parameters": {"a": "# + String(repeating: "9", count: 1_000) + "}}",
        ]
        for answer in answers {
            XCTAssertThrowsError(try onSmallStack { try ToolCall.parse(answer) }, "\(answer.prefix(60))") {
                XCTAssertTrue($0 is ToolCallError, "\($0)")
            }
        }
        XCTAssertEqual(try ToolCall.parse(String(repeating: "[", count: 100_000)), [])
        XCTAssertEqual(try ToolCall.parse(String(repeating: "{", count: 100_000)), [])
    }
}
