import Foundation

/// Which tokens end a turn, by the rules of `llama_edge/text/end_tokens.py`.
enum EndTokens {
    /// Tokens that end a document, whatever the template.
    private static let ofDocument = ["<|end_of_text|>", "<|endoftext|>"]
    /// A template that mentions the first token lets the model end its turn by any of the second.
    private static let ofTurn = [("<|eot_id|>", ["<|eot_id|>", "<|eom_id|>"]), ("<|im_end|>", ["<|im_end|>"])]

    /// Those that the files name and that count: generation_config.json alone where it names any, for config.json often keeps a
    /// default that is an ordinary token.
    static func named(generation: [Int], model: [Int], main: Int?, _ tokenizer: Tokenizer) -> [Int] {
        let isAlone = !generation.isEmpty
        let ofMain = main.map { !isAlone || tokenizer.isSpecial($0) ? [$0] : [] } ?? []
        return (isAlone ? generation : model) + ofMain
    }

    /// Every id that ends a turn: those that are named, and those that vocabulary and template imply. An ordinary word never does.
    static func implied(_ tokenizer: Tokenizer, _ template: String?, named: [Int]) -> Set<Int> {
        let mentioned = ofTurn.filter { mentions(template, $0.0) }.flatMap(\.1)
        let ends = tokenizer.addedTokens.filter { token in
            token.isSpecial && ofDocument.contains { sameText($0, token.content) } || mentioned.contains { sameText($0, token.content) }
        }
        return Set(named + ends.map(\.id))
    }

    /// The end token for what knows only one: the named one if the template writes it by this name, else the turn's end if the
    /// template has one, else the named one if it is an end.
    static func main(_ tokenizer: Tokenizer, _ template: String?, named: String?, ends: Set<Int>) -> String? {
        func isEnd(_ token: String) -> Bool { tokenizer.id(of: token).map(ends.contains) ?? false }
        if let named, mentions(template, "eos_token") { return named }
        if let (token, _) = ofTurn.first(where: { mentions(template, $0.0) && isEnd($0.0) }) { return token }
        if let named, isEnd(named) { return named }
        return ends.min().flatMap { tokenizer.token(of: $0) }
    }

    /// The id of the added token with which the template goes on after an assistant's text.
    static func afterAnswer(_ dialog: DialogEncoder) -> Int? {
        let answer = "On the northern cape of the island."
        let messages = [("user", "Where does the old lighthouse stand?"), ("assistant", answer)].map { role, content in
            JSONValue.object(JSONObject([("role", .string(role)), ("content", .string(content))]))
        }
        guard let rendered = try? dialog.render(messages, addGenerationPrompt: false),
            let place = rendered.range(of: answer, options: [.backwards, .literal])
        else { return nil }
        let after = trimmed(String(rendered[place.upperBound...]))
        let found = dialog.tokenizer.addedTokens.filter { token in
            let text = trimmed(token.content)
            return !text.isEmpty && after.utf8.starts(with: text.utf8)
        }
        return found.max { $0.content.unicodeScalars.count < $1.content.unicodeScalars.count }?.id
    }

    static func mentions(_ template: String?, _ text: String) -> Bool {
        template?.range(of: text, options: .literal) != nil
    }

    private static func trimmed(_ text: String) -> String {
        var scalars = text.unicodeScalars[...]
        while let first = scalars.first, pythonSpaces.contains(first) { scalars.removeFirst() }
        while let last = scalars.last, pythonSpaces.contains(last) { scalars.removeLast() }
        return String(scalars)
    }
}
