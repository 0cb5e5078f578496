/// What one rendering may cost. A template is a program from a stranger: whatever it is about to do, or to make, is counted
/// here before it is done or made, and beyond a limit the rendering ends with a `TextError`.
final class TemplateBudget {
    /// Turns of loops.
    static let maxSteps = 50_000
    /// Bytes that are looked at or made, whether they are still in use or not; a long dialog of Llama 3.2 takes a hundredth.
    static let maxWork = 1 << 26
    /// Bytes of one value.
    static let maxValueBytes = 1 << 22
    /// Bytes of text that is written.
    static let maxOutputBytes = 1 << 24
    /// What an element of a list, or a member of an object, counts for.
    static let entryBytes = 64
    /// What evaluating an expression, or executing a statement, counts for.
    static let nodeBytes = 64

    private var steps = 0
    private(set) var workBytes = 0
    private var outputBytes = 0

    /// The next turn of a loop.
    func step() throws {
        steps += 1
        guard steps <= Self.maxSteps else { throw TextError("the chat template takes more than \(Self.maxSteps) steps") }
    }

    /// To look at so many bytes.
    func work(_ bytes: Int) throws {
        workBytes = workBytes.addingReportingOverflow(bytes).partialValue
        guard (0...Self.maxWork).contains(workBytes) else {
            throw TextError("the chat template takes more work than \(Self.maxWork) bytes to look at or to make")
        }
    }

    /// To evaluate or execute a part of the template.
    func node() throws {
        try work(Self.nodeBytes)
    }

    /// Whether a value of so many bytes may be made; nil: more than an integer can say.
    func check(_ bytes: Int?) throws {
        guard let bytes, bytes <= Self.maxValueBytes else {
            throw TextError("the chat template makes a value of more than \(Self.maxValueBytes) bytes")
        }
    }

    /// To make a text of so many bytes.
    func make(_ bytes: Int?) throws {
        try check(bytes)
        try work(bytes ?? 0)
    }

    /// To make a list or an object of so many entries.
    func makeEntries(_ count: Int) throws {
        try make(product(count, Self.entryBytes))
    }

    /// To write so many bytes.
    func output(_ bytes: Int) throws {
        outputBytes += bytes
        guard outputBytes <= Self.maxOutputBytes else { throw TextError("the chat template writes over \(Self.maxOutputBytes) bytes") }
        try work(bytes)
    }
}

/// nil where it overflows, or where a factor is nil.
func product(_ left: Int?, _ right: Int?) -> Int? {
    guard let left, let (value, isOver) = right?.multipliedReportingOverflow(by: left), !isOver else { return nil }
    return value
}

/// nil where it overflows, or where a summand is nil.
func sum(_ left: Int?, _ right: Int?) -> Int? {
    guard let left, let (value, isOver) = right?.addingReportingOverflow(left), !isOver else { return nil }
    return value
}
