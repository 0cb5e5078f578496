/// A dialog as ids, through the chat template. What anybody typed stays text, so nobody who pastes a web page lets it speak as
/// the system.
public struct DialogEncoder: Sendable {
    public let tokenizer: Tokenizer
    public let template: ChatTemplate
    private let contentParts: Bool
    private let controlIDs: Set<Int>
    private let matcher: TokenMatcher
    private let typed: TypedText

    /// With `contentParts`, the template wants content as a list of parts; `beginsOrEnds` are the ids of BOS and the end tokens.
    public init(tokenizer: Tokenizer, template: ChatTemplate, beginsOrEnds: Set<Int>, contentParts: Bool = false) {
        self.tokenizer = tokenizer
        self.template = template
        self.contentParts = contentParts
        let tokens = tokenizer.controlTokens(literals: template.literals, beginsOrEnds: beginsOrEnds)
        controlIDs = Set(tokens.map(\.id))
        matcher = TokenMatcher(tokens)
        typed = TypedText(tokens)
    }

    /// Ids of text that is no dialog, without BOS; control tokens that it spells stay text.
    public func encode(_ text: String) throws -> [Int] {
        try tokenizer.encode(text, where: controlIDs.contains)
    }

    /// A dialog as the template writes it.
    public func render(
        _ messages: [JSONValue], addGenerationPrompt: Bool = true, tools: [JSONValue]? = nil, today: TemplateDate = .reference
    ) throws -> String {
        try template.render(messages.map(given), addGenerationPrompt: addGenerationPrompt, tools: tools, today: today)
    }

    /// Ids of a dialog; control tokens that any string of a message or a tool spells stay text.
    public func encode(
        _ messages: [JSONValue], addGenerationPrompt: Bool = true, tools: [JSONValue]? = nil, today: TemplateDate = .reference
    ) throws -> [Int] {
        let rendered = try template.render(
            messages.map { typed.marked(given($0)) }, addGenerationPrompt: addGenerationPrompt, tools: tools?.map(typed.marked),
            today: today)
        let plain = TypedText.withoutMarks(rendered)
        let pieces = matcher.split(rendered) { _, rest in !rest.starts(with: TypedText.markBytes) }.map { piece in
            if case .text(let text) = piece { AddedTokens.Piece.text(TypedText.withoutMarks(text)) } else { piece }
        }
        // Nobody typed a control token: the text is the tokenizer's as a whole.
        if pieces == matcher.split(plain, where: { _, _ in true }) { return try tokenizer.encode(plain, controlTokens: true) }
        return try pieces.flatMap { piece in
            switch piece {
            case .token(let id): [id]
            case .text(let text): try encode(text)
            }
        }
    }

    /// A message as the template wants it.
    private func given(_ message: JSONValue) -> JSONValue {
        guard contentParts, case .object(var members) = message, let content = members["content"], content.stringValue != nil else {
            return message
        }
        members["content"] = .array([.object(JSONObject([("type", .string("text")), ("text", content)]))])
        return .object(members)
    }
}
