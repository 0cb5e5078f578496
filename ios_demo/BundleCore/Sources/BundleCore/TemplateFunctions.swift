import Foundation

/// A day, as `strftime_now` writes it.
public struct TemplateDate: Sendable {
    public let year: Int
    public let month: Int
    public let day: Int

    /// The day that Llama 3.2's own template falls back to, and that golden renderings have.
    public static let reference = TemplateDate(year: 2024, month: 7, day: 26)

    public init(year: Int, month: Int, day: Int) {
        self.year = year
        self.month = month
        self.day = day
    }

    public init(_ date: Date, calendar: Calendar = Calendar(identifier: .gregorian)) {
        let parts = calendar.dateComponents([.year, .month, .day], from: date)
        self.init(year: parts.year ?? 2024, month: parts.month ?? 1, day: parts.day ?? 1)
    }

    private static let months = [
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
    ]

    /// Six letters of a month for two of the format are the most that it grows by.
    static let growth = 5

    func formatted(_ format: String) throws -> String {
        guard Self.months.indices.contains(month - 1) else { throw TextError("there is no month \(month)") }
        var text = ""
        var isCode = false
        for scalar in format.unicodeScalars {
            guard isCode else {
                isCode = scalar == "%"
                if !isCode { text.unicodeScalars.append(scalar) }
                continue
            }
            isCode = false
            switch scalar {
            case "d": text += String(format: "%02d", day)
            case "m": text += String(format: "%02d", month)
            case "Y": text += String(format: "%04d", year)
            case "y": text += String(format: "%02d", year % 100)
            case "b": text += Self.months[month - 1].prefix(3)
            case "B": text += Self.months[month - 1]
            case "%": text += "%"
            default: throw TextError("the chat template writes the date with %\(scalar), which is not supported here")
            }
        }
        return text
    }
}

/// The functions that transformers gives to templates.
enum TemplateFunctions {
    static let names: Set<String> = ["namespace", "raise_exception", "range", "strftime_now"]

    static func call(
        _ name: String, _ arguments: TemplateArguments, today: TemplateDate, _ budget: TemplateBudget
    ) throws -> TemplateValue {
        switch name {
        case "raise_exception": throw TextError("the chat template refuses the dialog: \(try arguments.text(0, "message").prefix(1000))")
        case "strftime_now":
            let format = try arguments.text(0, "format")
            try budget.make(product(format.utf8.count, TemplateDate.growth))
            return .string(try today.formatted(format))
        case "namespace":
            guard arguments.positional.isEmpty else { throw TextError("the chat template calls namespace with a value without a name") }
            let space = TemplateNamespace()
            for (name, value) in arguments.named { try space.set(name, value) }
            return .namespace(space)
        case "range": return try range(arguments, budget)
        default: throw TextError("the chat template calls \(name), which is not supported here")
        }
    }

    private static func range(_ arguments: TemplateArguments, _ budget: TemplateBudget) throws -> TemplateValue {
        let bounds = arguments.positional.compactMap(\.integer)
        guard (1...2).contains(bounds.count), bounds.count == arguments.positional.count, arguments.named.isEmpty else {
            throw TextError("the chat template calls range with other than one or two numbers, which is not supported here")
        }
        let (start, end) = bounds.count == 1 ? (0, bounds[0]) : (bounds[0], bounds[1])
        guard start < end else { return .list(try TemplateList([])) }
        let (count, isOver) = end.subtractingReportingOverflow(start)
        guard !isOver, count <= TemplateBudget.maxSteps else {
            throw TextError("the chat template asks for a range of more than \(TemplateBudget.maxSteps)")
        }
        try budget.makeEntries(count)
        return .list(try TemplateList((start..<end).map { .int($0) }))
    }
}

/// `+ - * / // %` and the order of values.
struct TemplateArithmetic {
    private let budget: TemplateBudget

    init(_ budget: TemplateBudget) {
        self.budget = budget
    }

    func apply(_ symbol: String, _ left: TemplateValue, _ right: TemplateValue) throws -> TemplateValue {
        if symbol == "+", let a = left.string, let b = right.string {
            try budget.make(sum(a.utf8.count, b.utf8.count))
            return .string(a + b)
        }
        if symbol == "+", case .list(let a) = left, case .list(let b) = right {
            try budget.makeEntries(a.items.count + b.items.count)
            return .list(try TemplateList(a.items + b.items))
        }
        if symbol == "*", let text = left.string ?? right.string, let count = left.integer ?? right.integer {
            // Nothing, however often, is made at once.
            guard !text.isEmpty, count > 0 else { return .string("") }
            try budget.make(product(text.utf8.count, count))
            return .string(String(repeating: text, count: count))
        }
        if let a = left.integer, let b = right.integer, symbol != "/" { return .int(try Self.integer(symbol, a, b)) }
        guard let a = left.number, let b = right.number else {
            throw TextError("the chat template joins values of different kinds with \(symbol)")
        }
        guard b != 0 || !["/", "//", "%"].contains(symbol) else { throw TextError("the chat template divides by zero") }
        switch symbol {
        case "+": return .double(a + b)
        case "-": return .double(a - b)
        case "*": return .double(a * b)
        case "/": return .double(a / b)
        case "//": return .double((a / b).rounded(.down))
        default: return .double(a - b * (a / b).rounded(.down))
        }
    }

    private static func integer(_ symbol: String, _ a: Int, _ b: Int) throws -> Int {
        let (value, overflows): (Int, Bool)
        switch symbol {
        case "+": (value, overflows) = a.addingReportingOverflow(b)
        case "-": (value, overflows) = a.subtractingReportingOverflow(b)
        case "*": (value, overflows) = a.multipliedReportingOverflow(by: b)
        default:
            guard b != 0 else { throw TextError("the chat template divides by zero") }
            let (quotient, isOver) = a.dividedReportingOverflow(by: b)
            guard !isOver else { throw TextError("the chat template has a number of over 64 bits") }
            // Python rounds down, Swift towards zero.
            let rest = a % b
            let below = rest != 0 && (rest < 0) != (b < 0)
            return symbol == "//" ? quotient - (below ? 1 : 0) : rest + (below ? b : 0)
        }
        guard !overflows else { throw TextError("the chat template has a number of over 64 bits") }
        return value
    }

    func isOrdered(_ symbol: String, _ left: TemplateValue, _ right: TemplateValue) throws -> Bool {
        let isLess: Bool
        let isMore: Bool
        if let a = left.number, let b = right.number {
            (isLess, isMore) = (a < b, a > b)
        } else if let a = left.string, let b = right.string {
            let (a, b) = (try Unmarked(a, budget).text.unicodeScalars, try Unmarked(b, budget).text.unicodeScalars)
            isLess = a.lexicographicallyPrecedes(b)
            isMore = b.lexicographicallyPrecedes(a)
        } else {
            throw TextError("the chat template compares values of different kinds with \(symbol)")
        }
        switch symbol {
        case "<": return isLess
        case ">": return isMore
        case "<=": return !isMore
        default: return !isLess
        }
    }
}
