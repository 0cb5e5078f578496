import Foundation

/// A byte-level BPE tokenizer out of `tokenizer.json`: what Python's `Tokenizer` makes of a text, it makes too.
public struct Tokenizer: Sendable {
    /// Llama 3's own tokenizer.json has 17 MB.
    public static let maxBytes = 128 << 20
    public static let fileName = "tokenizer.json"
    /// No vocabulary has a tenth of these.
    static let ids = 0...(1 << 24)

    private let bpe: ByteLevelBPE
    private let added: AddedTokens
    private let preTokenizer: PreTokenizer
    private let bytesOfID: [Int: [UInt8]]
    private let specialIDs: Set<Int>
    /// One more than the highest id.
    public let vocabularySize: Int
    /// What the file's own post-processor would put in front of a text.
    let firstAddedID: Int?

    public init(json: Data) throws {
        guard json.count <= Self.maxBytes else { throw TextError("tokenizer.json has \(json.count) bytes; \(Self.maxBytes) are read") }
        let value: JSONValue
        do {
            value = try JSONValue(parsing: json)
        } catch let error as JSONError {
            throw TextError("tokenizer.json is no JSON: \(error)")
        } catch let error as JSONTooManyValues {
            throw TextError("tokenizer.json has more than \(error.limit) values")
        }
        guard value["normalizer"]?.isNull ?? true else { throw TextError("normalizer: none is supported") }
        guard let model = value["model"], let pre = value["pre_tokenizer"] else {
            throw TextError("tokenizer.json has no model or no pre_tokenizer")
        }
        bpe = try ByteLevelBPE(model)
        added = try AddedTokens(value["added_tokens"])
        preTokenizer = try PreTokenizer(pre)
        guard preTokenizer.isByteLevel, value["decoder"]?["type"]?.stringValue == "ByteLevel" else {
            throw TextError("only byte-level tokenizers are supported")
        }
        var bytesOfID = Dictionary(bpe.ids.map { ($1, $0) }, uniquingKeysWith: { first, _ in first })
        for token in added.tokens { bytesOfID[token.id] = ByteLetters.bytes(of: token.content) ?? Array(token.content.utf8) }
        self.bytesOfID = bytesOfID
        specialIDs = Set(added.tokens.filter(\.isSpecial).map(\.id))
        vocabularySize = (bytesOfID.keys.max() ?? -1) + 1
        firstAddedID = Self.firstAdded(value["post_processor"], added)
    }

    private static func firstAdded(_ processor: JSONValue?, _ added: AddedTokens) -> Int? {
        switch processor?["type"]?.stringValue {
        case "Sequence":
            return processor?["processors"]?.arrayValue?.lazy.compactMap { firstAdded($0, added) }.first
        case "TemplateProcessing":
            let name = processor?["single"]?.arrayValue?.first?["SpecialToken"]?["id"]?.stringValue
            return name.flatMap { name in added.tokens.first { sameText($0.content, name) }?.id }
        default: return nil
        }
    }

    /// Ids of text, without BOS.
    ///
    /// With `controlTokens`, those that the text spells count as such (a rendered template); without, special ones stay text.
    /// Throws `TextError` where the file's own pattern takes too long.
    public func encode(_ text: String, controlTokens: Bool) throws -> [Int] {
        try encode(text) { !controlTokens && specialIDs.contains($0) }
    }

    /// Ids of text, without BOS; tokens of which `isText` is true stay text.
    func encode(_ text: String, where isText: (Int) -> Bool) throws -> [Int] {
        let patience = PreTokenizer.Patience(for: text)
        return try added.split(text) { !isText($0.id) }.flatMap { piece in
            switch piece {
            case .token(let id): [id]
            case .text(let text): try preTokenizer.pieces(of: text, patience).flatMap { bpe.encode($0, forbidden: isText) }
            }
        }
    }

    var addedTokens: [AddedTokens.Token] { added.tokens }

    func controlTokens(literals: Set<ExactString>, beginsOrEnds: Set<Int>) -> [AddedTokens.Token] {
        added.controlTokens(literals: literals, beginsOrEnds: beginsOrEnds)
    }

    /// The bytes that a token stands for; none for control tokens.
    public func bytes(of id: Int) -> [UInt8] {
        specialIDs.contains(id) ? [] : bytesOfID[id] ?? []
    }

    public func decode(_ ids: [Int], skipSpecialTokens: Bool = true) -> String {
        let bytes = ids.flatMap { skipSpecialTokens ? self.bytes(of: $0) : bytesOfID[$0] ?? [] }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// The id of a token as it is written in the vocabulary.
    public func id(of token: String) -> Int? {
        if let found = added.tokens.first(where: { sameText($0.content, token) }) { return found.id }
        return ByteLetters.bytes(of: token).flatMap { bpe.ids[$0] }
    }

    /// The text of a token as it is written in the vocabulary.
    public func token(of id: Int) -> String? {
        if let found = added.tokens.first(where: { $0.id == id }) { return found.content }
        return bytesOfID[id].map { bytes in
            String(String.UnicodeScalarView(bytes.map { ByteLetters.letters[Int($0)] }))
        }
    }

    public func isSpecial(_ id: Int) -> Bool { specialIDs.contains(id) }
}
