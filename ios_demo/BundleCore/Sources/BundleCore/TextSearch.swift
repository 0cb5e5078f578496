/// Where a text occurs in another, in time that is linear in both (Knuth, Morris and Pratt 1977): the naive search takes the
/// product, which a template can make as large as it likes.
struct TextSearch {
    private let part: [UInt8]
    /// For each place of the part, how many of its first bytes are also the last ones up to there.
    private let borders: [Int]
    private let budget: TemplateBudget

    /// `part` has at least one character.
    init(_ part: String, _ budget: TemplateBudget) throws {
        try budget.make(product(part.utf8.count, 1 + MemoryLayout<Int>.size))
        let part = Array(part.utf8)
        var borders = [Int](repeating: 0, count: part.count)
        var length = 0
        for place in part.indices.dropFirst() {
            while length > 0, part[place] != part[length] { length = borders[length - 1] }
            if part[place] == part[length] { length += 1 }
            borders[place] = length
        }
        self.part = part
        self.borders = borders
        self.budget = budget
    }

    /// The first `limit` bytes at which the part begins, none inside of another.
    func places(in text: String, limit: Int = .max) throws -> [Int] {
        try budget.work(text.utf8.count)
        var text = text
        return try text.withUTF8 { bytes in
            var found: [Int] = []
            var length = 0
            for place in bytes.indices where found.count < limit {
                let byte = bytes[place]
                while length > 0, byte != part[length] { length = borders[length - 1] }
                if byte == part[length] { length += 1 }
                if length == part.count {
                    try budget.makeEntries(1)
                    found.append(place + 1 - length)
                    length = 0
                }
            }
            return found
        }
    }
}
