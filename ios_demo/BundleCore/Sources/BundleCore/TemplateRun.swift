import Foundation

/// One rendering. A template is a program from a stranger, so turns of loops, sizes of values and the output are counted.
struct TemplateRun {
    /// The limits of `llama_edge/text/chat_template.py`.
    static let maxSteps = 50_000
    static let maxValueSize = 1 << 22
    static let maxOutput = 1 << 24

    private enum Flow {
        case goesOn, breaks, continues
    }

    private let today: TemplateDate
    private var scopes: [[String: TemplateValue]]
    private var output = ""
    private var steps = 0

    init(variables: [String: TemplateValue], today: TemplateDate) {
        scopes = [variables]
        self.today = today
    }

    mutating func render(_ statements: [TemplateStatement]) throws -> String {
        _ = try run(statements)
        return output
    }

    private mutating func write(_ text: String) throws {
        output += text
        guard output.utf8.count <= Self.maxOutput else { throw TextError("the chat template writes over \(Self.maxOutput) bytes") }
    }

    private func measured(_ value: TemplateValue) throws -> TemplateValue {
        let size =
            switch value {
            case .string(let text): text.utf8.count
            default: value.count ?? 0
            }
        guard size <= Self.maxValueSize else { throw TextError("the chat template makes a value of more than \(Self.maxValueSize) items") }
        return value
    }

    // MARK: statements

    private mutating func run(_ statements: [TemplateStatement]) throws -> Flow {
        for statement in statements {
            switch statement {
            case .text(let text): try write(text)
            case .output(let expression): try write(try evaluate(expression).text())
            case .condition(let branches):
                let flow = try runBranch(branches)
                if flow != .goesOn { return flow }
            case .loop(let names, let sequence, let filter, let body, let otherwise):
                let flow = try runLoop(names, sequence, filter, body, otherwise)
                if flow != .goesOn { return flow }
            case .set(let target, let expression): try assign(target, try evaluate(expression))
            case .setBlock(let name, let body):
                let before = output
                output = ""
                _ = try run(body)
                let made = output
                output = before
                scopes[scopes.count - 1][name] = try measured(.string(made))
            case .breakLoop: return .breaks
            case .continueLoop: return .continues
            }
        }
        return .goesOn
    }

    private mutating func runBranch(_ branches: [(TemplateExpression?, [TemplateStatement])]) throws -> Flow {
        for (test, body) in branches {
            if try test.map({ try evaluate($0).isTrue }) ?? true { return try run(body) }
        }
        return .goesOn
    }

    private mutating func assign(_ target: TemplateTarget, _ value: TemplateValue) throws {
        switch target {
        case .attribute(let name, let attribute):
            guard case .namespace(let space) = lookUp(name) else { throw TextError("the chat template sets a field of \(name), which is no namespace") }
            space.values[attribute] = value
        case .names(let names): try bind(names, value)
        }
    }

    private mutating func bind(_ names: [String], _ value: TemplateValue) throws {
        if names.count == 1 {
            scopes[scopes.count - 1][names[0]] = value
            return
        }
        let parts = try value.items()
        guard parts.count == names.count else { throw TextError("the chat template takes \(names.count) values out of \(parts.count)") }
        for (name, part) in zip(names, parts) { scopes[scopes.count - 1][name] = part }
    }

    private mutating func runLoop(
        _ names: [String], _ sequence: TemplateExpression, _ filter: TemplateExpression?, _ body: [TemplateStatement],
        _ otherwise: [TemplateStatement]
    ) throws -> Flow {
        var items = try evaluate(sequence).items()
        scopes.append([:])
        defer { scopes.removeLast() }
        if let filter {
            items = try items.filter { item in
                try bind(names, item)
                return try evaluate(filter).isTrue
            }
        }
        guard !items.isEmpty else { return try run(otherwise) }
        for place in items.indices {
            steps += 1
            guard steps <= Self.maxSteps else { throw TextError("the chat template takes more than \(Self.maxSteps) steps") }
            // What a turn sets is gone in the next, as in Jinja.
            scopes[scopes.count - 1] = ["loop": Self.loop(place, items)]
            try bind(names, items[place])
            if try run(body) == .breaks { break }
        }
        return .goesOn
    }

    private static func loop(_ place: Int, _ items: [TemplateValue]) -> TemplateValue {
        .object([
            ("index", .int(place + 1)), ("index0", .int(place)), ("first", .bool(place == 0)),
            ("last", .bool(place == items.count - 1)), ("length", .int(items.count)), ("revindex", .int(items.count - place)),
            ("revindex0", .int(items.count - place - 1)), ("previtem", place > 0 ? items[place - 1] : .undefined),
            ("nextitem", place + 1 < items.count ? items[place + 1] : .undefined),
        ])
    }

    private func lookUp(_ name: String) -> TemplateValue {
        for scope in scopes.reversed() {
            if let value = scope[name] { return value }
        }
        return .undefined
    }

    // MARK: expressions

    private mutating func evaluate(_ expression: TemplateExpression) throws -> TemplateValue {
        switch expression {
        case .literal(let value): return value
        case .name(let name): return TemplateFunctions.names.contains(name) ? .bool(true) : lookUp(name)
        case .list(let values): return .list(try values.map { try evaluate($0) })
        case .dictionary(let entries): return .object(try entries.map { (try evaluate($0).text(), try evaluate($1)) })
        case .attribute(let base, let name): return try member(evaluate(base), name)
        case .index(let base, let index): return try element(evaluate(base), evaluate(index))
        case .slice(let base, let start, let end): return try slice(evaluate(base), start, end)
        case .call(let callee, let arguments): return try measured(try call(callee, evaluated(arguments)))
        case .filter(let value, let name, let arguments):
            return try measured(try TemplateFilters.apply(name, to: evaluate(value), evaluated(arguments)))
        case .test(let value, let name): return .bool(try TemplateFilters.test(name, evaluate(value)))
        case .not(let value): return .bool(!(try evaluate(value).isTrue))
        case .negative(let value): return try TemplateArithmetic.apply("-", .int(0), evaluate(value))
        case .binary(let symbol, let left, let right): return try binary(symbol, left, right)
        case .comparison(let left, let steps): return .bool(try compare(evaluate(left), steps))
        case .conditional(let value, let condition, let otherwise):
            if try evaluate(condition).isTrue { return try evaluate(value) }
            return try otherwise.map { try evaluate($0) } ?? .undefined
        }
    }

    private mutating func evaluated(_ arguments: [TemplateArgument]) throws -> TemplateFilters.Arguments {
        var positional: [TemplateValue] = []
        var named: [String: TemplateValue] = [:]
        for argument in arguments {
            let value = try evaluate(argument.value)
            if let name = argument.name { named[name] = value } else { positional.append(value) }
        }
        return TemplateFilters.Arguments(positional: positional, named: named)
    }

    private func member(_ value: TemplateValue, _ name: String) throws -> TemplateValue {
        if case .undefined = value { throw TextError("the chat template asks for \(name) of what is not defined") }
        return value.member(name)
    }

    private func element(_ value: TemplateValue, _ index: TemplateValue) throws -> TemplateValue {
        if let name = index.string { return try member(value, name) }
        guard let place = index.integer else { throw TextError("the chat template has an index that is no number or name") }
        if case .undefined = value { throw TextError("the chat template asks for an item of what is not defined") }
        if case .object = value { return .undefined }
        let items = try value.items()
        let positive = place < 0 ? place + items.count : place
        return items.indices.contains(positive) ? items[positive] : .undefined
    }

    private mutating func slice(
        _ value: TemplateValue, _ start: TemplateExpression?, _ end: TemplateExpression?
    ) throws -> TemplateValue {
        guard let count = value.count else { throw TextError("the chat template takes a part of what has no items") }
        func bound(_ value: TemplateValue?, _ otherwise: Int) throws -> Int {
            guard let value else { return otherwise }
            if case .none = value { return otherwise }
            guard let place = value.integer else { throw TextError("the chat template has a bound that is no number") }
            return min(max(place < 0 ? place + count : place, 0), count)
        }
        let from = try bound(start.map { try evaluate($0) }, 0)
        let to = max(from, try bound(end.map { try evaluate($0) }, count))
        let items = Array(try value.items()[from..<to])
        return value.string == nil ? .list(items) : .string(items.compactMap(\.string).joined())
    }

    private mutating func call(_ callee: TemplateExpression, _ arguments: TemplateFilters.Arguments) throws -> TemplateValue {
        switch callee {
        case .name(let name): return try TemplateFunctions.call(name, arguments, today: today)
        case .attribute(let base, let name): return try TemplateFilters.call(name, on: evaluate(base), arguments)
        default: throw TextError("the chat template calls what is no function")
        }
    }

    private mutating func binary(_ symbol: String, _ left: TemplateExpression, _ right: TemplateExpression) throws -> TemplateValue {
        let first = try evaluate(left)
        switch symbol {
        case "and": return first.isTrue ? try evaluate(right) : first
        case "or": return first.isTrue ? first : try evaluate(right)
        case "~": return try measured(.string(try first.text() + evaluate(right).text()))
        default: return try measured(try TemplateArithmetic.apply(symbol, first, evaluate(right)))
        }
    }

    private mutating func compare(_ left: TemplateValue, _ steps: [(String, TemplateExpression)]) throws -> Bool {
        var left = left
        for (symbol, expression) in steps {
            let right = try evaluate(expression)
            let holds =
                switch symbol {
                case "==": left.equals(right)
                case "!=": !left.equals(right)
                case "in": try right.contains(left)
                case "not in": try !right.contains(left)
                default: try TemplateArithmetic.isOrdered(symbol, left, right)
                }
            guard holds else { return false }
            left = right
        }
        return true
    }
}
