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

    func formatted(_ format: String) throws -> String {
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

    static func call(_ name: String, _ arguments: TemplateFilters.Arguments, today: TemplateDate) throws -> TemplateValue {
        switch name {
        case "raise_exception": throw TextError("the chat template refuses the dialog: \(try arguments.text(0, "message"))")
        case "strftime_now": return .string(try today.formatted(try arguments.text(0, "format")))
        case "namespace":
            let space = TemplateNamespace()
            space.values = arguments.named
            return .namespace(space)
        case "range":
            let bounds = arguments.positional.compactMap(\.integer)
            guard (1...2).contains(bounds.count), bounds.count == arguments.positional.count else {
                throw TextError("the chat template calls range with a step, which is not supported here")
            }
            let (start, end) = bounds.count == 1 ? (0, bounds[0]) : (bounds[0], bounds[1])
            guard end < start || end.subtractingReportingOverflow(start).partialValue <= TemplateRun.maxSteps else {
                throw TextError("the chat template asks for a range of more than \(TemplateRun.maxSteps)")
            }
            return .list((start..<max(start, end)).map { .int($0) })
        default: throw TextError("the chat template calls \(name), which is not supported here")
        }
    }
}

/// `+ - * / // %` and the order of values.
enum TemplateArithmetic {
    static func apply(_ symbol: String, _ left: TemplateValue, _ right: TemplateValue) throws -> TemplateValue {
        if symbol == "+", let a = left.string, let b = right.string { return .string(a + b) }
        if symbol == "+", case .list(let a) = left, case .list(let b) = right { return .list(a + b) }
        if symbol == "*", let text = left.string ?? right.string, let count = left.integer ?? right.integer {
            return .string(try repeated(text, max(count, 0)))
        }
        if let a = left.integer, let b = right.integer, symbol != "/" { return .int(try integer(symbol, a, b)) }
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

    private static func repeated(_ text: String, _ count: Int) throws -> String {
        let (size, overflows) = text.utf8.count.multipliedReportingOverflow(by: count)
        guard !overflows, size <= TemplateRun.maxValueSize else {
            throw TextError("the chat template makes a value of more than \(TemplateRun.maxValueSize) items")
        }
        return String(repeating: text, count: count)
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

    static func isOrdered(_ symbol: String, _ left: TemplateValue, _ right: TemplateValue) throws -> Bool {
        let isLess: Bool
        let isMore: Bool
        if let a = left.number, let b = right.number {
            (isLess, isMore) = (a < b, a > b)
        } else if let a = left.string, let b = right.string {
            isLess = a.unicodeScalars.lexicographicallyPrecedes(b.unicodeScalars)
            isMore = b.unicodeScalars.lexicographicallyPrecedes(a.unicodeScalars)
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
