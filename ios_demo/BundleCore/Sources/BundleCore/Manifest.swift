import Foundation

/// `manifest.json`, as far as an app needs it; the schema has been held against all of it.
public struct Manifest: Codable, Equatable, Sendable {
    public static let fileName = "manifest.json"
    /// The newest format that this reader knows.
    public static let version = 1
    /// A 3B manifest with a Llama 3 template has well under one MiB.
    public static let maxBytes = 16 << 20
    /// Items of all lists and members of all objects; a 3B model's manifest has some 10,000.
    static let maxValues = 200_000

    public struct Model: Codable, Equatable, Sendable {
        public let source: String
        public let config: Config
    }

    public struct Config: Codable, Equatable, Sendable {
        public let vocabSize: Int
        public let maxPositionEmbeddings: Int
        public let numHiddenLayers: Int
        public let numAttentionHeads: Int
        public let numKeyValueHeads: Int
        public let headDim: Int
        public let intermediateSize: Int
        public let downProjRotation: [Int]?
    }

    public struct Recipe: Codable, Equatable, Sendable {
        public let name: String
        public let summary: String
    }

    public struct FileEntry: Codable, Equatable, Sendable {
        public let path: String
        public let sizeBytes: Int
        public let sha256: String
    }

    public struct Artifact: Codable, Equatable, Sendable {
        public let interface: Interface
        public let kvCache: String
        public let maxContext: Int
        public let maxPrefill: Int
    }

    public struct Interface: Codable, Equatable, Sendable {
        public let inputs: [Tensor]
        public let outputs: [Tensor]
    }

    public struct Tensor: Codable, Equatable, Sendable {
        public let name: String
        public let dtype: String
    }

    public struct GoldenTokens: Codable, Equatable, Sendable {
        public let language: String
        public let text: String
        public let tokens: [Int]
    }

    public struct GoldenChat: Codable, Equatable, Sendable {
        public let messages: [[String: String]]
        public let text: String
        public let tokens: [Int]
    }

    public struct Text: Codable, Equatable, Sendable {
        public let tokenizerSha256: String
        public let bosTokenId: Int?
        public let addBos: Bool
        public let eosTokenIds: [Int]
        public let goldenTokens: [GoldenTokens]
        public let chatTemplate: String?
        public let goldenChats: [GoldenChat]
        /// The template wants content as a list of parts; absent: as a string.
        public let contentParts: Bool?
    }

    public let formatVersion: Int
    public let verdict: String
    public let model: Model
    public let recipe: Recipe
    public let target: String
    public let backend: String
    public let files: [FileEntry]
    public let artifact: Artifact
    public let text: Text
    /// Sampling defaults of the model: numbers and flags by name.
    public private(set) var generationDefaults: [String: JSONValue] = [:]

    enum CodingKeys: String, CodingKey {
        case formatVersion, verdict, model, recipe, target, backend, files, artifact, text
    }
}

extension Manifest {
    /// Read a bundle's manifest and hold it against the schema.
    ///
    /// Throws a `Finding`: there is none, it is too large, no JSON, of a newer format, or breaks the schema.
    public static func read(from folder: URL) throws -> Manifest {
        let url = folder.appendingPathComponent(fileName)
        guard isRegularFile(url), let size = fileSize(url) else {
            throw Finding("manifest.missing", at: fileName, expected: fileName, found: "no such file")
        }
        guard size <= maxBytes else {
            throw Finding("manifest.too_large", at: fileName, expected: "at most \(maxBytes) bytes", found: "\(size) bytes")
        }
        return try Manifest(json: Data(contentsOf: url))
    }

    public init(json data: Data) throws {
        let value: JSONValue
        do {
            value = try JSONValue(parsing: data, maxValues: Self.maxValues)
        } catch let error as JSONError {
            throw Finding("manifest.not_json", at: Self.fileName, expected: "a JSON object", found: "\(error)")
        } catch is JSONTooManyValues {
            throw Finding("manifest.too_large", at: Self.fileName, expected: "at most \(Self.maxValues) values", found: "more")
        }
        guard value.objectValue != nil else {
            throw Finding("manifest.not_json", at: Self.fileName, expected: "a JSON object", found: value.typeName)
        }
        if let version = value["format_version"]?.intValue, version > Self.version {
            throw Finding(
                "manifest.version", at: "\(Self.fileName): format_version", expected: "at most \(Self.version)",
                found: "\(version)")
        }
        if let path = Self.strangePath(value) {
            throw Finding("files.name", at: "\(Self.fileName): files", expected: "letters, digits and ._-/ alone", found: path)
        }
        do {
            try JSONSchema(JSONValue(parsing: ownResource("manifest.schema"))).validate(value)
        } catch let violation as JSONSchema.Violation {
            throw Finding("manifest.schema", at: "\(Self.fileName): \(violation.path)", expected: "the schema", found: violation.message)
        }
        self = try Self.decoded(data)
        for (name, number) in value["text"]?["generation_defaults"]?.objectValue?.members ?? [] {
            generationDefaults[name] = number
        }
        try checkConfig()
    }

    /// The first path with a character that means something to a shell or a screen, which is escaped.
    private static func strangePath(_ value: JSONValue) -> String? {
        let paths = (value["files"]?.arrayValue ?? []).compactMap { $0["path"]?.stringValue }
        let path = paths.first { !$0.utf8.allSatisfy(isPlain) }
        return path?.unicodeScalars.prefix(200).map { $0.escaped(asASCII: true) }.joined()
    }

    private static func isPlain(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"): true
        default: "._-/".utf8.contains(byte)
        }
    }

    private static func decoded(_ data: Data) throws -> Manifest {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        do {
            return try decoder.decode(Manifest.self, from: data)
        } catch {
            // The schema holds, so only a number beyond 64 bits comes here.
            throw Finding("manifest.schema", at: fileName, expected: "the schema", found: "\(error)".prefix(200).description)
        }
    }

    /// What the schema cannot say: fields that contradict each other.
    private func checkConfig() throws {
        let config = model.config
        let orders = config.downProjRotation
        let breach: String? =
            if config.numAttentionHeads % config.numKeyValueHeads != 0 {
                "num_attention_heads \(config.numAttentionHeads) is no multiple of num_key_value_heads \(config.numKeyValueHeads)"
            } else if config.headDim % 2 != 0 {
                "head_dim \(config.headDim) is odd"
            } else if let orders, !Self.rotates(config.intermediateSize, by: orders) {
                "down_proj_rotation \(orders) does not fit intermediate_size \(config.intermediateSize)"
            } else {
                nil
            }
        if let breach {
            throw Finding("manifest.schema", at: "\(Self.fileName): model.config", expected: "a config without contradiction", found: breach)
        }
    }

    /// Two orders rotate the whole width together, one order each run of so many neighbours.
    private static func rotates(_ width: Int, by orders: [Int]) -> Bool {
        orders.count == 1 ? width % orders[0] == 0 : product(orders) == width
    }

    /// nil beyond 64 bits
    private static func product(_ factors: [Int]) -> Int? {
        factors.reduce(1) { product, factor in
            guard let (value, isOver) = product?.multipliedReportingOverflow(by: factor), !isOver else { return nil }
            return value
        }
    }
}
