import BundleCore
import Foundation

/// What the share sheet and Shortcuts offer: one text in, one text out, no dialog.
enum TextTask: String, Sendable {
    case summary, rewriting

    /// In English, which every Llama reads best; the answer's language is the text's.
    private var instruction: String {
        switch self {
        case .summary: "Summarize the text in at most three sentences, in the language of the text. Write the summary alone."
        case .rewriting: "Rewrite the text so that it is clear and polite, in the language of the text. Write the new text alone."
        }
    }

    @MainActor
    func run(on text: String, models: ModelStore = .shared) async throws -> String {
        await models.restore()
        let generator = try await models.loadedGenerator()
        guard let bundle = models.bundle else { throw EngineError(String(localized: "error.no_bundle")) }
        let session = ChatSession(
            bundle: bundle, generator: generator, guardModel: try await models.loadedGuard(), system: instruction, today: TemplateDate(.now))
        let answer = AnswerText()
        try await session.ask(text) { event in await answer.take(event) }
        return await answer.text
    }
}

private actor AnswerText {
    private(set) var text = ""

    func take(_ event: ChatEvent) {
        switch event {
        case .text(let piece): text += piece
        case .refused(let categories): text = categories.joined(separator: ", ")
        default: break
        }
    }
}
