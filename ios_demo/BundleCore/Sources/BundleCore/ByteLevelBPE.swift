import Foundation

/// The printable letters that stand for bytes in a byte-level vocabulary. Source: `bytes_to_unicode` in GPT-2's `encoder.py`.
enum ByteLetters {
    /// The letter of each byte.
    static let letters: [Unicode.Scalar] = {
        var extra: UInt32 = 0x100
        return (0..<256).map { byte in
            let printable = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
            defer { extra += printable ? 0 : 1 }
            return Unicode.Scalar(printable ? UInt32(byte) : extra) ?? " "
        }
    }()

    /// The byte of each letter, by code point: all of them lie below U+0144.
    private static let bytes: [UInt8?] = {
        var table = [UInt8?](repeating: nil, count: 0x144)
        for (byte, letter) in letters.enumerated() { table[Int(letter.value)] = UInt8(byte) }
        return table
    }()

    /// The bytes that a token's letters stand for; nil where one stands for none.
    static func bytes(of token: String) -> [UInt8]? {
        var found: [UInt8] = []
        found.reserveCapacity(token.utf8.count)
        for scalar in token.unicodeScalars {
            guard scalar.value < bytes.count, let byte = bytes[Int(scalar.value)] else { return nil }
            found.append(byte)
        }
        return found
    }
}

/// Byte-pair encoding over bytes: the `model` of `tokenizer.json`.
struct ByteLevelBPE: Sendable {
    private struct Pair: Hashable {
        let left: Int
        let right: Int
    }

    private struct Merge {
        let rank: Int
        let result: Int
    }

    private(set) var ids: [[UInt8]: Int] = [:]
    private var byteIDs = [Int?](repeating: nil, count: 256)
    private var merges: [Pair: Merge] = [:]
    private let ignoreMerges: Bool

    init(_ model: JSONValue) throws {
        guard model["type"]?.stringValue == "BPE" else { throw TextError("model: the type is not BPE") }
        for key in ["dropout", "unk_token"] where !(model[key]?.isNull ?? true) {
            throw TextError("model: \(key) is not supported")
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] where !(model[key]?.stringValue ?? "").isEmpty {
            throw TextError("model: \(key) is not supported")
        }
        guard model["byte_fallback"]?.boolValue != true else { throw TextError("model: byte_fallback is not supported") }
        ignoreMerges = model["ignore_merges"]?.boolValue ?? false
        guard let vocabulary = model["vocab"]?.objectValue, let rules = model["merges"]?.arrayValue else {
            throw TextError("model: vocab or merges are missing")
        }
        for (token, id) in vocabulary.members {
            guard let id = id.intValue, Tokenizer.ids.contains(id) else {
                throw TextError("model: the id of \(JSONValue.string(token).compact) is no number from 0 to \(Tokenizer.ids.upperBound)")
            }
            if let bytes = ByteLetters.bytes(of: token) { ids[bytes] = id }
        }
        for byte in 0..<256 { byteIDs[byte] = ids[[UInt8(byte)]] }
        for (rank, rule) in rules.enumerated() { try add(rule, rank: rank) }
    }

    private mutating func add(_ rule: JSONValue, rank: Int) throws {
        let parts: [String] =
            switch rule {
            case .string(let text): text.unicodeScalars.split(separator: " ").map(String.init)
            default: rule.arrayValue?.compactMap(\.stringValue) ?? []
            }
        let bytes = parts.compactMap(ByteLetters.bytes)
        guard parts.count == 2, bytes.count == 2, let left = ids[bytes[0]], let right = ids[bytes[1]],
            let result = ids[bytes[0] + bytes[1]]
        else { throw TextError("model: the merge \(rule.compact) names or makes a token that does not exist") }
        merges[Pair(left: left, right: right)] = Merge(rank: rank, result: result)
    }

    /// Ids of one piece of text, none of those that are `forbidden` and longer than a byte: a vocabulary may hold a control
    /// token as a word too. A byte that the vocabulary lacks is left out, as `tokenizers` does.
    func encode(_ piece: Substring, forbidden: (Int) -> Bool) -> [Int] {
        let bytes = Array(piece.utf8)
        if ignoreMerges, let id = ids[bytes], !forbidden(id) { return [id] }
        return merged(bytes, forbidden: forbidden).ids
    }

    /// The ids, and how many pairs were considered: at most three for each byte, and each costs the logarithm of that.
    func merged(_ bytes: [UInt8], forbidden: (Int) -> Bool = { _ in false }) -> (ids: [Int], considered: Int) {
        var chain = MergeChain(bytes.compactMap { byteIDs[Int($0)] })
        var candidates = Heap<Candidate> { ($0.rank, $0.place) < ($1.rank, $1.place) }
        var considered = 0
        func consider(_ place: Int) {
            guard let next = chain.next(place) else { return }
            considered += 1
            let pair = Pair(left: chain.symbols[place], right: chain.symbols[next])
            guard let merge = merges[pair], !forbidden(merge.result) else { return }
            candidates.push(Candidate(rank: merge.rank, place: place, pair: pair, result: merge.result))
        }
        for place in chain.symbols.indices { consider(place) }
        while let best = candidates.pop() {
            // Either half may have been merged away since.
            guard let next = chain.next(best.place), chain.symbols[best.place] == best.pair.left,
                chain.symbols[next] == best.pair.right
            else { continue }
            chain.merge(best.place, into: best.result)
            if let previous = chain.previous(best.place) { consider(previous) }
            consider(best.place)
        }
        return (chain.remaining, considered)
    }

    /// A merge that may be made: the one that was learned first goes first, and of equal ones the leftmost.
    private struct Candidate {
        let rank: Int
        let place: Int
        let pair: Pair
        let result: Int
    }
}

/// Symbols in a row, of which two neighbours can become one without moving the others: a pasted file that has no space must
/// not cost the square of its length.
private struct MergeChain {
    private(set) var symbols: [Int]
    private var before: [Int]
    private var after: [Int]

    init(_ symbols: [Int]) {
        self.symbols = symbols
        before = symbols.indices.map { $0 - 1 }
        after = symbols.indices.map { $0 + 1 }
    }

    /// Where the next symbol is; nil at the end, and for a place that was merged away.
    func next(_ place: Int) -> Int? {
        symbols[place] >= 0 && after[place] < symbols.count ? after[place] : nil
    }

    func previous(_ place: Int) -> Int? { before[place] >= 0 ? before[place] : nil }

    mutating func merge(_ place: Int, into result: Int) {
        let gone = after[place]
        symbols[place] = result
        symbols[gone] = -1
        after[place] = after[gone]
        if after[gone] < symbols.count { before[after[gone]] = place }
    }

    var remaining: [Int] { symbols.filter { $0 >= 0 } }
}
