import Foundation

/// What makes a text of another, as Python's `str` does.
struct TextFilters {
    /// The longest that a letter of another script becomes in the other case: "ΐ", of two bytes, is three letters in capitals.
    private static let caseGrowth = 3

    private let budget: TemplateBudget

    init(_ budget: TemplateBudget) {
        self.budget = budget
    }

    func apply(_ name: String, to text: String, _ arguments: TemplateArguments) throws -> String {
        if name == "replace" {
            try arguments.check(name, takes: "old", "new", "count")
            return try replace(text, arguments.text(0, "old"), arguments.text(1, "new"), limit: arguments.optionalInteger(2, "count"))
        }
        try arguments.check(name)
        try budget.work(text.utf8.count)
        try budget.make(product(text.utf8.count, text.utf8.allSatisfy { $0 < 0x80 } ? 1 : Self.caseGrowth))
        let seen = try Unmarked(text, budget)
        switch name {
        case "upper": return seen.marking(changed: seen.text.uppercased())
        case "lower": return seen.marking(changed: seen.text.lowercased())
        default:
            let scalars = seen.text.unicodeScalars
            return seen.marking(changed: (scalars.first?.properties.titlecaseMapping ?? "") + String(scalars.dropFirst()).lowercased())
        }
    }

    func strip(_ text: String, _ chars: String?, start: Bool = true, end: Bool = true) throws -> String {
        let seen = try Unmarked(text, budget)
        try budget.make(sum(text.utf8.count, chars?.utf8.count ?? 0))
        let gone = chars.map { Set(TypedText.withoutMarks($0).unicodeScalars) } ?? pythonSpaces
        var scalars = seen.text.unicodeScalars[...]
        var bytes = 0..<seen.text.utf8.count
        while start, let first = scalars.first, gone.contains(first) {
            scalars.removeFirst()
            bytes = bytes.lowerBound + UTF8.width(first)..<bytes.upperBound
        }
        while end, let last = scalars.last, gone.contains(last) {
            scalars.removeLast()
            bytes = bytes.lowerBound..<bytes.upperBound - UTF8.width(last)
        }
        return seen.cut(bytes)
    }

    /// A negative `limit` is none, as in Python.
    private func replace(_ text: String, _ old: String, _ new: String, limit: Int?) throws -> String {
        let (seen, old) = (try Unmarked(text, budget), TypedText.withoutMarks(old))
        guard !old.isEmpty else { throw TextError("the chat template replaces an empty text, which is not supported here") }
        let limit = limit.map { $0 < 0 ? .max : $0 } ?? .max
        let places = try TextSearch(old, budget).places(in: seen.text, limit: limit)
        let kept = text.utf8.count - places.count * old.utf8.count
        try budget.make(sum(kept, product(places.count, new.utf8.count)))
        return seen.parts(at: places, length: old.utf8.count).joined(separator: new)
    }

    func split(_ text: String, _ separator: String?, limit: Int?) throws -> [String] {
        let limit = limit.map { $0 < 0 ? .max : $0 } ?? .max
        let seen = try Unmarked(text, budget)
        try budget.make(text.utf8.count)
        guard let separator = separator.map(TypedText.withoutMarks) else {
            guard limit == .max else { throw TextError("the chat template splits at spaces with a limit, which is not supported here") }
            let words = Self.words(in: seen.text)
            try budget.makeEntries(words.count)
            return words.map { seen.cut($0) }
        }
        guard !separator.isEmpty else { throw TextError("the chat template splits at an empty text") }
        let places = try TextSearch(separator, budget).places(in: seen.text, limit: limit)
        try budget.makeEntries(places.count + 1)
        return seen.parts(at: places, length: separator.utf8.count)
    }

    /// The bytes of each.
    private static func words(in text: String) -> [Range<Int>] {
        var found: [Range<Int>] = []
        var (start, place) = (0, 0)
        func close() {
            if start < place { found.append(start..<place) }
        }
        for scalar in text.unicodeScalars {
            let width = UTF8.width(scalar)
            if pythonSpaces.contains(scalar) {
                close()
                start = place + width
            }
            place += width
        }
        close()
        return found
    }
}
