/// Text that a person typed, kept apart from text that a chat template writes.
///
/// While a dialog is rendered, a mark follows each character of a message that a control token could begin with. So no part of a
/// message begins one, whatever the template joins it with, cuts out of it or replaces in it, and none of a single character is
/// one. The template's own operations do not see the marks (`Unmarked`): it decides as without them.
struct TypedText: Sendable {
    /// A noncharacter: no text has it.
    static let mark = Unicode.Scalar(0xFDD0 as UInt32)!
    static let markBytes = Array(String(mark).utf8)

    private let firsts: Set<Unicode.Scalar>

    init(_ controlTokens: [AddedTokens.Token]) {
        firsts = Set(controlTokens.compactMap(\.content.unicodeScalars.first).flatMap(Self.forms))
    }

    /// A message, or a part of one, with marks in every text, names included.
    func marked(_ value: JSONValue) -> JSONValue {
        switch value {
        case .string(let text): .string(marked(text))
        case .array(let values): .array(values.map(marked))
        case .object(let object): .object(JSONObject(object.members.map { (marked($0.key), marked($0.value)) }))
        default: value
        }
    }

    private func marked(_ text: String) -> String {
        var marked = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            marked.append(scalar == Self.mark ? "\u{FFFD}" : scalar)
            if isFirst(scalar) { marked.append(Self.mark) }
        }
        return String(marked)
    }

    /// A template may change the case of what it is given.
    private func isFirst(_ scalar: Unicode.Scalar) -> Bool {
        if firsts.contains(scalar) { return true }
        return !scalar.isASCII && scalar.properties.changesWhenCaseMapped && !firsts.isDisjoint(with: Self.forms(scalar))
    }

    /// A character, and all those that it has in another case: "ﬁ" has "F" and "I" in capitals.
    private static func forms(_ scalar: Unicode.Scalar) -> Set<Unicode.Scalar> {
        let properties = scalar.properties
        let changed = properties.uppercaseMapping + properties.titlecaseMapping + properties.lowercaseMapping
        return Set([scalar] + changed.unicodeScalars + changed.lowercased().unicodeScalars)
    }

    static func withoutMarks(_ text: String) -> String {
        guard text.unicodeScalars.contains(mark) else { return text }
        return String(String.UnicodeScalarView(text.unicodeScalars.filter { $0 != mark }))
    }
}

/// A text as a template sees it, without marks, and where its bytes are in the text.
struct Unmarked {
    let text: String
    private let marked: String
    /// For each mark, how many bytes of `text` are in front of it.
    private let marks: [Int]

    init(_ marked: String, _ budget: TemplateBudget) throws {
        try budget.work(marked.utf8.count)
        var marked = marked
        let marks = marked.withUTF8(Self.marks)
        if !marks.isEmpty { try budget.make(marked.utf8.count) }
        self.marked = marked
        self.marks = marks
        text = marks.isEmpty ? marked : TypedText.withoutMarks(marked)
    }

    private static func marks(in bytes: UnsafeBufferPointer<UInt8>) -> [Int] {
        let mark = TypedText.markBytes
        var found: [Int] = []
        var place = 0
        while place < bytes.count {
            guard bytes[place] == mark[0], bytes[place + 1] == mark[1], bytes[place + 2] == mark[2] else {
                place += 1
                continue
            }
            found.append(place - found.count * mark.count)
            place += mark.count
        }
        return found
    }

    /// Bytes of `text`, with the marks that are inside and a mark behind the last one.
    func cut(_ bytes: Range<Int>) -> String {
        let utf8 = marked.utf8
        let start = utf8.index(utf8.startIndex, offsetBy: place(bytes.lowerBound))
        let end = utf8.index(utf8.startIndex, offsetBy: place(bytes.upperBound))
        return String(marked.unicodeScalars[start..<end])
    }

    /// A mark at the place belongs to the character in front of it.
    private func place(_ byte: Int) -> Int {
        byte + TypedText.markBytes.count * marks.partitioningIndex { $0 > byte }
    }

    /// Some of the characters, which there are.
    func cut(characters: Range<Int>) -> String {
        let (scalars, utf8) = (text.unicodeScalars, text.utf8)
        let start = scalars.index(scalars.startIndex, offsetBy: characters.lowerBound)
        let end = scalars.index(start, offsetBy: characters.count)
        return cut(utf8.distance(from: utf8.startIndex, to: start)..<utf8.distance(from: utf8.startIndex, to: end))
    }

    /// The text in another case, with the marks. Where one character has become several, nobody knows which: each gets one.
    func marking(changed: String) -> String {
        if marks.isEmpty { return changed }
        let isAligned = changed.unicodeScalars.count == text.unicodeScalars.count
        var found = String.UnicodeScalarView()
        var (byte, mark) = (0, 0)
        for (old, new) in zip(isAligned ? text.unicodeScalars : changed.unicodeScalars, changed.unicodeScalars) {
            found.append(new)
            byte += UTF8.width(old)
            guard !isAligned || (mark < marks.count && marks[mark] == byte) else { continue }
            found.append(TypedText.mark)
            mark += 1
        }
        return String(found)
    }

    /// What is between places at which something begins that has so many bytes.
    func parts(at places: [Int], length: Int) -> [String] {
        var start = 0
        return (places + [text.utf8.count]).map { place in
            defer { start = place + length }
            return cut(start..<place)
        }
    }
}
