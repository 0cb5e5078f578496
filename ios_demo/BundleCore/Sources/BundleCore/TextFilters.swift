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
        switch name {
        case "upper": return text.uppercased()
        case "lower": return text.lowercased()
        default:
            guard let first = text.unicodeScalars.first else { return "" }
            return first.properties.titlecaseMapping + String(text.unicodeScalars.dropFirst()).lowercased()
        }
    }

    func strip(_ text: String, _ chars: String?, start: Bool = true, end: Bool = true) throws -> String {
        try budget.make(sum(text.utf8.count, chars?.utf8.count ?? 0))
        return Self.stripped(text, chars.map { Set($0.unicodeScalars) } ?? pythonSpaces, start: start, end: end)
    }

    static func stripped(_ text: String, _ gone: Set<Unicode.Scalar>, start: Bool = true, end: Bool = true) -> String {
        var scalars = text.unicodeScalars[...]
        while start, let first = scalars.first, gone.contains(first) { scalars.removeFirst() }
        while end, let last = scalars.last, gone.contains(last) { scalars.removeLast() }
        return String(scalars)
    }

    /// A negative `limit` is none, as in Python.
    private func replace(_ text: String, _ old: String, _ new: String, limit: Int?) throws -> String {
        guard !old.isEmpty else { throw TextError("the chat template replaces an empty text, which is not supported here") }
        let limit = limit.map { $0 < 0 ? .max : $0 } ?? .max
        let places = try TextSearch(old, budget).places(in: text, limit: limit)
        let kept = text.utf8.count - places.count * old.utf8.count
        try budget.make(sum(kept, product(places.count, new.utf8.count)))
        return Self.parts(of: text, at: places, length: old.utf8.count).joined(separator: new)
    }

    func split(_ text: String, _ separator: String?, limit: Int?) throws -> [String] {
        let limit = limit.map { $0 < 0 ? .max : $0 } ?? .max
        try budget.make(text.utf8.count)
        guard let separator else {
            guard limit == .max else { throw TextError("the chat template splits at spaces with a limit, which is not supported here") }
            try budget.makeEntries(Self.wordCount(text))
            return text.unicodeScalars.split { pythonSpaces.contains($0) }.map { String($0) }
        }
        guard !separator.isEmpty else { throw TextError("the chat template splits at an empty text") }
        let places = try TextSearch(separator, budget).places(in: text, limit: limit)
        try budget.makeEntries(places.count + 1)
        return Self.parts(of: text, at: places, length: separator.utf8.count)
    }

    private static func wordCount(_ text: String) -> Int {
        var count = 0
        var isInWord = false
        for scalar in text.unicodeScalars {
            let isSpace = pythonSpaces.contains(scalar)
            if !isSpace, !isInWord { count += 1 }
            isInWord = !isSpace
        }
        return count
    }

    /// What is between the places; whole characters begin and end with a match.
    private static func parts(of text: String, at places: [Int], length: Int) -> [String] {
        var text = text
        return text.withUTF8 { bytes in
            var start = 0
            return (places + [bytes.count]).map { place in
                defer { start = place + length }
                return String(decoding: bytes[start..<place], as: UTF8.self)
            }
        }
    }
}
