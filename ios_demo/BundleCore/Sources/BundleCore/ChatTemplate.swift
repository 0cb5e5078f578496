import Foundation

/// A compiled chat template: the part of Jinja that Llama-like templates use. Anything else is refused when it is compiled, or
/// when it is reached, with its name.
public struct ChatTemplate: @unchecked Sendable {
    // Statements are values that nothing changes; a namespace, which is shared, is made anew in each rendering.
    private let statements: [TemplateStatement]
    let source: String
    private let bosToken: String
    private let eosToken: String

    /// The longest published ones have about 20,000.
    public static let maxCharacters = 1 << 17

    public init(_ source: String, bosToken: String = "", eosToken: String = "") throws {
        let count = source.unicodeScalars.count
        guard count <= Self.maxCharacters else {
            throw TextError("the chat template has \(count) characters; at most \(Self.maxCharacters) are accepted")
        }
        statements = try TemplateParser.parse(source)
        self.source = source
        self.bosToken = bosToken
        self.eosToken = eosToken
    }

    /// The dialog as one string, control tokens and BOS included.
    public func render(
        _ messages: [JSONValue], addGenerationPrompt: Bool = true, tools: [JSONValue]? = nil, today: TemplateDate = .reference
    ) throws -> String {
        let variables: [String: TemplateValue] = [
            "messages": try TemplateValue(.array(messages)),
            "add_generation_prompt": .bool(addGenerationPrompt),
            "tools": try tools.map { try TemplateValue(.array($0)) } ?? .none,
            "bos_token": .string(bosToken),
            "eos_token": .string(eosToken),
        ]
        var run = TemplateRun(variables: variables, today: today)
        return try run.render(statements)
    }
}
