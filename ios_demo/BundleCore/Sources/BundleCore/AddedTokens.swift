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
    /// They are the added tokens that are special; and of the others, but for white space, those that begin or end a text, which
    /// a template may write as `{{ eos_token }}`, and those that occur in one of the template's own `literals`. The counterparts
    /// are `control_tokens` in `llama_edge/text/tokenizer.py` and `controlTokens` in the Android app.
    func controlTokens(literals: Set<ExactString>, beginsOrEnds: Set<Int>) -> [Token] {
        let acting = literals.reduce(into: beginsOrEnds) { $0.formUnion(matcher.occurring(in: $1.value)) }
        return tokens.filter { token in
            token.isSpecial || (acting.contains(token.id) && !token.content.unicodeScalars.allSatisfy(pythonSpaces.contains))
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
