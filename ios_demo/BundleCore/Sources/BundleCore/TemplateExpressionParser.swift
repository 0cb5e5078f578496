import Foundation

/// Expressions, by Jinja's own order: conditional, or, and, not, comparison, sum, ~, product, unary, and behind each value its
/// attributes, calls, filters and tests.
struct ExpressionParser {
    private static let maxDepth = 64
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

    mutating func expression() throws -> TemplateExpression {
        depth += 1
        defer { depth -= 1 }
        guard depth <= Self.maxDepth else { throw TextError("the chat template nests an expression more than \(Self.maxDepth) deep") }
        let value = try withoutCondition()
        guard takeName("if") else { return value }
        let condition = try withoutCondition()
        return .conditional(value, condition: condition, otherwise: takeName("else") ? try expression() : nil)
    }

    /// An expression in which `if` is the loop's.
    mutating func withoutCondition() throws -> TemplateExpression {
        var left = try conjunction()
        while takeName("or") { left = .binary("or", left, try conjunction()) }
        return left
    }

    private mutating func conjunction() throws -> TemplateExpression {
        var left = try negation()
        while takeName("and") { left = .binary("and", left, try negation()) }
        return left
    }

    private mutating func negation() throws -> TemplateExpression {
        var count = 0
        while takeName("not") { count += 1 }
        let value = try comparison()
        return (0..<count).reduce(value) { inner, _ in .not(inner) }
    }

    private mutating func comparison() throws -> TemplateExpression {
        let left = try sum()
        var steps: [(String, TemplateExpression)] = []
        while true {
            if let symbol = ["==", "!=", "<=", ">=", "<", ">"].first(where: { next == .symbol($0) }) {
                place += 1
                steps.append((symbol, try sum()))
            } else if takeName("in") {
                steps.append(("in", try sum()))
            } else if next == .name("not"), place + 1 < tokens.count, tokens[place + 1] == .name("in") {
                place += 2
                steps.append(("not in", try sum()))
            } else {
                return steps.isEmpty ? left : .comparison(left, steps)
            }
        }
    }

    private mutating func sum() throws -> TemplateExpression {
        var left = try concatenation()
        while let symbol = ["+", "-"].first(where: { next == .symbol($0) }) {
            place += 1
            left = .binary(symbol, left, try concatenation())
        }
        return left
    }

    private mutating func concatenation() throws -> TemplateExpression {
        var left = try product()
        while take("~") { left = .binary("~", left, try product()) }
        return left
    }

    private mutating func product() throws -> TemplateExpression {
        var left = try unary()
        while let symbol = ["*", "/", "//", "%"].first(where: { next == .symbol($0) }) {
            place += 1
            left = .binary(symbol, left, try unary())
        }
        return left
    }

    private mutating func unary() throws -> TemplateExpression {
        if take("-") { return try filtered(.negative(try unaryOperand())) }
        return try filtered(try unaryOperand())
    }

    private mutating func unaryOperand() throws -> TemplateExpression {
        try trailed(try primary())
    }

    private mutating func primary() throws -> TemplateExpression {
        switch next {
        case .name(let name)?:
            place += 1
            switch name {
            case "true", "True": return .literal(.bool(true))
            case "false", "False": return .literal(.bool(false))
            case "none", "None": return .literal(.none)
            default: return .name(name)
            }
        case .string(var text)?:
            place += 1
            while case .string(let more)? = next {
                text += more
                place += 1
            }
            return .literal(.string(text))
        case .int(let value)?:
            place += 1
            return .literal(.int(value))
        case .double(let value)?:
            place += 1
            return .literal(.double(value))
        default: return try bracketed()
        }
    }

    private mutating func bracketed() throws -> TemplateExpression {
        if take("(") {
            let first = try expression()
            guard take(",") else {
                try expect(")")
                return first
            }
            return .list([first] + (try list(until: ")")))
        }
        if take("[") { return .list(try list(until: "]")) }
        try expect("{")
        var entries: [(TemplateExpression, TemplateExpression)] = []
        while !take("}") {
            let key = try expression()
            try expect(":")
            entries.append((key, try expression()))
            guard take(",") || next == .symbol("}") else { throw unexpected() }
        }
        return .dictionary(entries)
    }

    private mutating func list(until end: String) throws -> [TemplateExpression] {
        var values: [TemplateExpression] = []
        while !take(end) {
            values.append(try expression())
            guard take(",") || next == .symbol(end) else { throw unexpected() }
        }
        return values
    }

    /// Attributes, indices and calls behind a value.
    private mutating func trailed(_ value: TemplateExpression) throws -> TemplateExpression {
        var value = value
        while true {
            if take(".") {
                value = .attribute(value, try identifier())
            } else if take("[") {
                value = try subscripted(value)
            } else if take("(") {
                value = .call(value, try arguments())
            } else {
                return value
            }
        }
    }

    private mutating func subscripted(_ value: TemplateExpression) throws -> TemplateExpression {
        let start = next == .symbol(":") ? nil : try expression()
        guard take(":") else {
            try expect("]")
            return .index(value, start ?? .literal(.undefined))
        }
        let end = next == .symbol("]") ? nil : try expression()
        try expect("]")  // a step, `[::-1]`, is refused here
        return .slice(value, start, end)
    }

    private mutating func arguments() throws -> [TemplateArgument] {
        var found: [TemplateArgument] = []
        while !take(")") {
            if case .name(let name)? = next, place + 1 < tokens.count, tokens[place + 1] == .symbol("=") {
                place += 2
                found.append(TemplateArgument(name: name, value: try expression()))
            } else {
                found.append(TemplateArgument(name: nil, value: try expression()))
            }
            guard take(",") || next == .symbol(")") else { throw unexpected() }
        }
        return found
    }

    /// Filters and tests behind a value.
    private mutating func filtered(_ value: TemplateExpression) throws -> TemplateExpression {
        var value = value
        while true {
            if take("|") {
                let name = try identifier()
                guard TemplateFilters.names.contains(name) else {
                    throw TextError("the chat template has the filter \(name), which is not supported here")
                }
                value = .filter(value, name, take("(") ? try arguments() : [])
            } else if takeName("is") {
                let negated = takeName("not")
                let name = try identifier()
                guard TemplateFilters.tests.contains(name) else {
                    throw TextError("the chat template has the test \(name), which is not supported here")
                }
                value = negated ? .not(.test(value, name)) : .test(value, name)
            } else if next == .symbol("(") {
                place += 1
                value = .call(value, try arguments())
            } else {
                return value
            }
        }
    }
}
