import Foundation

/// Passes text on until one of the stop sequences has been written, and nothing of that one.
///
/// What could still become a stop sequence is held back until the next piece decides it.
public struct StopFilter: Sendable {
    private let stops: [[Unicode.Scalar]]
    private var held: [Unicode.Scalar] = []
    public private(set) var stopped = false

    /// Empty stop sequences would stop before the first word; they are refused.
    public init(_ stops: [String]) throws {
        guard !stops.contains(where: \.isEmpty) else { throw TextError("a stop sequence is empty; it would stop before the first word") }
        self.stops = stops.map { Array($0.unicodeScalars) }
    }

    /// What of the text so far is now known to stay; empty after the stop.
    public mutating func push(_ piece: String) -> String {
        guard !stopped else { return "" }
        let text = held + piece.unicodeScalars
        if let end = text.indices.first(where: { place in stops.contains { text[place...].starts(with: $0) } }) {
            stopped = true
            held = []
            return Self.string(text[..<end])
        }
        let keep = heldLength(text)
        held = Array(text.suffix(keep))
        return Self.string(text.dropLast(keep))
    }

    /// What was held back and became no stop sequence.
    public mutating func flush() -> String {
        defer { held = [] }
        return Self.string(held[...])
    }

    /// The longest end of the text that begins a stop sequence.
    private func heldLength(_ text: [Unicode.Scalar]) -> Int {
        let longest = (stops.map(\.count).max() ?? 1) - 1
        return stride(from: min(longest, text.count), to: 0, by: -1).first { length in
            stops.contains { $0.starts(with: text.suffix(length)) }
        } ?? 0
    }

    private static func string(_ scalars: ArraySlice<Unicode.Scalar>) -> String {
        String(String.UnicodeScalarView(scalars))
    }
}
