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

/// Bytes of UTF-8 that come in any pieces.
public struct UTF8Stream: Sendable {
    private static let replacement: Unicode.Scalar = "\u{FFFD}"
    private var pending: [UInt8] = []

    public init() {}

    /// The text that is complete with these bytes. A U+FFFD at the end waits: the next bytes may yet make a character of it.
    public mutating func push(_ bytes: [UInt8]) -> String {
        pending += bytes
        let scalars = Array(String(decoding: pending, as: UTF8.self).unicodeScalars)
        let whole = scalars.prefix((scalars.lastIndex { $0 != Self.replacement } ?? -1) + 1)
        // What is held back are the bytes behind the last whole character.
        var held = 0
        if whole.count < scalars.count { held = pending.count - length(of: whole) }
        pending.removeFirst(pending.count - held)
        return String(String.UnicodeScalarView(whole))
    }

    public mutating func flush() -> String {
        defer { pending = [] }
        return String(decoding: pending, as: UTF8.self)
    }

    /// How many of the pending bytes were decoded to these scalars: the shortest part that gives them.
    private func length(of scalars: ArraySlice<Unicode.Scalar>) -> Int {
        (0...pending.count).first { count in
            String(decoding: pending[..<count], as: UTF8.self).unicodeScalars.elementsEqual(scalars)
        } ?? pending.count
    }
}
