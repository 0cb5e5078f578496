import Foundation

/// `[f(a=1), g(b='x')]`: a list of Python calls whose arguments are named and plain values.
struct PythonCallParser {
    private let text: [Unicode.Scalar]
    private var place = 0

    init(_ text: String) {
        self.text = Array(text.unicodeScalars)
    }

    mutating func calls() throws -> [ToolCall] {
        try expect("[")
        var calls: [ToolCall] = []
        while !take("]") {
            calls.append(try call())
            guard take(",") || peek == "]" else { throw error("a call is not whole") }
        }
        guard peek == nil else { throw error("there is more than a list of calls") }
        return calls
    }

    private func error(_ message: String) -> ToolCallError {
        ToolCallError(description: "\(message), at character \(place)")
    }

    /// The next scalar that is no white space.
    private var peek: Unicode.Scalar? {
        mutating get {
            while place < text.count, pythonSpaces.contains(text[place]) { place += 1 }
            return place < text.count ? text[place] : nil
        }
    }

    private mutating func take(_ scalar: Unicode.Scalar) -> Bool {
        guard peek == scalar else { return false }
        place += 1
        return true
    }

    private mutating func expect(_ scalar: Unicode.Scalar) throws {
        guard take(scalar) else { throw error("\(scalar) is missing") }
    }

    private mutating func name() throws -> String {
        guard let first = peek, first == "_" || first.properties.isAlphabetic else { throw error("a name is missing") }
        let start = place
        while place < text.count, text[place] == "_" || text[place].properties.isAlphabetic || ("0"..."9").contains(text[place]) {
            place += 1
        }
        return string(start..<place)
    }

    private func string(_ range: Range<Int>) -> String {
        String(String.UnicodeScalarView(text[range]))
    }

    private mutating func call() throws -> ToolCall {
        var path = try name()
        while take(".") { path += "." + (try name()) }
        try expect("(")
        var arguments = JSONObject()
        while !take(")") {
            let argument = try name()
            try expect("=")
            guard arguments[argument] == nil else { throw error("the argument \(argument) is named twice") }
            let value = try value(depth: 1)
            try ToolCall.check(value, depth: 1)
            arguments[argument] = value
            guard take(",") || peek == ")" else { throw error("a call is not whole") }
        }
        let name = path.hasSuffix(".call") ? String(path.dropLast(".call".count)) : path
        return ToolCall(name: name, arguments: .object(arguments))
    }

    private mutating func value(depth: Int) throws -> JSONValue {
        // One deeper than is allowed, so that nothing is read without end before the check.
        guard depth <= ToolCall.maxDepth + 1 else { throw error("arguments are nested more than \(ToolCall.maxDepth) deep") }
        guard let first = peek else { throw error("an argument is missing") }
        switch first {
        case "[": return .array(try list(depth: depth))
        case "{": return .object(try dictionary(depth: depth))
        case "'", "\"": return .string(try strings())
        case "-", "0"..."9", ".": return try number()
        default: return try word()
        }
    }

    private mutating func word() throws -> JSONValue {
        switch try name() {
        case "True": return .bool(true)
        case "False": return .bool(false)
        case "None": return .null
        default: throw error("an argument is not a plain value")
        }
    }

    private mutating func list(depth: Int) throws -> [JSONValue] {
        try expect("[")
        var values: [JSONValue] = []
        while !take("]") {
            values.append(try value(depth: depth + 1))
            guard take(",") || peek == "]" else { throw error("a list is not whole") }
        }
        return values
    }

    private mutating func dictionary(depth: Int) throws -> JSONObject {
        try expect("{")
        var object = JSONObject()
        while !take("}") {
            let key = try strings()
            try expect(":")
            object[key] = try value(depth: depth + 1)
            guard take(",") || peek == "}" else { throw error("a dictionary is not whole") }
        }
        return object
    }

    private mutating func number() throws -> JSONValue {
        let isNegative = take("-")
        _ = peek
        let start = place
        while place < text.count,
            "0123456789.eE_".unicodeScalars.contains(text[place])
                || ("+-".unicodeScalars.contains(text[place]) && place > start && "eE".unicodeScalars.contains(text[place - 1]))
        {
            place += 1
        }
        let digits = string(start..<place).replacingOccurrences(of: "_", with: "")
        let signed = (isNegative ? "-" : "") + digits
        if digits.allSatisfy(\.isNumber) {
            guard let value = Int(signed) else { throw error("an argument is an integer of more than 64 bits") }
            return .int(value)
        }
        guard let value = Double(signed) else { throw error("an argument is not a plain value") }
        return .double(value)
    }

    /// Neighbouring literals are one text, as in Python.
    private mutating func strings() throws -> String {
        var whole = try stringLiteral()
        while peek == "'" || peek == "\"" { whole += try stringLiteral() }
        return whole
    }

    private mutating func stringLiteral() throws -> String {
        guard let quote = peek, quote == "'" || quote == "\"" else { throw error("a text is missing") }
        place += 1
        var found = String.UnicodeScalarView()
        while place < text.count, text[place] != quote {
            let scalar = text[place]
            place += 1
            guard scalar != "\n" else { throw error("a text does not end in its line") }
            if scalar == "\\" { found.append(contentsOf: try escape()) } else { found.append(scalar) }
        }
        guard place < text.count else { throw error("a text does not end") }
        place += 1
        return String(found)
    }

    private mutating func escape() throws -> [Unicode.Scalar] {
        guard place < text.count else { throw error("a text does not end") }
        let scalar = text[place]
        place += 1
        switch scalar {
        case "n": return ["\n"]
        case "t": return ["\t"]
        case "r": return ["\r"]
        case "\\", "'", "\"": return [scalar]
        case "\n": return []
        case "x": return [try codePoint(2)]
        case "u": return [try codePoint(4)]
        case "U": return [try codePoint(8)]
        default: return ["\\", scalar]  // Python keeps an escape that it does not know
        }
    }

    private mutating func codePoint(_ count: Int) throws -> Unicode.Scalar {
        let digits = string(place..<min(place + count, text.count))
        guard digits.unicodeScalars.count == count, let code = UInt32(digits, radix: 16), let scalar = Unicode.Scalar(code) else {
            throw error("an escape is not \(count) hexadecimal digits")
        }
        place += count
        return scalar
    }
}
