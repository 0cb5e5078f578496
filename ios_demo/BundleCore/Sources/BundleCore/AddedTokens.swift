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

    let tokens: [Token]
    private var byFirstByte: [UInt8: [(bytes: [UInt8], token: Token)]] = [:]

    init(_ value: JSONValue?) throws {
        tokens = try (value?.arrayValue ?? []).map { entry in
            guard let id = entry["id"]?.intValue, let content = entry["content"]?.stringValue, !content.isEmpty,
                let isSpecial = entry["special"]?.boolValue
            else { throw TextError("added_tokens: an entry without id, content or special") }
            for key in ["single_word", "lstrip", "rstrip"] where entry[key]?.boolValue == true {
                throw TextError("added_tokens: \(content): \(key) is not supported")
            }
            return Token(id: id, content: content, isSpecial: isSpecial)
        }
        for token in tokens {
            let bytes = Array(token.content.utf8)
            byFirstByte[bytes[0], default: []].append((bytes, token))
        }
        // The longest first, should one begin with another.
        for (first, entries) in byFirstByte { byFirstByte[first] = entries.sorted { $0.bytes.count > $1.bytes.count } }
    }

    /// Cut text at the tokens that are `wanted`.
    func split(_ text: String, where wanted: (Token) -> Bool) -> [Piece] {
        let bytes = Array(text.utf8)
        var pieces: [Piece] = []
        var start = 0
        var place = 0
        func close() {
            if start < place { pieces.append(.text(String(decoding: bytes[start..<place], as: UTF8.self))) }
        }
        while place < bytes.count {
            let found = byFirstByte[bytes[place]]?.first { wanted($0.token) && bytes[place...].starts(with: $0.bytes) }
            guard let found else {
                place += 1
                continue
            }
            close()
            pieces.append(.token(found.token.id))
            place += found.bytes.count
            start = place
        }
        close()
        return pieces
    }
}
