import Foundation
import XCTest

@testable import BundleCore

/// `app_fixtures/` at the root of the repository, which Python and Kotlin run too.
enum Fixtures {
    static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../../../app_fixtures").standardizedFileURL

    static func data(_ name: String) throws -> Data {
        try Data(contentsOf: folder.appendingPathComponent(name))
    }

    static func text(_ name: String) throws -> String {
        String(decoding: try data(name), as: UTF8.self)
    }

    static func cases(_ kind: String) throws -> [JSONValue] {
        let index = try JSONValue(parsing: data("index.json"))
        guard index["format"] == .int(1), let cases = index["cases"]?.arrayValue else {
            throw TextError("the index of the fixtures has another format")
        }
        return cases.filter { $0["kind"]?.stringValue == kind }
    }

    /// Run every case of a kind; one that throws does not hide the next.
    static func forEach(_ kind: String, atLeast count: Int, _ body: (JSONValue, String) throws -> Void) throws {
        let cases = try cases(kind)
        XCTAssertGreaterThanOrEqual(cases.count, count, "cases of \(kind)")
        for value in cases {
            let name = try value.string("name")
            do {
                try body(value, name)
            } catch {
                XCTFail("\(kind) \(name): \(error)")
            }
        }
        print("\(cases.count) cases of \(kind)")
    }

    static func temporaryFolder() throws -> URL {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        return url.resolvingSymlinksInPath()
    }

    /// The bundle of a case, built in a folder of its own.
    static func bundle(_ value: JSONValue) throws -> URL {
        let folder = try temporaryFolder()
        let root = folder.appendingPathComponent("bundle")
        try FileManager.default.createDirectory(at: root, withIntermediateDirectories: true)
        for (name, source) in value["files"]?.objectValue?.members ?? [] {
            try copy(source, to: root.appendingPathComponent(name))
        }
        for (name, source) in value["beside"]?.objectValue?.members ?? [] {
            try copy(source, to: folder.appendingPathComponent(name))
        }
        for (name, target) in value["symlinks"]?.objectValue?.members ?? [] {
            let place = root.appendingPathComponent(name).path
            try FileManager.default.createSymbolicLink(atPath: place, withDestinationPath: target.stringValue ?? "")
        }
        for name in value["folders"]?.arrayValue ?? [] {
            let place = root.appendingPathComponent(name.stringValue ?? "")
            try FileManager.default.createDirectory(at: place, withIntermediateDirectories: false)
        }
        for name in value["pipes"]?.arrayValue ?? [] {
            guard mkfifo(root.appendingPathComponent(name.stringValue ?? "").path, 0o600) == 0 else {
                throw TextError("the pipe \(name) cannot be made")
            }
        }
        return root
    }

    private static func copy(_ source: JSONValue, to place: URL) throws {
        try FileManager.default.createDirectory(at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
        try data(source.stringValue ?? "").write(to: place)
    }

    static func namedBundle(_ name: String) throws -> URL {
        guard let value = try cases("bundle").first(where: { $0["name"]?.stringValue == name }) else {
            throw TextError("there is no fixture \(name)")
        }
        return try bundle(value)
    }
}

extension JSONValue {
    func string(_ key: String) throws -> String {
        guard let text = self[key]?.stringValue else { throw TextError("\(key) is no text") }
        return text
    }

    func strings(_ key: String) throws -> [String] {
        guard let values = self[key]?.arrayValue else { throw TextError("\(key) is no list") }
        return values.compactMap(\.stringValue)
    }

    func texts(_ key: String) throws -> [String: String] {
        guard let members = self[key]?.objectValue?.members else { throw TextError("\(key) is no object") }
        return Dictionary(uniqueKeysWithValues: try members.map { ($0.key, try self[key]?.string($0.key) ?? "") })
    }

    func ints(_ key: String) throws -> [Int] {
        guard let values = self[key]?.arrayValue else { throw TextError("\(key) is no list") }
        return values.compactMap(\.intValue)
    }
}

func assertSame(_ found: String, _ expected: String, _ name: String) {
    XCTAssertTrue(sameText(found, expected), "\(name): \(found.debugDescription) is not \(expected.debugDescription)")
}
