import Foundation

/// One breach of the contract, in the words that `llama-edge doctor` uses.
public struct Finding: Error, Equatable, Sendable, Identifiable {
    public let code: String
    public let location: String
    public let expected: String
    public let found: String

    public init(_ code: String, at location: String, expected: String, found: String) {
        self.code = code
        self.location = location
        self.expected = expected
        self.found = found
    }

    public var id: String { "\(code) \(location) \(found)" }
    /// What is wrong, in one sentence.
    public var what: String { FindingCatalog.shared[code]?.what ?? code }
    /// What to do about it.
    public var remedy: String { FindingCatalog.shared[code]?.remedy ?? "" }
}

/// `finding_codes.json`: one code and one wording for Python and both apps.
public struct FindingCatalog: Sendable {
    public struct Entry: Sendable, Decodable {
        public let what: String
        public let remedy: String
    }

    public static let shared = FindingCatalog()
    private let entries: [String: Entry]

    public var codes: [String] { entries.keys.sorted() }

    private init() {
        // The file is a part of this package: without it nothing here could be trusted.
        guard let read = try? JSONDecoder().decode([String: Entry].self, from: ownResource("finding_codes")) else {
            preconditionFailure("finding_codes.json of the package is damaged")
        }
        entries = read
    }

    public subscript(code: String) -> Entry? { entries[code] }
}

/// A JSON file that this package carries.
func ownResource(_ name: String) -> Data {
    guard let url = Foundation.Bundle.module.url(forResource: name, withExtension: "json"), let data = try? Data(contentsOf: url)
    else { preconditionFailure("\(name).json is not in the package") }
    return data
}
