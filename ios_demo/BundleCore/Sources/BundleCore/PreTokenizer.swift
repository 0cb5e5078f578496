import Foundation

/// Cuts text into the pieces that BPE works on; together they are the text.
///
/// Read out of `tokenizer.json`: the kinds that byte-level Llama tokenizers have. Another kind is refused.
struct PreTokenizer: Sendable {
    private enum Step {
        /// each match a piece, and each stretch between matches
        case split(NSRegularExpression)
        /// each digit a piece
        case digits
    }

    /// GPT-2's, which `ByteLevel` with `use_regex` means. Source: `encoder.py` in openai/gpt-2.
    private static let gpt2Pattern = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
    private static let maxPatternLength = 4096
    /// Llama's has two.
    private static let maxSteps = 16

    // NSRegularExpression is immutable and thread-safe, which Foundation on Linux does not declare.
    nonisolated(unsafe) private var steps: [Step] = []
    private(set) var isByteLevel = false

    init(_ value: JSONValue) throws {
        try add(value)
    }

    private mutating func add(_ value: JSONValue) throws {
        guard steps.count < Self.maxSteps else { throw TextError("pre_tokenizer: more than \(Self.maxSteps) steps") }
        switch value["type"]?.stringValue {
        case "Sequence": for step in value["pretokenizers"]?.arrayValue ?? [] { try add(step) }
        case "Digits":
            guard value["individual_digits"]?.boolValue == true else { throw TextError("pre_tokenizer: Digits in groups") }
            steps.append(.digits)
        case "Split":
            guard value["behavior"]?.stringValue == "Isolated", value["invert"]?.boolValue == false,
                let pattern = value["pattern"]?["Regex"]?.stringValue
            else { throw TextError("pre_tokenizer: a Split that does not keep all pieces of a pattern") }
            steps.append(.split(try Self.expression(pattern)))
        case "ByteLevel":
            guard value["add_prefix_space"]?.boolValue == false else { throw TextError("pre_tokenizer: add_prefix_space") }
            if value["use_regex"]?.boolValue != false { steps.append(.split(try Self.expression(Self.gpt2Pattern))) }
            isByteLevel = true
        case let other: throw TextError("pre_tokenizer: the type \(other ?? "null") is not supported")
        }
    }

    /// Oniguruma's `\s`, which `tokenizers` has, is every Unicode white space; ICU's leaves out U+000B and U+0085.
    private static func expression(_ pattern: String) throws -> NSRegularExpression {
        guard pattern.utf8.count <= maxPatternLength else { throw TextError("pre_tokenizer: a pattern of \(pattern.utf8.count) bytes") }
        let spaces = pattern.replacingOccurrences(of: #"\s"#, with: #"\p{White_Space}"#)
            .replacingOccurrences(of: #"\S"#, with: #"\P{White_Space}"#)
        do {
            return try NSRegularExpression(pattern: spaces)
        } catch {
            throw TextError("pre_tokenizer: the pattern \(pattern.prefix(60)) is not one that Foundation reads")
        }
    }

    /// Throws where a pattern takes too long, or gives up.
    func pieces(of text: String, _ patience: Patience) throws -> [Substring] {
        var pieces = [text[...]]
        for step in steps {
            pieces = try pieces.flatMap { piece in
                switch step {
                case .digits: Self.splitDigits(piece)
                case .split(let expression): try Self.split(piece, expression, patience)
                }
            }
        }
        return pieces
    }

    /// How long the patterns of a stranger's file may take for one text. The regular expressions of Foundation report each ten
    /// thousand or so of their steps; those of real tokenizers take one report for 2,500 letters.
    final class Patience {
        private var reports: Int

        init(for text: String) {
            reports = 1_000 + text.utf8.count / 500
        }

        /// Whether it has come to its end.
        fileprivate func report() -> Bool {
            reports -= 1
            return reports < 0
        }
    }

    private static func splitDigits(_ text: Substring) -> [Substring] {
        var pieces: [Substring] = []
        var start = text.startIndex
        let scalars = text.unicodeScalars
        var place = scalars.startIndex
        while place < scalars.endIndex {
            let after = scalars.index(after: place)
            switch scalars[place].properties.generalCategory {
            case .decimalNumber, .letterNumber, .otherNumber:
                if start < place { pieces.append(text[start..<place]) }
                pieces.append(text[place..<after])
                start = after
            default: break
            }
            place = after
        }
        if start < text.endIndex { pieces.append(text[start...]) }
        return pieces
    }

    private static func split(_ text: Substring, _ expression: NSRegularExpression, _ patience: Patience) throws -> [Substring] {
        let whole = String(text)
        let units = whole.utf16
        var pieces: [Substring] = []
        var end = 0
        var last = whole.startIndex
        var failure: String?
        let all = NSRange(location: 0, length: units.count)
        expression.enumerateMatches(in: whole, options: [.reportProgress, .reportCompletion], range: all) { match, flags, stop in
            if flags.contains(.internalError) { failure = "gives up" }
            guard let range = match?.range else {
                if patience.report() {
                    failure = "takes too long"
                    stop.pointee = true
                }
                return
            }
            guard range.length > 0 else { return }
            let start = units.index(last, offsetBy: range.location - end)
            let after = units.index(start, offsetBy: range.length)
            if range.location > end { pieces.append(whole[last..<start]) }
            pieces.append(whole[start..<after])
            end = range.location + range.length
            last = after
        }
        if let failure {
            throw TextError("pre_tokenizer: the pattern \(expression.pattern.prefix(60)) \(failure) on a text of \(units.count) letters")
        }
        if last < whole.endIndex { pieces.append(whole[last...]) }
        return pieces
    }
}
