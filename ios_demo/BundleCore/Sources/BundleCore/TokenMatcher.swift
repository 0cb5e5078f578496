import Foundation

/// Finds tokens in a text. A place costs as many steps as the longest token has bytes there, however many tokens there are.
struct TokenMatcher: Sendable {
    /// The tokens in order of their bytes, and what each is.
    private let entries: [(bytes: [UInt8], token: AddedTokens.Token)]
    /// Where in `entries` those are that begin with a byte.
    private let byFirstByte: [Range<Int>]

    init(_ tokens: [AddedTokens.Token]) {
        let entries = tokens.map { (bytes: Array($0.content.utf8), token: $0) }.filter { !$0.bytes.isEmpty }
            .sorted { $0.bytes.lexicographicallyPrecedes($1.bytes) }
        self.entries = entries
        byFirstByte = (0..<256).map { byte in
            let start = entries.partitioningIndex { Int($0.bytes[0]) >= byte }
            return start..<entries.partitioningIndex { Int($0.bytes[0]) > byte }
        }
    }

    var isEmpty: Bool { entries.isEmpty }

    /// The longest token that begins at a place and is `wanted`.
    func longest(in bytes: [UInt8], at place: Int, where wanted: (AddedTokens.Token) -> Bool) -> AddedTokens.Token? {
        var found: AddedTokens.Token?
        follow(bytes, from: place) { if wanted($0) { found = $0 } }
        return found
    }

    /// Ids of all tokens that occur anywhere in a text.
    func occurring(in text: String) -> Set<Int> {
        let bytes = Array(text.utf8)
        var found: Set<Int> = []
        for place in bytes.indices { follow(bytes, from: place) { found.insert($0.id) } }
        return found
    }

    /// Tell every token that begins at a place, the shortest first.
    private func follow(_ bytes: [UInt8], from place: Int, _ found: (AddedTokens.Token) -> Void) {
        var range = byFirstByte[Int(bytes[place])]
        var depth = 1
        while !range.isEmpty {
            // All in the range begin with these `depth` bytes; one that has no more is the first.
            let first = entries[range.lowerBound]
            if first.bytes.count == depth {
                found(first.token)
                range = range.dropFirst()
            }
            guard !range.isEmpty, place + depth < bytes.count else { return }
            let next = bytes[place + depth]
            let candidates = entries[range]
            let start = candidates.partitioningIndex { $0.bytes[depth] >= next }
            range = start..<candidates.partitioningIndex { $0.bytes[depth] > next }
            depth += 1
        }
    }
}

extension RandomAccessCollection where Index == Int {
    /// The first place at which something holds that holds for every later element too.
    func partitioningIndex(where holds: (Element) -> Bool) -> Int {
        var low = startIndex
        var high = endIndex
        while low < high {
            let middle = low + (high - low) / 2
            if holds(self[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
