import Foundation

/// Tokens that are found in text before it is cut into words: control tokens, and words that are never split.
struct AddedTokens: Sendable {
    struct Token: Sendable {
        let id: Int
        let content: String
        let isSpecial: Bool
    }

    enum Piece: Equatable {
        case text(String)
        case token(Int)
    }

    /// The longest published ones have some 30.
    static let maxTokenBytes = 1024
    /// Of all together; thousands of them have some 100,000.
    private static let maxBytes = 1 << 20

    let tokens: [Token]
    private let matcher: TokenMatcher

    init(_ value: JSONValue?) throws {
        var bytes = 0
        var seen: Set<ExactString> = []
        tokens = try (value?.arrayValue ?? []).map { entry in
            guard let id = entry["id"]?.intValue, let content = entry["content"]?.stringValue, !content.isEmpty,
                let isSpecial = entry["special"]?.boolValue
            else { throw TextError("added_tokens: an entry without id, content or special") }
            let shown = JSONValue.string(content).compact
            guard Tokenizer.ids.contains(id) else {
                throw TextError("added_tokens: \(shown): the id is \(id); at most \(Tokenizer.ids.upperBound) is read")
            }
            guard content.utf8.count <= Self.maxTokenBytes else {
                throw TextError("added_tokens: \(shown): \(content.utf8.count) bytes; at most \(Self.maxTokenBytes) are read")
            }
            bytes += content.utf8.count
            guard bytes <= Self.maxBytes else { throw TextError("added_tokens: more than \(Self.maxBytes) bytes of text") }
            guard seen.insert(ExactString(content)).inserted else { throw TextError("added_tokens: \(shown) is there twice") }
            for key in ["single_word", "lstrip", "rstrip"] where entry[key]?.boolValue == true {
                throw TextError("added_tokens: \(shown): \(key) is not supported")
            }
            return Token(id: id, content: content, isSpecial: isSpecial)
        }
        matcher = TokenMatcher(tokens)
    }

    /// The control tokens: what the model takes for an instruction of the program, so that no message may spell it.
    ///
    /// They are the added tokens that are special, and those whose text occurs in the source of the chat template whatever
    /// their flag says; of the latter, not those that are merely white space or a single character. The counterparts are
    /// `control_tokens` in `llama_edge/text/tokenizer.py` and `controlTokens` in the Android app.
    func controlTokens(template source: String?) -> [Token] {
        let written = source.map { matcher.occurring(in: $0) } ?? []
        return tokens.filter { token in
            let scalars = token.content.unicodeScalars
            let isPlain = scalars.count == 1 || scalars.allSatisfy(\.properties.isWhitespace)
            return token.isSpecial || (written.contains(token.id) && !isPlain)
        }
    }

    /// Cut text at the tokens that are `wanted`, from left to right, the longest at each place.
    func split(_ text: String, where wanted: (Token) -> Bool) -> [Piece] {
        matcher.split(text) { token, _ in wanted(token) }
    }
}

extension TokenMatcher {
    /// `wanted` is told the bytes behind the token.
    func split(_ text: String, where wanted: (AddedTokens.Token, ArraySlice<UInt8>) -> Bool) -> [AddedTokens.Piece] {
        let bytes = Array(text.utf8)
        var pieces: [AddedTokens.Piece] = []
        var start = 0
        var place = 0
        func close() {
            if start < place { pieces.append(.text(String(decoding: bytes[start..<place], as: UTF8.self))) }
        }
        while place < bytes.count {
            let found = longest(in: bytes, at: place) { wanted($0, bytes[(place + $0.content.utf8.count)...]) }
            guard let found else {
                place += 1
                continue
            }
            close()
            pieces.append(.token(found.id))
            place += found.content.utf8.count
            start = place
        }
        close()
        return pieces
    }
}
