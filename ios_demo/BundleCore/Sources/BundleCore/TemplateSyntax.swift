import Foundation

indirect enum TemplateExpression {
    case literal(TemplateValue)
    case name(String)
    case list([TemplateExpression])
    case dictionary([(TemplateExpression, TemplateExpression)])
    case attribute(TemplateExpression, String)
    case index(TemplateExpression, TemplateExpression)
    case slice(TemplateExpression, TemplateExpression, TemplateExpression)
    case call(TemplateExpression, [TemplateArgument])
    case filter(TemplateExpression, String, [TemplateArgument])
    case test(TemplateExpression, String)
    case not(TemplateExpression)
    case negative(TemplateExpression)
    case binary(String, TemplateExpression, TemplateExpression)
    case comparison(TemplateExpression, [(String, TemplateExpression)])
    case conditional(TemplateExpression, condition: TemplateExpression, otherwise: TemplateExpression?)
}

struct TemplateArgument {
    let name: String?
    let value: TemplateExpression
}

enum TemplateTarget {
    case names([String])
    case attribute(String, String)
}

indirect enum TemplateStatement {
    case text(String)
    case output(TemplateExpression)
    case condition([(TemplateExpression?, [TemplateStatement])])
    case loop([String], TemplateExpression, filter: TemplateExpression?, body: [TemplateStatement], otherwise: [TemplateStatement])
    case set(TemplateTarget, TemplateExpression)
    case setBlock(String, [TemplateStatement])
    /// Statements in a scope of their own.
    case scope([TemplateStatement])
    case breakLoop
    case continueLoop
}

/// Everything that a template can write of its own: its text and its string constants.
struct TemplateLiterals {
    private(set) var found: Set<ExactString> = []

    init(_ statements: [TemplateStatement]) {
        add(statements)
    }

    private mutating func add(_ statements: [TemplateStatement]) {
        for statement in statements {
            switch statement {
            case .text(let text): found.insert(ExactString(text))
            case .output(let value), .set(_, let value): add([value])
            case .condition(let branches):
                for (test, body) in branches {
                    add([test])
                    add(body)
                }
            case .loop(_, let sequence, let filter, let body, let otherwise):
                add([sequence, filter])
                add(body)
                add(otherwise)
            case .setBlock(_, let body), .scope(let body): add(body)
            case .breakLoop, .continueLoop: break
            }
        }
    }

    private mutating func add(_ expressions: [TemplateExpression?]) {
        for case let expression? in expressions {
            if case .literal(.string(let text)) = expression { found.insert(ExactString(text)) }
            add(expression.parts)
        }
    }
}

extension TemplateExpression {
    fileprivate var parts: [TemplateExpression?] {
        switch self {
        case .literal, .name: []
        case .list(let values): values
        case .dictionary(let entries): entries.flatMap { [$0, $1] }
        case .attribute(let value, _), .test(let value, _), .not(let value), .negative(let value): [value]
        case .index(let value, let index): [value, index]
        case .slice(let value, let start, let end): [value, start, end]
        case .call(let value, let arguments), .filter(let value, _, let arguments): [value] + arguments.map(\.value)
        case .binary(_, let left, let right): [left, right]
        case .comparison(let left, let steps): [left] + steps.map(\.1)
        case .conditional(let value, let condition, let otherwise): [value, condition, otherwise]
        }
    }
}

/// From parts to statements. What is not known is an error that names it, at loading, before any answer depends on it.
struct TemplateParser {
    private static let maxDepth = 24

    private let parts: [TemplatePart]
    private var place = 0
    private var depth = 0
    private var loops = 0

    static func parse(_ source: String) throws -> [TemplateStatement] {
        var lexer = TemplateLexer(source)
        var parser = TemplateParser(parts: try lexer.parts())
        let (statements, end) = try parser.statements(until: [])
        assert(end == nil)
        return statements
    }

    private init(parts: [TemplatePart]) {
        self.parts = parts
    }

    /// Statements up to a block whose first word is one of `ends`; that block's expression is handed on.
    private mutating func statements(until ends: Set<String>) throws -> ([TemplateStatement], (String, ExpressionParser)?) {
        depth += 1
        defer { depth -= 1 }
        guard depth <= Self.maxDepth else { throw TextError("the chat template nests more than \(Self.maxDepth) blocks") }
        var found: [TemplateStatement] = []
        while place < parts.count {
            let part = parts[place]
            place += 1
            switch part {
            case .text(let text): found.append(.text(text))
            case .output(let tokens):
                var parser = ExpressionParser(tokens)
                found.append(.output(try parser.whole()))
            case .block(let tokens):
                guard case .name(let word)? = tokens.first else { throw TextError("the chat template has a block without a name") }
                let parser = ExpressionParser(Array(tokens.dropFirst()))
                if ends.contains(word) { return (found, (word, parser)) }
                found.append(try block(word, parser))
            }
        }
        guard ends.isEmpty else { throw TextError("the chat template lacks {% \(ends.sorted()[0]) %}") }
        return (found, nil)
    }

    private mutating func block(_ word: String, _ rest: ExpressionParser) throws -> TemplateStatement {
        var rest = rest
        switch word {
        case "if": return try condition(&rest)
        case "for": return try loop(&rest)
        case "set": return try set(&rest)
        case "break", "continue":
            try rest.end()
            guard loops > 0 else { throw TextError("the chat template has {% \(word) %} outside of a loop") }
            return word == "break" ? .breakLoop : .continueLoop
        case "generation":  // marks what the assistant says, for training; it changes no text
            try rest.end()
            return .scope(try statements(until: ["endgeneration"]).0)
        default: throw TextError("the chat template has {% \(word) %}, which is not supported here")
        }
    }

    private mutating func condition(_ first: inout ExpressionParser) throws -> TemplateStatement {
        var branches: [(TemplateExpression?, [TemplateStatement])] = []
        var test: TemplateExpression? = try first.whole()
        while true {
            let (body, end) = try statements(until: test == nil ? ["endif"] : ["elif", "else", "endif"])
            branches.append((test, body))
            guard case (let word, var parser)? = end else { throw TextError("the chat template lacks {% endif %}") }
            if word == "elif" {
                test = try parser.whole()
                continue
            }
            try parser.end()
            if word == "endif" { return .condition(branches) }
            test = nil
        }
    }

    private mutating func loop(_ header: inout ExpressionParser) throws -> TemplateStatement {
        var names = [try header.identifier()]
        while header.take(",") { names.append(try header.identifier()) }
        guard header.takeName("in") else { throw TextError("the chat template has a {% for %} without in") }
        let sequence = try header.withoutCondition()
        let filter = header.takeName("if") ? try header.expression() : nil
        guard !header.takeName("recursive") else { throw TextError("the chat template has a recursive loop, which is not supported here") }
        try header.end()
        loops += 1
        let (body, end) = try statements(until: ["else", "endfor"])
        loops -= 1
        guard end?.0 == "else" else { return .loop(names, sequence, filter: filter, body: body, otherwise: []) }
        let (otherwise, _) = try statements(until: ["endfor"])
        return .loop(names, sequence, filter: filter, body: body, otherwise: otherwise)
    }

    private mutating func set(_ header: inout ExpressionParser) throws -> TemplateStatement {
        let name = try header.identifier()
        if header.take(".") {
            let attribute = try header.identifier()
            guard header.take("=") else { throw TextError("the chat template has a {% set %} without =") }
            return .set(.attribute(name, attribute), try header.whole())
        }
        if header.isAtEnd {
            let (body, _) = try statements(until: ["endset"])
            return .setBlock(name, body)
        }
        var names = [name]
        while header.take(",") { names.append(try header.identifier()) }
        guard header.take("=") else { throw TextError("the chat template has a {% set %} without =") }
        return .set(.names(names), try header.whole())
    }
}
