import Foundation

/// A compiled chat template: the part of Jinja that Llama-like templates use. Anything else is refused when it is compiled, or
/// when it is reached, with its name.
public struct ChatTemplate: @unchecked Sendable {
    // Statements are values that nothing changes; a namespace, which is shared, is made anew in each rendering.
    private let statements: [TemplateStatement]
    /// The template's own text and string constants.
    let literals: Set<ExactString>
    private let specialTokens: [String: String]

    /// The longest published ones have about 20,000.
    public static let maxCharacters = 1 << 17

    /// `specialTokens` by the names under which the template writes them, `bos_token` and others.
    public init(_ source: String, specialTokens: [String: String] = [:]) throws {
        let count = source.unicodeScalars.count
        guard count <= Self.maxCharacters else {
            throw TextError("the chat template has \(count) characters; at most \(Self.maxCharacters) are accepted")
        }
        statements = try TemplateParser.parse(source)
        literals = TemplateLiterals(statements).found
        self.specialTokens = specialTokens
    }

    /// The dialog as one string, control tokens and BOS included.
    public func render(
        _ messages: [JSONValue], addGenerationPrompt: Bool = true, tools: [JSONValue]? = nil, today: TemplateDate = .reference
    ) throws -> String {
        let dialog: [String: TemplateValue] = [
            "messages": try TemplateValue(.array(messages)),
            "add_generation_prompt": .bool(addGenerationPrompt),
            "tools": try tools.map { try TemplateValue(.array($0)) } ?? .none,
            "documents": .none,
        ]
        let variables = dialog.merging(specialTokens.mapValues { .string($0) }) { ofDialog, _ in ofDialog }
        var run = TemplateRun(variables: variables, today: today)
        return try run.render(statements)
    }
}
