import Foundation
import XCTest

@testable import BundleCore

/// Whatever a template does to what a person typed, it makes no control token, and decides as if nothing had been marked.
final class TypedTextTests: XCTestCase {
    /// Letters for the bytes of UTF-8, then added tokens that are ordinary by their flag.
    private static func tokenizer(_ added: [String]) throws -> Tokenizer {
        let letters = ByteLetters.letters.enumerated().map { (String($1), JSONValue.int($0)) }
        let tokens = added.enumerated().map { place, content in
            JSONValue.object(JSONObject([("id", .int(300 + place)), ("content", .string(content)), ("special", .bool(false))]))
        }
        let byteLevel = try JSONValue(parsing: #"{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}"#)
        let model = JSONObject([("type", .string("BPE")), ("vocab", .object(JSONObject(letters))), ("merges", .array([]))])
        let file = JSONObject([
            ("model", .object(model)), ("added_tokens", .array(tokens)), ("pre_tokenizer", byteLevel), ("decoder", byteLevel),
        ])
        return try Tokenizer(json: Data(JSONValue.object(file).dumped().utf8))
    }

    private static func message(_ content: String, role: String = "user") -> JSONValue {
        .object(JSONObject([("role", .string(role)), ("content", .string(content))]))
    }

    private static let operations = [
        "c", "c.split(',')[-1]", "c.split(',') | join('')", "c.split() | join('')", "c.split(',', 1)[0]", "c.replace(',', '')",
        "c | replace(',', '')", "c.replace(',', '', 1)", "c[1:]", "c[:-1]", "c[2:5]", "c[0]", "c[-1]", "c | first", "c | last", "c | trim",
        "c.strip('x,')", "c.lstrip('x')", "c.rstrip('y')", "c | list | join('')", "(c | first) ~ c[1:]", "c.lower()", "c | upper",
        "c | capitalize", "c | string | upper | lower", "[c] | join", "c ~ ''", "c + c", "c * 2", "c | tojson", "m | tojson",
        "m | tojson(sort_keys=true, indent=1)", "{c: c} | tojson", "{c: 1}[c]", "{c: 1}.get(c)", "c in {c: 1}", "c in [c]", "c == c ~ ''",
        "c | length", "c < 'k'", "c.startswith('x<|')", "c.endswith('y')", "',' in c", "'|im_' in c", "c.split('<|') | length", "c | int",
        "m.items() | tojson", "m.keys() | tojson", "m['content']", "m.get('content')", "c is string", "c | default('d', true)", "[c, 'a'] == [c, 'a']",
    ]
    private static let texts = [
        "x<|im_end|>,<|im_end|>y", ",<|im_end|>", "<|im_end|>", "<|IM_END|>", "x<|im_,end|>", "<,|,im_end|>x", " <|im_end|>\n", "", "  ",
        "ßTOP,\u{FB05}OP \u{17F}TOP", "STOP stop Stop", "\u{212A}> k> K>", "éÉ,é", "12", " 12 ", "\u{3A3}\u{3C2} \u{130}\u{1F52}k>", "字字,字a",
        "\u{1F44D}<|im_end|>\u{1F44D}",
    ]

    func testNoOperationMakesAControlTokenAndEachSeesWhatWasTyped() throws {
        // "content" and "12" are names and numbers of the template; "k>" and "STOP" another case's.
        let tokens = ["<|im_end|>", "STOP", "k>", "é", "字", "content", "12", " ", "x", "S", "SS"]
        let tokenizer = try Self.tokenizer(tokens)
        let all = Set(tokens.compactMap { tokenizer.id(of: $0) })
        for operation in Self.operations {
            let template = try ChatTemplate("{% set m = messages[0] %}{% set c = m.content %}{{ \(operation) }}")
            let dialog = DialogEncoder(tokenizer: tokenizer, template: template, beginsOrEnds: all)
            // White space alone is none, and what the template itself writes is the template's.
            let own = Set(dialog.template.literals.map(\.value))
            for text in Self.texts {
                let plain: String
                do {
                    plain = try dialog.render([Self.message(text)])
                } catch {
                    XCTAssertThrowsError(try dialog.encode([Self.message(text)]), "\(operation) of \(text)")
                    continue
                }
                let ids = try dialog.encode([Self.message(text)])
                assertSame(tokenizer.decode(ids, skipSpecialTokens: false), plain, "\(operation) of \(text)")
                let spelled = ids.compactMap { all.contains($0) ? tokenizer.token(of: $0) : nil }
                let isNumber = Int(plain) != nil
                XCTAssertEqual(
                    spelled.filter { $0 != " " && !own.contains($0) && !(isNumber && $0 == "12") }, [], "\(operation) of \(text.debugDescription)")
            }
        }
    }

    func testWhatTheTemplateWritesIsAControlToken() throws {
        let tokenizer = try Self.tokenizer(["<|im_start|>", "<|im_end|>", "</think>"])
        let source = """
            {% for m in messages %}{{ '<|im_' ~ m.role ~ '|>' }}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}\
            {% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}{{ '<|im_start|>' if add_generation_prompt }}
            """
        let dialog = DialogEncoder(tokenizer: tokenizer, template: try ChatTemplate(source), beginsOrEnds: [])
        let ids = try dialog.encode([Self.message("a</think>b<|im_end|>", role: "start"), Self.message("end|>", role: "<|im_")])
        XCTAssertEqual(ids.filter { $0 >= 300 }.compactMap { tokenizer.token(of: $0) }, ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|im_start|>"])
        assertSame(
            tokenizer.decode(ids, skipSpecialTokens: false), "<|im_start|>b<|im_end|><|im_end|><|im_<|im_|>end|><|im_end|><|im_start|>", "thoughts")
    }

    func testAnErrorShowsNoMark() throws {
        let tokenizer = try Self.tokenizer(["<x>"])
        let dialog = DialogEncoder(
            tokenizer: tokenizer, template: try ChatTemplate("<x>{{ raise_exception(messages[0].content) }}"), beginsOrEnds: [])
        XCTAssertThrowsError(try dialog.encode([Self.message("<x>")])) { assertSame("\($0)", "the chat template refuses the dialog: <x>", "error") }
    }

    func testADialogInWhichNobodySpellsOneIsEncodedAsAWhole() throws {
        // The letters in front of "<e>" belong to an ordinary added token, which is longer.
        let tokenizer = try Self.tokenizer(["<e>", "a<"])
        let dialog = DialogEncoder(tokenizer: tokenizer, template: try ChatTemplate("{{ messages[0].content }}a<e>"), beginsOrEnds: [])
        for content in ["b", "<", "b<e"] {
            XCTAssertEqual(try dialog.encode([Self.message(content)]), try tokenizer.encode(content + "a<e>", controlTokens: true), content)
        }
    }

    func testATemplateGetsTheNamedTokensAndNoOthers() throws {
        let source = "{{ pad_token }}|{{ sep_token is defined }}|{{ eos_token }}|{{ documents is none }}|{{ messages | length }}"
        assertSame(try ChatTemplate(source, specialTokens: ["pad_token": "<p>", "messages": "x"]).render([]), "<p>|False||True|0", "names")
        func names(_ config: String, _ specialTokens: String = "{}") throws -> [String: String] {
            try NamedTokens.read(
                config: XCTUnwrap(JSONValue(parsing: config).objectValue), specialTokens: XCTUnwrap(JSONValue(parsing: specialTokens).objectValue))
        }
        let config = """
            {"pad_token": {"content": "<p>"}, "image_token": "<i>", "add_bos_token": true, "eos_token": null, "model_token": 1, "unk_token": "",
            "extra_special_tokens": {"a": "<a>"}}
            """
        XCTAssertEqual(try names(config), ["pad_token": "<p>", "image_token": "<i>", "a": "<a>"])
        XCTAssertEqual(try names(#"{"eos_token": "</s>"}"#, #"{"eos_token": "<e>", "bos_token": "<s>"}"#), ["eos_token": "<e>", "bos_token": "<s>"])
        XCTAssertEqual(try names(#"{"eos_token": "</s>", "added_tokens_decoder": {}}"#, #"{"eos_token": "<e>"}"#), ["eos_token": "</s>"])
        for wrong in [#"{"bos_token": 1}"#, #"{"bos_token": {"content": 1}}"#, #"{"extra_special_tokens": {"a": []}}"#, #"{"bos_token": {}}"#] {
            XCTAssertThrowsError(try names(wrong), wrong) { XCTAssertTrue("\($0)".contains("is no token"), wrong) }
        }
    }

    func testContentIsGivenInPartsWhereTheTemplateWantsThem() throws {
        let tokenizer = try Self.tokenizer(["<e>"])
        let source = "{% for m in messages %}{% for part in m.content %}{{ part.type }}:{{ part.text }}{% endfor %}{% endfor %}<e>"
        let dialog = DialogEncoder(tokenizer: tokenizer, template: try ChatTemplate(source), beginsOrEnds: [], contentParts: true)
        assertSame(try dialog.render([Self.message("a<e>")]), "text:a<e><e>", "parts")
        XCTAssertEqual(try dialog.encode([Self.message("a<e>")]).filter { $0 >= 300 }.count, 1)
    }

    func testWhichTokensEndATurn() throws {
        let tokenizer = try Self.tokenizer(["<e>", "<e>>", "<|im_end|>", "<|endoftext|>", "</s>"])
        func after(_ source: String) throws -> String? {
            let dialog = DialogEncoder(tokenizer: tokenizer, template: try ChatTemplate(source), beginsOrEnds: [])
            return EndTokens.afterAnswer(dialog).flatMap { tokenizer.token(of: $0) }
        }
        XCTAssertEqual(try after("{% for m in messages %}{{ m.content }} <e>> {% endfor %}"), "<e>>")
        XCTAssertNil(try after("{% for m in messages %}{{ m.content }} and so on{% endfor %}"))
        XCTAssertNil(try after("<e>"))
        XCTAssertNil(try after("{{ raise_exception('no') }}"))
        func named(_ generation: [Int], _ model: [Int], _ main: Int?) -> [Int] {
            EndTokens.named(generation: generation, model: model, main: main, tokenizer)
        }
        XCTAssertEqual(named([], [2], 300), [2, 300])
        XCTAssertEqual(named([301], [2], nil), [301])
        XCTAssertEqual(named([301], [2], 300), [301], "an ordinary token does not count beside the list")
        // An ordinary token ends a document never, and a turn where the template mentions it.
        XCTAssertEqual(EndTokens.implied(tokenizer, nil, named: [1]), [1])
        XCTAssertEqual(EndTokens.implied(tokenizer, "a<|im_end|>b", named: [1]), [1, 302])
        let ends: Set = [302, 304]
        XCTAssertEqual(EndTokens.main(tokenizer, "{{ eos_token }}<|im_end|>", named: "<e>", ends: ends), "<e>")
        XCTAssertEqual(EndTokens.main(tokenizer, "<|im_end|>", named: "</s>", ends: ends), "<|im_end|>")
        XCTAssertEqual(EndTokens.main(tokenizer, "x", named: "</s>", ends: ends), "</s>")
        XCTAssertEqual(EndTokens.main(tokenizer, "x", named: "<e>", ends: ends), "<|im_end|>")
    }
}
