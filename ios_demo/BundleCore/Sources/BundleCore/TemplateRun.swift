import Foundation

/// One rendering.
struct TemplateRun {
    private enum Flow {
        case goesOn, breaks, continues
    }

    private let today: TemplateDate
    private let budget = TemplateBudget()
    private var scopes: [[String: TemplateValue]]
    private var output = ""
    private var isCapturing = false

    init(variables: [String: TemplateValue], today: TemplateDate) {
        scopes = [variables]
        self.today = today
    }

    mutating func render(_ statements: [TemplateStatement]) throws -> String {
        _ = try run(statements)
        return output
    }

    private mutating func write(_ text: String) throws {
        try budget.output(text.utf8.count)
        if isCapturing { try budget.check(output.utf8.count + text.utf8.count) }
        output += text
    }

    // MARK: statements

    private mutating func run(_ statements: [TemplateStatement]) throws -> Flow {
        for statement in statements {
            let flow = try run(statement)
            if flow != .goesOn { return flow }
        }
        return .goesOn
    }

    private mutating func run(_ statement: TemplateStatement) throws -> Flow {
        try budget.node()
        switch statement {
        case .text(let text): try write(text)
        case .output(let expression): try write(try evaluate(expression).text())
        case .condition(let branches): return try runBranch(branches)
        case .loop(let names, let sequence, let filter, let body, let otherwise):
            return try runLoop(names, sequence, filter, body, otherwise)
        case .set(let target, let expression): try assign(target, try evaluate(expression))
        case .setBlock(let name, let body): scopes[scopes.count - 1][name] = .string(try captured(body))
        case .scope(let body):
            scopes.append([:])
            defer { scopes.removeLast() }
            return try run(body)
        case .breakLoop: return .breaks
        case .continueLoop: return .continues
        }
        return .goesOn
    }

    private mutating func captured(_ body: [TemplateStatement]) throws -> String {
        let before = (output, isCapturing)
        (output, isCapturing) = ("", true)
        _ = try run(body)
        defer { (output, isCapturing) = before }
        return output
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
            guard case .namespace(let space) = lookUp(name) else {
                throw TextError("the chat template sets a field of \(name), which is no namespace")
            }
            try space.set(attribute, value)
        case .names(let names): try bind(names, value)
        }
    }

    private mutating func bind(_ names: [String], _ value: TemplateValue) throws {
        if names.count == 1 {
            scopes[scopes.count - 1][names[0]] = value
            return
        }
        let parts = try value.items(budget)
        guard parts.count == names.count else { throw TextError("the chat template takes \(names.count) values out of \(parts.count)") }
        for (name, part) in zip(names, parts) { scopes[scopes.count - 1][name] = part }
    }

    private mutating func runLoop(
        _ names: [String], _ sequence: TemplateExpression, _ filter: TemplateExpression?, _ body: [TemplateStatement],
        _ otherwise: [TemplateStatement]
    ) throws -> Flow {
        var items = try evaluate(sequence).items(budget)
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
            try budget.step()
            // What a turn sets is gone in the next, as in Jinja.
            scopes[scopes.count - 1] = ["loop": try Self.loop(place, items)]
            try bind(names, items[place])
            if try run(body) == .breaks { break }
        }
        return .goesOn
    }

    private static func loop(_ place: Int, _ items: [TemplateValue]) throws -> TemplateValue {
        .object(
            try TemplateObject([
                ("index", .int(place + 1)), ("index0", .int(place)), ("first", .bool(place == 0)),
                ("last", .bool(place == items.count - 1)), ("length", .int(items.count)), ("revindex", .int(items.count - place)),
                ("revindex0", .int(items.count - place - 1)), ("previtem", place > 0 ? items[place - 1] : .undefined),
                ("nextitem", place + 1 < items.count ? items[place + 1] : .undefined),
            ]))
    }

    private func lookUp(_ name: String) -> TemplateValue {
        for scope in scopes.reversed() {
            if let value = scope[name] { return value }
        }
        return .undefined
    }

    // MARK: expressions

    private mutating func evaluate(_ expression: TemplateExpression) throws -> TemplateValue {
        try budget.node()
        switch expression {
        case .literal(let value): return value
        case .name(let name): return TemplateFunctions.names.contains(name) ? .bool(true) : lookUp(name)
        case .list(let values): return try list(values)
        case .dictionary(let entries): return try dictionary(entries)
        case .attribute(let base, let name): return try member(evaluate(base), name)
        case .index(let base, let index): return try element(evaluate(base), evaluate(index))
        case .slice(let base, let start, let end): return try slice(evaluate(base), evaluate(start), evaluate(end))
        case .call(let callee, let arguments): return try call(callee, evaluated(arguments))
        case .filter(let value, let name, let arguments): return try filter(name, evaluate(value), evaluated(arguments))
        case .test(let value, let name): return .bool(try TemplateFilters.test(name, evaluate(value)))
        case .not(let value): return .bool(!(try evaluate(value).isTrue))
        case .negative(let value): return try arithmetic("-", .int(0), evaluate(value))
        case .binary(let symbol, let left, let right): return try binary(symbol, left, right)
        case .comparison(let left, let steps): return .bool(try compare(evaluate(left), steps))
        case .conditional(let value, let condition, let otherwise): return try choose(value, condition, otherwise)
        }
    }

    private mutating func list(_ values: [TemplateExpression]) throws -> TemplateValue {
        try budget.makeEntries(values.count)
        return .list(try TemplateList(values.map { try evaluate($0) }))
    }

    private mutating func dictionary(_ entries: [(TemplateExpression, TemplateExpression)]) throws -> TemplateValue {
        try budget.makeEntries(entries.count)
        return .object(try TemplateObject(entries.map { (try evaluate($0).text(), try evaluate($1)) }))
    }

    private mutating func choose(
        _ value: TemplateExpression, _ condition: TemplateExpression, _ otherwise: TemplateExpression?
    ) throws -> TemplateValue {
        if try evaluate(condition).isTrue { return try evaluate(value) }
        return try otherwise.map { try evaluate($0) } ?? .undefined
    }

    private func filter(_ name: String, _ value: TemplateValue, _ arguments: TemplateArguments) throws -> TemplateValue {
        try TemplateFilters.apply(name, to: value, arguments, budget)
    }

    private func arithmetic(_ symbol: String, _ left: TemplateValue, _ right: TemplateValue) throws -> TemplateValue {
        try TemplateArithmetic(budget).apply(symbol, left, right)
    }

    private mutating func evaluated(_ arguments: [TemplateArgument]) throws -> TemplateArguments {
        var positional: [TemplateValue] = []
        var named: [String: TemplateValue] = [:]
        for argument in arguments {
            let value = try evaluate(argument.value)
            if let name = argument.name { named[name] = value } else { positional.append(value) }
        }
        return TemplateArguments(positional: positional, named: named)
    }

    private func member(_ value: TemplateValue, _ name: String) throws -> TemplateValue {
        guard !value.isUndefined else { throw TextError("the chat template asks for \(name) of what is not defined") }
        return value.member(name)
    }

    private func element(_ value: TemplateValue, _ index: TemplateValue) throws -> TemplateValue {
        if let name = index.string { return try member(value, name) }
        guard let place = index.integer else { throw TextError("the chat template has an index that is no number or name") }
        guard !value.isUndefined else { throw TextError("the chat template asks for an item of what is not defined") }
        if case .object = value { return .undefined }
        if value.string != nil { return try value.character(place, budget) }
        guard let count = try value.count(budget) else { throw TextError("the chat template asks for an item of what has none") }
        let positive = place < 0 ? place + count : place
        return (0..<count).contains(positive) ? try value.items(budget)[positive] : .undefined
    }

    private func slice(_ value: TemplateValue, _ start: TemplateValue, _ end: TemplateValue) throws -> TemplateValue {
        guard let count = try value.count(budget) else { throw TextError("the chat template takes a part of what has no items") }
        func bound(_ value: TemplateValue, _ otherwise: Int) throws -> Int {
            guard !value.isNone else { return otherwise }
            guard let place = value.integer else { throw TextError("the chat template has a bound that is no number") }
            return min(max(place < 0 ? place + count : place, 0), count)
        }
        let from = try bound(start, 0)
        let length = max(from, try bound(end, count)) - from
        if let text = value.string {
            try budget.make(text.utf8.count)
            return .string(try Unmarked(text, budget).cut(characters: from..<from + length))
        }
        try budget.makeEntries(length)
        return .list(try TemplateList(Array(try value.items(budget)[from..<from + length])))
    }

    private mutating func call(_ callee: TemplateExpression, _ arguments: TemplateArguments) throws -> TemplateValue {
        switch callee {
        case .name(let name): return try TemplateFunctions.call(name, arguments, today: today, budget)
        case .attribute(let base, let name): return try TemplateFilters.call(name, on: evaluate(base), arguments, budget)
        default: throw TextError("the chat template calls what is no function")
        }
    }

    private mutating func binary(_ symbol: String, _ left: TemplateExpression, _ right: TemplateExpression) throws -> TemplateValue {
        let first = try evaluate(left)
        switch symbol {
        case "and": return first.isTrue ? try evaluate(right) : first
        case "or": return first.isTrue ? first : try evaluate(right)
        case "~": return try arithmetic("+", .string(first.text()), .string(evaluate(right).text()))
        default: return try arithmetic(symbol, first, evaluate(right))
        }
    }

    private mutating func compare(_ left: TemplateValue, _ steps: [(String, TemplateExpression)]) throws -> Bool {
        var left = left
        for (symbol, expression) in steps {
            let right = try evaluate(expression)
            let holds =
                switch symbol {
                case "==": try left.equals(right, budget)
                case "!=": try !left.equals(right, budget)
                case "in": try right.contains(left, budget)
                case "not in": try !right.contains(left, budget)
                default: try TemplateArithmetic(budget).isOrdered(symbol, left, right)
                }
            guard holds else { return false }
            left = right
        }
        return true
    }
}
