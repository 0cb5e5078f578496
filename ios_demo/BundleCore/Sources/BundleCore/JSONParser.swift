import Foundation

/// What is wrong with a text, and at which byte.
public struct JSONError: Error, CustomStringConvertible, Sendable {
    public let message: String
    public let offset: Int

    public var description: String { "\(message) at byte \(offset)" }
}

/// The text has more values than its reader asked for; the rest was not read.
struct JSONTooManyValues: Error {
    let limit: Int
}

extension JSONValue {
    /// Enough for the tokenizer of the largest vocabulary: 128,000 tokens and 280,000 merges make a million.
    public static let maxValues = 4_000_000

    /// Parse UTF-8 JSON from an untrusted file. `maxValues` counts members and elements of all levels.
    public init(parsing data: Data, maxValues: Int = Self.maxValues) throws {
        guard let text = String(validatingUTF8Bytes: data) else {
            throw JSONError(message: "not UTF-8", offset: 0)
        }
        try self.init(parsing: text, maxValues: maxValues)
    }

    public init(parsing text: String, maxValues: Int = Self.maxValues) throws {
        var parser = JSONParser(text, maxValues: maxValues)
        self = try parser.document()
    }

    /// Values that follow each other, parted by white space or `;`, lists opened; nil where the text is something else.
    static func row(_ text: String) -> [JSONValue]? {
        var parser = JSONParser(text, maxValues: maxValues)
        return try? parser.row()
    }
}

extension String {
    init?(validatingUTF8Bytes data: Data) {
        self.init(validating: data, as: UTF8.self)
    }
}

private struct JSONParser {
    /// No file of a bundle has ten; the Android app reads as many.
    private static let maxDepth = 64
    /// The largest double has 309 digits.
    private static let maxNumberLength = 400

    private let bytes: [UInt8]
    private var valuesLeft: Int
    private let maxValues: Int
    private var place = 0
    private var depth = 0
    private var isBeyond64Bits = false

    init(_ text: String, maxValues: Int) {
        bytes = Array(text.utf8)
        self.maxValues = maxValues
        valuesLeft = maxValues + 1  // the outermost is no member of anything
    }

    mutating func document() throws -> JSONValue {
        let value = try value()
        skipSpace()
        guard place == bytes.count else { throw error("text after the value") }
        return value
    }

    mutating func row() throws -> [JSONValue] {
        var values: [JSONValue] = []
        while place < bytes.count {
            let value = try value()
            values += value.arrayValue ?? [value]
            skipSpace()
            while take(UInt8(ascii: ";")) { skipSpace() }
        }
        guard !isBeyond64Bits else { throw error("an integer of more than 64 bits") }
        return values
    }

    private func error(_ message: String) -> JSONError {
        JSONError(message: message, offset: place)
    }

    private var next: UInt8? { place < bytes.count ? bytes[place] : nil }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { place += 1 }
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        guard next == byte else { return false }
        place += 1
        return true
    }

    private mutating func value() throws -> JSONValue {
        skipSpace()
        valuesLeft -= 1
        guard valuesLeft >= 0 else { throw JSONTooManyValues(limit: maxValues) }
        guard let byte = next else { throw error("the text ends where a value must be") }
        switch byte {
        case UInt8(ascii: "{"): return .object(try nested { try $0.object() })
        case UInt8(ascii: "["): return .array(try nested { try $0.array() })
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func nested<T>(_ body: (inout JSONParser) throws -> T) throws -> T {
        depth += 1
        guard depth <= Self.maxDepth else { throw error("nested deeper than \(Self.maxDepth)") }
        place += 1
        let result = try body(&self)
        depth -= 1
        return result
    }

    private mutating func word(_ word: String, _ value: JSONValue) throws -> JSONValue {
        guard bytes[place...].starts(with: word.utf8) else { throw error("an unknown word") }
        place += word.utf8.count
        return value
    }

    private mutating func object() throws -> JSONObject {
        var object = JSONObject()
        skipSpace()
        if take(UInt8(ascii: "}")) { return object }
        while true {
            skipSpace()
            guard next == UInt8(ascii: "\"") else { throw error("a member's name is missing") }
            let key = try string()
            // Two readers that each take another of them would check one file and use the other.
            guard object[key] == nil else { throw error("the member \(key.prefix(40).debugDescription) is there twice") }
            skipSpace()
            guard take(UInt8(ascii: ":")) else { throw error("no colon after a name") }
            object[key] = try value()
            skipSpace()
            if take(UInt8(ascii: "}")) { return object }
            guard take(UInt8(ascii: ",")) else { throw error("no comma between members") }
        }
    }

    private mutating func array() throws -> [JSONValue] {
        var values: [JSONValue] = []
        skipSpace()
        if take(UInt8(ascii: "]")) { return values }
        while true {
            values.append(try value())
            skipSpace()
            if take(UInt8(ascii: "]")) { return values }
            guard take(UInt8(ascii: ",")) else { throw error("no comma between values") }
        }
    }

    private mutating func number() throws -> JSONValue {
        let start = place
        _ = take(UInt8(ascii: "-"))
        let whole = digits()
        guard whole > 0, whole == 1 || bytes[place - whole] != UInt8(ascii: "0") else { throw error("not a value") }
        var isInteger = true
        if take(UInt8(ascii: ".")) {
            isInteger = false
            guard digits() > 0 else { throw error("no digit after the point") }
        }
        if take(UInt8(ascii: "e")) || take(UInt8(ascii: "E")) {
            isInteger = false
            if !take(UInt8(ascii: "+")) { _ = take(UInt8(ascii: "-")) }
            guard digits() > 0 else { throw error("no digit in the exponent") }
        }
        guard place - start <= Self.maxNumberLength else {
            throw error("a number of \(place - start) characters; \(Self.maxNumberLength) are read")
        }
        let text = String(decoding: bytes[start..<place], as: UTF8.self)
        if isInteger, let value = Int(text) { return .int(value) }
        if isInteger { isBeyond64Bits = true }
        guard let value = Double(text), value.isFinite else { throw error("a number beyond the range of a double") }
        return .double(value)
    }

    private mutating func digits() -> Int {
        let start = place
        while let byte = next, (0x30...0x39).contains(byte) { place += 1 }
        return place - start
    }

    private mutating func string() throws -> String {
        place += 1
        var text: [UInt8] = []
        while let byte = next {
            place += 1
            switch byte {
            case UInt8(ascii: "\""): return String(decoding: text, as: UTF8.self)
            case UInt8(ascii: "\\"): text.append(contentsOf: try escape())
            case ..<0x20: throw error("a control character in a string")
            default: text.append(byte)
            }
        }
        throw error("the string does not end")
    }

    private mutating func escape() throws -> [UInt8] {
        guard let byte = next else { throw error("the string does not end") }
        place += 1
        switch byte {
        case UInt8(ascii: "b"): return [0x08]
        case UInt8(ascii: "f"): return [0x0C]
        case UInt8(ascii: "n"): return [0x0A]
        case UInt8(ascii: "r"): return [0x0D]
        case UInt8(ascii: "t"): return [0x09]
        case UInt8(ascii: "u"): return try codePoint()
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
        default: throw error("an unknown escape")
        }
    }

    private mutating func codePoint() throws -> [UInt8] {
        var code = try hexadecimal()
        if (0xD800..<0xDC00).contains(code), take(UInt8(ascii: "\\")), take(UInt8(ascii: "u")) {
            let low = try hexadecimal()
            guard (0xDC00..<0xE000).contains(low) else { throw error("half of a surrogate pair") }
            code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
        }
        guard let scalar = Unicode.Scalar(code) else { throw error("half of a surrogate pair") }
        return Array(String(Character(scalar)).utf8)
    }

    private mutating func hexadecimal() throws -> UInt32 {
        guard place + 4 <= bytes.count,
            bytes[place..<place + 4].allSatisfy({ UInt8(ascii: "0") <= $0 && $0 <= UInt8(ascii: "f") }),
            let code = UInt32(String(decoding: bytes[place..<place + 4], as: UTF8.self), radix: 16)
        else { throw error("not four hexadecimal digits") }
        place += 4
        return code
    }
}
