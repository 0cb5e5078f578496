import Foundation

/// A dialog as ids, through the chat template. What anybody typed stays text, so nobody who pastes a web page lets it speak as
/// the system.
public struct DialogEncoder: Sendable {
    /// Breaks a control token that a message spells, while the dialog is rendered: a noncharacter, in no text.
    private static let quote = Unicode.Scalar(0xFDD0 as UInt32)!
    private static let quoteBytes = Array(String(quote).utf8)

    public let tokenizer: Tokenizer
    public let template: ChatTemplate
    private let controlTokens: [Int: String]
    private let matcher: TokenMatcher

    public init(tokenizer: Tokenizer, template: ChatTemplate) {
        self.tokenizer = tokenizer
        self.template = template
        let tokens = tokenizer.controlTokens(template: template.source)
        controlTokens = Dictionary(tokens.map { ($0.id, $0.content) }, uniquingKeysWith: { first, _ in first })
        matcher = TokenMatcher(tokens)
    }

    /// Ids of text that is no dialog, without BOS; control tokens that it spells stay text.
    public func encode(_ text: String) throws -> [Int] {
        try tokenizer.encode(text, where: { controlTokens[$0] != nil })
    }

    /// Ids of a dialog; control tokens that any string of a message or a tool spells stay text.
    public func encode(
        _ messages: [JSONValue], addGenerationPrompt: Bool = true, tools: [JSONValue]? = nil, today: TemplateDate = .reference
    ) throws -> [Int] {
        let rendered = try template.render(
            messages.map(quoted), addGenerationPrompt: addGenerationPrompt, tools: tools?.map(quoted), today: today)
        guard rendered.unicodeScalars.contains(Self.quote) else { return try tokenizer.encode(rendered, controlTokens: true) }
        return try matcher.split(rendered) { _, rest in !rest.starts(with: Self.quoteBytes) }.flatMap { piece in
            switch piece {
            case .token(let id): [id]
            case .text(let text): try encode(String(String.UnicodeScalarView(text.unicodeScalars.filter { $0 != Self.quote })))
            }
        }
    }

    /// A message, or a part of one, in which no string spells a control token any more.
    private func quoted(_ value: JSONValue) -> JSONValue {
        switch value {
        case .string(let text): .string(quoted(text))
        case .array(let values): .array(values.map(quoted))
        case .object(let object): .object(JSONObject(object.members.map { (quoted(key: $0.key), quoted($0.value)) }))
        default: value
        }
    }

    private func quoted(_ text: String) -> String {
        var clean = String.UnicodeScalarView()
        for scalar in text.unicodeScalars { clean.append(scalar == Self.quote ? "\u{FFFD}" : scalar) }
        var quoted = String.UnicodeScalarView()
        for piece in matcher.split(String(clean), where: { _, _ in true }) {
            switch piece {
            case .text(let plain): quoted.append(contentsOf: plain.unicodeScalars)
            case .token(let id):
                var scalars = (controlTokens[id] ?? "").unicodeScalars
                scalars.insert(Self.quote, at: scalars.index(after: scalars.startIndex))
                quoted.append(contentsOf: scalars)
            }
        }
        return closed(quoted)
    }

    /// The text, whose end nothing that the template writes behind it can complete to a control token. The template may trim
    /// white space first.
    private func closed(_ text: String.UnicodeScalarView) -> String {
        let end = text.lastIndex { !pythonSpaces.contains($0) }.map { text.index(after: $0) } ?? text.startIndex
        guard matcher.unfinished(in: Array(String(text[..<end]).utf8)[...]) > 0 else { return String(text) }
        var closed = text
        closed.insert(Self.quote, at: end)
        return String(closed)
    }

    /// A member's name; the words that a template looks up are left as they are.
    private func quoted(key: String) -> String {
        key.utf8.allSatisfy { $0 == UInt8(ascii: "_") || ("a"..."z").contains(Unicode.Scalar($0)) } ? key : quoted(key)
    }
}
