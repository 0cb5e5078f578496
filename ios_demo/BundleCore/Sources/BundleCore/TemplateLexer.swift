import Foundation

/// One part of a template: text, `{{ ... }}` or `{% ... %}`; comments are gone, white space is trimmed as Jinja does with
/// `trim_blocks` and `lstrip_blocks`, which is what transformers sets.
enum TemplatePart {
    case text(String)
    case output([TemplateToken])
    case block([TemplateToken])
}

enum TemplateToken: Equatable {
    case name(String)
    case string(String)
    case int(Int)
    case double(Double)
    case symbol(String)
}

struct TemplateLexer {
    private typealias Scalars = [Unicode.Scalar]

    private let source: Scalars
    private var place = 0

    init(_ text: String) {
        var normal = text.replacingOccurrences(of: "\r\n", with: "\n").replacingOccurrences(of: "\r", with: "\n")
        // Jinja drops one newline at the end of a template.
        if normal.utf8.last == UInt8(ascii: "\n") { normal = String(normal.unicodeScalars.dropLast()) }
        source = Array(normal.unicodeScalars)
    }

    mutating func parts() throws -> [TemplatePart] {
        var parts: [TemplatePart] = []
        var startsLine = true
        while place < source.count {
            let start = place
            while place < source.count, tagKind() == nil { place += 1 }
            var text = Array(source[start..<place])
            guard let kind = tagKind() else {
                parts.append(.text(Self.string(text)))
                break
            }
            place += 2
            let sign = take(["-", "+"])
            if sign == "-" {
                while let last = text.last, pythonSpaces.contains(last) { text.removeLast() }
            } else if sign == nil, kind != "{" {
                Self.stripLine(&text, startsLine: startsLine)
            }
            if !text.isEmpty { parts.append(.text(Self.string(text))) }
            startsLine = false
            switch kind {
            case "#": try skipComment()
            case "{": parts.append(.output(try tokens(until: "}}")))
            default: parts.append(.block(try tokens(until: "%}")))
            }
            startsLine = source[place - 1] == "\n"
        }
        return parts
    }

    private func tagKind() -> Unicode.Scalar? {
        guard place + 1 < source.count, source[place] == "{", ["{", "%", "#"].contains(source[place + 1]) else { return nil }
        return source[place + 1]
    }

    private mutating func take(_ choices: [Unicode.Scalar]) -> Unicode.Scalar? {
        guard place < source.count, choices.contains(source[place]) else { return nil }
        place += 1
        return source[place - 1]
    }

    private static func string(_ scalars: some Sequence<Unicode.Scalar>) -> String {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: scalars)
        return String(view)
    }

    /// White space between the start of the line and a block tag goes.
    private static func stripLine(_ text: inout Scalars, startsLine: Bool) {
        let newline = text.lastIndex(of: "\n")
        guard newline != nil || startsLine else { return }
        let start = newline.map { $0 + 1 } ?? 0
        if text[start...].allSatisfy(pythonSpaces.contains) { text.removeSubrange(start...) }
    }

    private mutating func skipComment() throws {
        while place + 1 < source.count, !(source[place] == "#" && source[place + 1] == "}") { place += 1 }
        guard place + 1 < source.count else { throw TextError("the chat template has a comment without end") }
        let sign = source[place - 1]
        place += 2
        finishBlock(sign)
    }

    private mutating func finishBlock(_ sign: Unicode.Scalar?) {
        if sign == "-" {
            while place < source.count, pythonSpaces.contains(source[place]) { place += 1 }
        } else if sign != "+" {
            _ = take(["\n"])
        }
    }

    private mutating func tokens(until end: String) throws -> [TemplateToken] {
        var tokens: [TemplateToken] = []
        let close = Array(end.unicodeScalars)
        var open: [Unicode.Scalar] = []
        while place < source.count {
            let scalar = source[place]
            if pythonSpaces.contains(scalar) {
                place += 1
                continue
            }
            if open.isEmpty, let sign = closes(close) {
                if end == "%}" {
                    finishBlock(sign)
                } else if sign == "-" {
                    finishBlock(sign)
                }
                return tokens
            }
            if ["(", "[", "{"].contains(scalar) { open.append(scalar) }
            if [")", "]", "}"].contains(scalar) { _ = open.popLast() }
            tokens.append(try token())
        }
        throw TextError("the chat template has a tag without end")
    }

    /// Whether the tag ends here, and by which sign; a space stands for none.
    private mutating func closes(_ close: Scalars) -> Unicode.Scalar? {
        if source[place...].starts(with: close) {
            place += 2
            return " "
        }
        let sign = source[place]
        guard sign == "-" || sign == "+", source[(place + 1)...].starts(with: close) else { return nil }
        place += 3
        return sign
    }

    private mutating func token() throws -> TemplateToken {
        let scalar = source[place]
        if scalar == "'" || scalar == "\"" { return .string(try stringLiteral(scalar)) }
        if ("0"..."9").contains(scalar) { return try number() }
        if scalar == "_" || scalar.properties.isAlphabetic {
            let start = place
            while place < source.count, source[place] == "_" || source[place].properties.isAlphabetic || ("0"..."9").contains(source[place]) {
                place += 1
            }
            return .name(Self.string(source[start..<place]))
        }
        for symbol in ["==", "!=", "<=", ">=", "//", "**"] where source[place...].starts(with: symbol.unicodeScalars) {
            place += 2
            return .symbol(symbol)
        }
        guard "+-*/%~<>=()[]{},.:|".unicodeScalars.contains(scalar) else {
            throw TextError("the chat template has the character \(scalar) in a tag")
        }
        place += 1
        return .symbol(String(scalar))
    }

    private mutating func number() throws -> TemplateToken {
        let start = place
        while place < source.count, ("0"..."9").contains(source[place]) { place += 1 }
        if place + 1 < source.count, source[place] == ".", ("0"..."9").contains(source[place + 1]) {
            place += 1
            while place < source.count, ("0"..."9").contains(source[place]) { place += 1 }
            guard let value = Double(Self.string(source[start..<place])), value.isFinite else {
                throw TextError("the chat template has a number beyond the range of a double")
            }
            return .double(value)
        }
        guard let value = Int(Self.string(source[start..<place])) else { throw TextError("the chat template has a number of over 64 bits") }
        return .int(value)
    }

    private mutating func stringLiteral(_ quote: Unicode.Scalar) throws -> String {
        place += 1
        var text: Scalars = []
        while place < source.count {
            let scalar = source[place]
            place += 1
            if scalar == quote { return Self.string(text) }
            guard scalar == "\\", place < source.count else {
                text.append(scalar)
                continue
            }
            let escaped = source[place]
            place += 1
            switch escaped {
            case "n": text.append("\n")
            case "t": text.append("\t")
            case "r": text.append("\r")
            case "\\", "'", "\"": text.append(escaped)
            case "u": text.append(try codePoint())
            default: throw TextError("the chat template has the escape \\\(escaped), which is not supported here")
            }
        }
        throw TextError("the chat template has a string without end")
    }

    private mutating func codePoint() throws -> Unicode.Scalar {
        let digits = Self.string(source[place..<min(place + 4, source.count)])
        guard digits.utf8.count == 4, let code = UInt32(digits, radix: 16), let scalar = Unicode.Scalar(code) else {
            throw TextError("the chat template has a \\u without four hexadecimal digits")
        }
        place += 4
        return scalar
    }
}

/// What Python's `str.strip` takes for white space.
let pythonSpaces: Set<Unicode.Scalar> = Set(
    ((0x09...0x0D).map { $0 } + (0x1C...0x20).map { $0 } + [0x85, 0xA0, 0x1680] + (0x2000...0x200A).map { $0 } + [
        0x2028, 0x2029, 0x202F, 0x205F, 0x3000,
    ]).compactMap { Unicode.Scalar(UInt32($0)) })
