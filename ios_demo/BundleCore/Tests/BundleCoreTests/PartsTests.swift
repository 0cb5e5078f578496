import Foundation
import XCTest

@testable import BundleCore

final class PartsTests: XCTestCase {
    func testSHA256OfTheStandardsOwnExamples() throws {
        let vectors = [
            "": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            String(repeating: "a", count: 1_000_000): "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
        ]
        for (text, hash) in vectors { XCTAssertEqual(sha256(of: Data(text.utf8)), hash, "\(text.prefix(60))") }
        let file = try Fixtures.temporaryFolder().appendingPathComponent("a")
        try Data(repeating: 7, count: 200).write(to: file)
        XCTAssertEqual(try sha256(ofFile: file, pieceSize: 63), sha256(of: Data(repeating: 7, count: 200)))
    }

    func testJSONKeepsOrderAndTellsTypesApart() throws {
        let value = try JSONValue(parsing: #" {"b": [1, 1.0, -2e3, true, null], "a": "\u00fc\ud83d\ude00\n\"", "b2": {}} "#)
        XCTAssertEqual(value.dumped(), #"{"b": [1, 1.0, -2000.0, true, null], "a": "ü😀\n\"", "b2": {}}"#)
        XCTAssertEqual(
            try JSONValue(parsing: #"{"b":[1,{}],"a":[]}"#).dumped(JSONStyle(indent: 1, sortKeys: true)),
            "{\n \"a\": [],\n \"b\": [\n  1,\n  {}\n ]\n}")
        XCTAssertNotEqual(JSONValue.bool(true), .int(1))
        XCTAssertEqual(JSONValue.int(1), .double(1))
        // The same to Swift's own ==, and two keys to JSON.
        XCTAssertEqual(try JSONValue(parsing: "{\"\u{e9}\": 1, \"e\u{301}\": 2}").objectValue?.count, 2)
    }

    func testASchemaWithAnUnknownKeywordRefusesEverything() throws {
        let schema = JSONSchema(try JSONValue(parsing: #"{"type": "object", "dependentRequired": {}}"#))
        XCTAssertThrowsError(try schema.validate(.object(JSONObject()))) { XCTAssertTrue("\($0)".contains("dependentRequired")) }
    }

    func testEveryCodeOfTheAppHasItsWording() throws {
        let sources = Fixtures.folder.deletingLastPathComponent().appendingPathComponent("ios_demo")
        let expression = try NSRegularExpression(pattern: #"Finding\(\s*"([a-z_.]+)""#)
        var used: Set<String> = []
        for name in Entries(below: sources).files where name.hasSuffix(".swift") && name.contains("Sources/") || name.hasPrefix("App/") {
            guard name.hasSuffix(".swift") else { continue }
            let text = try String(contentsOf: sources.appendingPathComponent(name), encoding: .utf8)
            for match in expression.matches(in: text, range: NSRange(text.startIndex..., in: text)) {
                if let range = Range(match.range(at: 1), in: text) { used.insert(String(text[range])) }
            }
        }
        XCTAssertGreaterThan(used.count, 20)
        XCTAssertEqual(used.filter { FindingCatalog.shared[$0] == nil }, [])
        XCTAssertTrue(FindingCatalog.shared.codes.allSatisfy { FindingCatalog.shared[$0]?.remedy.hasSuffix(".") ?? false })
    }

    func testTokenizersOfAnotherKindAreRefused() throws {
        let good = try Fixtures.text("tokenizers/llama3.json")
        let changes = [
            (#""normalizer":null"#, #""normalizer":{"type":"NFKC"}"#), (#""type":"BPE""#, #""type":"Unigram""#),
            (#""type":"Split""#, #""type":"Metaspace""#), (#""lstrip":false"#, #""lstrip":true"#),
            (#""byte_fallback":false"#, #""byte_fallback":true"#),
        ]
        for (old, new) in changes {
            XCTAssertTrue(good.contains(old), old)
            XCTAssertThrowsError(try Tokenizer(json: Data(good.replacingOccurrences(of: old, with: new).utf8)), new) {
                XCTAssertTrue($0 is TextError, new)
            }
        }
    }

    func testWhatATemplateMayNotDoIsNamed() throws {
        let cases = [
            ("{% macro f() %}{% endmacro %}", "macro"), ("{{ 'a' | urlencode }}", "urlencode"), ("{{ 'a' is divisibleby 2 }}", "divisibleby"),
            ("{{ 'a'.format(1) }}", "format"), ("{{ [1] }}", "tojson"), ("{{ nothing.a }}", "not defined"), ("{{ 1 + 'a' }}", "different kinds"),
            ("{{ 'a' * 100000000 }}", "4194304"), ("{{ open('x') }}", "open"), ("{% include 'x' %}", "include"),
        ]
        for (source, word) in cases {
            XCTAssertThrowsError(try ChatTemplate(source).render([]), source) { XCTAssertTrue("\($0)".contains(word), "\(source): \($0)") }
        }
    }

    func testASignature() throws {
        struct Fake: SignatureVerifier {
            let holds: Bool
            func verifies(_ signature: Data, of message: Data, publicKey: Data) throws -> Bool { holds }
        }
        let folder = try Fixtures.namedBundle("good-ios")
        let key = Data(repeating: 5, count: 32)
        func code(_ key: Data?, holds: Bool = true) throws -> String? {
            let finding = try BundleSignature.check(folder: folder, publicKey: key, verifier: Fake(holds: holds))
            return finding?.code
        }
        func write(_ keyID: String, _ signature: Data) throws {
            let text = #"{"algorithm":"ed25519","format_version":1,"key_id":"\#(keyID)","signature":"\#(signature.base64EncodedString())"}"#
            try Data(text.utf8).write(to: folder.appendingPathComponent(BundleSignature.fileName))
        }
        XCTAssertEqual(try code(key), "signature.missing")
        XCTAssertNil(try code(nil))
        try write(sha256(of: key), Data(count: 63))
        XCTAssertEqual(try code(nil), "signature.unreadable")
        try write("another", Data(count: 64))
        XCTAssertEqual(try code(key), "signature.unknown_key")
        try write(sha256(of: key), Data(count: 64))
        XCTAssertEqual(try code(key, holds: false), "signature.invalid")
        XCTAssertNil(try code(key))
        XCTAssertNoThrow(try ContractCheck(accepts: [AppTarget(target: "ios", backend: "coreml")]).open(folder), "a signature is no stray file")
    }

    func testEd25519OfTheStandard() throws {
        // RFC 8032, section 7.1, test 1: the empty message.
        let key = try XCTUnwrap(Data(base64Encoded: "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="))
        let signature = try XCTUnwrap(
            Data(base64Encoded: "5VZDAMNgrHKQhuLMgG6CioSHfx645dl02HPgZSJJAVVfuIIVkKM7rMYeOXAc+bRr0lv18FlbviRlUUFDjnoQCw=="))
        let verifier = SystemSignatureVerifier()
        XCTAssertTrue(try verifier.verifies(signature, of: Data(), publicKey: key))
        XCTAssertFalse(try verifier.verifies(signature, of: Data([0]), publicKey: key))
    }

    func testAPublicKeyInPEM() {
        let key = Data(repeating: 9, count: 32)
        let prefix = Data([0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00])
        let pem = "-----BEGIN PUBLIC KEY-----\n\((prefix + key).base64EncodedString())\n-----END PUBLIC KEY-----\n"
        XCTAssertEqual(BundleSignature.publicKey(pem: pem), key)
        XCTAssertNil(BundleSignature.publicKey(pem: pem.replacingOccurrences(of: "MCow", with: "MCox")))
    }

    /// `IOS_CHECK_BUNDLE=bundles/NAME make ios-check` holds a bundle of your own against the core.
    func testABundleFromOutside() throws {
        let name = ProcessInfo.processInfo.environment["IOS_CHECK_BUNDLE"] ?? ""
        try XCTSkipIf(name.isEmpty, "IOS_CHECK_BUNDLE names no bundle")
        let targets = [("ios", "coreml"), ("ios", "executorch"), ("android", "executorch"), ("onnx", "onnx")]
        let check = ContractCheck(accepts: targets.map { AppTarget(target: $0, backend: $1) })
        do {
            let bundle = try check.open(Fixtures.folder.deletingLastPathComponent().appendingPathComponent(name))
            print("\(name): \(bundle.manifest.text.goldenTokens.count) golden texts, \(bundle.manifest.text.goldenChats.count) dialogs")
        } catch let refused as RefusedBundle {
            for finding in refused.findings { XCTFail("\(finding.code) at \(finding.location): \(finding.expected); \(finding.found)") }
        }
    }
}
