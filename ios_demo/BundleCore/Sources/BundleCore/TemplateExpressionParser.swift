import Foundation

/// A part of an expression, and how high its tree is.
private struct Node {
    let value: TemplateExpression
    let height: Int
}

/// Expressions, by Jinja's own order: conditional, or, and, not, comparison, sum, ~, product, unary, and behind each value its
/// attributes, calls, filters and tests.
struct ExpressionParser {
    // A background thread has half a megabyte of stack. In a debug build, where it takes most, it suffices for three times the
    // brackets and twice the chain.
    /// Brackets in brackets: each is some fifteen calls of the parser.
    private static let maxDepth = 20
    /// What is in a chain, such as a + b + c, is evaluated recursively as well.
    private static let maxHeight = 48
    private let tokens: [TemplateToken]
    private var place = 0
    private var depth = 0

    init(_ tokens: [TemplateToken]) {
        self.tokens = tokens
    }

    var isAtEnd: Bool { place == tokens.count }

    private var next: TemplateToken? { isAtEnd ? nil : tokens[place] }

    mutating func take(_ symbol: String) -> Bool {
        guard next == .symbol(symbol) else { return false }
        place += 1
        return true
    }

    mutating func takeName(_ name: String) -> Bool {
        guard next == .name(name) else { return false }
        place += 1
        return true
    }

    mutating func identifier() throws -> String {
        guard case .name(let name)? = next else { throw unexpected() }
        place += 1
        return name
    }

    mutating func end() throws {
        guard isAtEnd else { throw unexpected() }
    }

    mutating func whole() throws -> TemplateExpression {
        let found = try expression()
        try end()
        return found
    }

    mutating func expression() throws -> TemplateExpression { try conditional().value }

    /// An expression in which `if` is the loop's.
    mutating func withoutCondition() throws -> TemplateExpression { try disjunction().value }

    private func unexpected() -> TextError {
        guard let next else { return TextError("the chat template has an expression that ends too early") }
        let shown =
            switch next {
            case .name(let name): name
            case .string(let text): "\"\(text.prefix(20))\""
            case .int(let value): String(value)
            case .double(let value): String(value)
            case .symbol(let symbol): symbol
            }
        return TextError("the chat template has \(shown) where it is not understood here")
    }

    private mutating func expect(_ symbol: String) throws {
        guard take(symbol) else { throw unexpected() }
    }

    /// A node over others. A tree is never made higher than it could be freed.
    private func node(_ parts: [Node], _ make: ([TemplateExpression]) -> TemplateExpression) throws -> Node {
        let height = (parts.map(\.height).max() ?? 0) + 1
        guard height <= Self.maxHeight else { throw TextError("the chat template chains more than \(Self.maxHeight) parts of an expression") }
        return Node(value: make(parts.map(\.value)), height: height)
    }

    private func leaf(_ value: TemplateExpression) -> Node { Node(value: value, height: 1) }

    private mutating func conditional() throws -> Node {
        depth += 1
        defer { depth -= 1 }
        guard depth <= Self.maxDepth else { throw TextError("the chat template nests an expression more than \(Self.maxDepth) deep") }
        let value = try disjunction()
        guard takeName("if") else { return value }
        let condition = try disjunction()
        let parts = [value, condition] + (takeName("else") ? [try conditional()] : [])
        return try node(parts) { .conditional($0[0], condition: $0[1], otherwise: $0.count > 2 ? $0[2] : nil) }
    }

    private mutating func disjunction() throws -> Node {
        var left = try conjunction()
        while takeName("or") { left = try node([left, try conjunction()]) { .binary("or", $0[0], $0[1]) } }
        return left
    }

    private mutating func conjunction() throws -> Node {
        var left = try negation()
        while takeName("and") { left = try node([left, try negation()]) { .binary("and", $0[0], $0[1]) } }
        return left
    }

    private mutating func negation() throws -> Node {
        var count = 0
        while takeName("not") { count += 1 }
        var value = try comparison()
        for _ in 0..<count { value = try node([value]) { .not($0[0]) } }
        return value
    }

    private mutating func comparison() throws -> Node {
        var parts = [try sum()]
        var symbols: [String] = []
        while let symbol = takeComparison() {
            symbols.append(symbol)
            parts.append(try sum())
        }
        if symbols.isEmpty { return parts[0] }
        return try node(parts) { .comparison($0[0], Array(zip(symbols, $0.dropFirst()))) }
    }

    private mutating func takeComparison() -> String? {
        for symbol in ["==", "!=", "<=", ">=", "<", ">"] where take(symbol) { return symbol }
        if takeName("in") { return "in" }
        guard next == .name("not"), place + 1 < tokens.count, tokens[place + 1] == .name("in") else { return nil }
        place += 2
        return "not in"
    }

    private mutating func sum() throws -> Node {
        try chain(["+", "-"]) { try $0.concatenation() }
    }

    private mutating func concatenation() throws -> Node {
        try chain(["~"]) { try $0.product() }
    }

    private mutating func product() throws -> Node {
        try chain(["*", "/", "//", "%"]) { try $0.unary() }
    }

    /// Operands with operators of one rank between them, from the left.
    private mutating func chain(_ symbols: [String], _ operand: (inout ExpressionParser) throws -> Node) throws -> Node {
        var left = try operand(&self)
        while let symbol = symbols.first(where: { next == .symbol($0) }) {
            place += 1
            left = try node([left, try operand(&self)]) { .binary(symbol, $0[0], $0[1]) }
        }
        return left
    }

    private mutating func unary() throws -> Node {
        guard take("-") else { return try filtered(try trailed(try primary())) }
        return try filtered(try node([try trailed(try primary())]) { .negative($0[0]) })
    }

    private mutating func primary() throws -> Node {
        switch next {
        case .name(let name)?:
            place += 1
            switch name {
            case "true", "True": return leaf(.literal(.bool(true)))
            case "false", "False": return leaf(.literal(.bool(false)))
            case "none", "None": return leaf(.literal(.none))
            default: return leaf(.name(name))
            }
        case .string(var text)?:
            place += 1
            while case .string(let more)? = next {
                text += more
                place += 1
            }
            return leaf(.literal(.string(text)))
        case .int(let value)?:
            place += 1
            return leaf(.literal(.int(value)))
        case .double(let value)?:
            place += 1
            return leaf(.literal(.double(value)))
        default: return try bracketed()
        }
    }

    private mutating func bracketed() throws -> Node {
        if take("(") {
            let first = try conditional()
            guard take(",") else {
                try expect(")")
                return first
            }
            return try node([first] + (try list(until: ")"))) { .list($0) }
        }
        if take("[") { return try node(try list(until: "]")) { .list($0) } }
        try expect("{")
        var entries: [Node] = []
        while !take("}") {
            entries.append(try conditional())
            try expect(":")
            entries.append(try conditional())
            guard take(",") || next == .symbol("}") else { throw unexpected() }
        }
        return try node(entries) { parts in
            .dictionary(stride(from: 0, to: parts.count, by: 2).map { (parts[$0], parts[$0 + 1]) })
        }
    }

    private mutating func list(until end: String) throws -> [Node] {
        var values: [Node] = []
        while !take(end) {
            values.append(try conditional())
            guard take(",") || next == .symbol(end) else { throw unexpected() }
        }
        return values
    }

    /// Attributes, indices and calls behind a value.
    private mutating func trailed(_ value: Node) throws -> Node {
        var value = value
        while true {
            if take(".") {
                let name = try identifier()
                value = try node([value]) { .attribute($0[0], name) }
            } else if take("[") {
                value = try subscripted(value)
            } else if take("(") {
                value = try called(value)
            } else {
                return value
            }
        }
    }

    private mutating func subscripted(_ value: Node) throws -> Node {
        let start = next == .symbol(":") ? nil : try conditional()
        guard take(":") else {
            try expect("]")
            return try node([value, start ?? leaf(.literal(.undefined))]) { .index($0[0], $0[1]) }
        }
        let end = next == .symbol("]") ? nil : try conditional()
        try expect("]")  // a step, `[::-1]`, is refused here
        let none = leaf(.literal(.none))
        return try node([value, start ?? none, end ?? none]) { .slice($0[0], $0[1], $0[2]) }
    }

    private mutating func called(_ value: Node) throws -> Node {
        let (names, values) = try arguments()
        return try node([value] + values) { .call($0[0], Self.arguments(names, $0.dropFirst())) }
    }

    /// Names of the arguments, nil for a positional one, and their values.
    private mutating func arguments() throws -> ([String?], [Node]) {
        var names: [String?] = []
        var values: [Node] = []
        while !take(")") {
            if case .name(let name)? = next, place + 1 < tokens.count, tokens[place + 1] == .symbol("=") {
                place += 2
                names.append(name)
            } else {
                names.append(nil)
            }
            values.append(try conditional())
            guard take(",") || next == .symbol(")") else { throw unexpected() }
        }
        return (names, values)
    }

    private static func arguments(_ names: [String?], _ values: ArraySlice<TemplateExpression>) -> [TemplateArgument] {
        zip(names, values).map { TemplateArgument(name: $0, value: $1) }
    }

    /// Filters and tests behind a value.
    private mutating func filtered(_ value: Node) throws -> Node {
        var value = value
        while true {
            if take("|") {
                let name = try identifier()
                guard TemplateFilters.names.contains(name) else {
                    throw TextError("the chat template has the filter \(name), which is not supported here")
                }
                let (names, values) = take("(") ? try arguments() : ([], [])
                value = try node([value] + values) { .filter($0[0], name, Self.arguments(names, $0.dropFirst())) }
            } else if takeName("is") {
                let isNegated = takeName("not")
                let name = try identifier()
                guard TemplateFilters.tests.contains(name) else {
                    throw TextError("the chat template has the test \(name), which is not supported here")
                }
                value = try node([value]) { .test($0[0], name) }
                if isNegated { value = try node([value]) { .not($0[0]) } }
            } else if take("(") {
                value = try called(value)
            } else {
                return value
            }
        }
    }
}
