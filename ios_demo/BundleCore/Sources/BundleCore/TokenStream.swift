import Foundation

/// Text of tokens as they come: whole characters only, every space kept. All pieces and `flush` together are the whole text.
public struct TokenStream: Sendable {
    private let tokenizer: Tokenizer
    private var utf8 = UTF8Stream()

    public init(_ tokenizer: Tokenizer) {
        self.tokenizer = tokenizer
    }

    /// The text that `token` completes; empty inside a character.
    public mutating func push(_ token: Int) -> String {
        utf8.push(tokenizer.bytes(of: token))
    }

    /// What is left at the end: the U+FFFD of a character that never got complete.
    public mutating func flush() -> String {
        utf8.flush()
    }
}

/// Bytes of UTF-8 that come in any pieces; what is not UTF-8 becomes U+FFFD, as Unicode recommends (one for each maximal part).
public struct UTF8Stream: Sendable {
    private var pending: [UInt8] = []

    public init() {}

    /// The text that is complete with these bytes; the beginning of a character waits for the rest.
    public mutating func push(_ bytes: [UInt8]) -> String {
        pending += bytes
        let held = Self.unfinished(pending)
        defer { pending.removeFirst(pending.count - held) }
        return String(decoding: pending.dropLast(held), as: UTF8.self)
    }

    public mutating func flush() -> String {
        defer { pending = [] }
        return String(decoding: pending, as: UTF8.self)
    }

    /// How many bytes at the end begin a character that more bytes could complete.
    private static func unfinished(_ bytes: [UInt8]) -> Int {
        for count in stride(from: min(3, bytes.count), to: 0, by: -1) {
            let tail = bytes.suffix(count)
            guard let lead = tail.first, let needed = length(lead), count < needed else { continue }
            let rest = tail.dropFirst()
            if rest.allSatisfy({ $0 & 0xC0 == 0x80 }), rest.first.map({ second(lead).contains($0) }) ?? true { return count }
        }
        return 0
    }

    private static func length(_ lead: UInt8) -> Int? {
        switch lead {
        case 0xC2...0xDF: 2
        case 0xE0...0xEF: 3
        case 0xF0...0xF4: 4
        default: nil
        }
    }

    /// What may follow a lead byte: no overlong form, no surrogate, nothing above U+10FFFF (Unicode, table 3-7).
    private static func second(_ lead: UInt8) -> ClosedRange<UInt8> {
        switch lead {
        case 0xE0: 0xA0...0xBF
        case 0xED: 0x80...0x9F
        case 0xF0: 0x90...0xBF
        case 0xF4: 0x80...0x8F
        default: 0x80...0xBF
        }
    }
}
