import BundleCore
import Foundation
import Observation

/// What the chat screen shows; it survives rotation because the app owns it.
@MainActor
@Observable
final class ChatModel {
    struct Entry: Identifiable {
        enum Kind {
            case question, answer, toolCall, toolResult, refusal
        }

        let id = UUID()
        let kind: Kind
        var text: String
    }

    private(set) var entries: [Entry] = []
    private(set) var isAnswering = false
    private(set) var summary: GenerationSummary?
    private(set) var memory: Int64?
    private(set) var failure: String?
    var usesTools = false { didSet { if oldValue != usesTools { reset() } } }

    private let models: ModelStore
    private var session: ChatSession?
    /// The dialog of a session whose model was unloaded.
    private var history: Task<[JSONValue], Never>?
    private var task: Task<Void, Never>?
    /// The dialog that events belong to: what a stopped answer still says after a reset is dropped.
    private var dialog = UUID()

    init(models: ModelStore) {
        self.models = models
    }

    func send(_ question: String) {
        guard !isAnswering, !question.isEmpty else { return }
        entries.append(Entry(kind: .question, text: question))
        isAnswering = true
        failure = nil
        task = Task { await answer(question) }
    }

    /// Stop the answer; what was said stays.
    func stop() {
        task?.cancel()
    }

    func reset() {
        stop()
        dialog = UUID()
        entries = []
        summary = nil
        failure = nil
        session = nil
        history = nil
    }

    /// Let go of the model; the dialog stays, and the next question reads it again.
    func unload() {
        stop()
        guard let session else { return }
        let running = task
        history = Task {
            await running?.value
            return await session.messages
        }
        self.session = nil
    }

    private func answer(_ question: String) async {
        defer {
            isAnswering = false
            memory = memoryFootprint()
        }
        do {
            let dialog = dialog
            try await preparedSession().ask(question) { [weak self] event in await self?.show(event, of: dialog) }
        } catch is CancellationError {
            // The person stopped it, or left.
        } catch let error as DialogTooLong {
            failure = String(localized: "error.too_long \(error.tokens) \(error.limit)")
        } catch let refused as RefusedBundle {
            failure = refused.findings.map { "\($0.code): \($0.what) \($0.remedy)" }.joined(separator: "\n")
        } catch {
            failure = "\(error)"
        }
    }

    private func preparedSession() async throws -> ChatSession {
        if let session { return session }
        let generator = try await models.loadedGenerator()
        guard let bundle = models.bundle else { throw EngineError(String(localized: "error.no_bundle")) }
        let made = ChatSession(
            bundle: bundle, generator: generator, guardModel: try await models.loadedGuard(), tools: usesTools ? DemoTools.all : [],
            today: TemplateDate(.now), continuing: await history?.value ?? [])
        session = made
        history = nil
        return made
    }

    private func show(_ event: ChatEvent, of dialog: UUID) {
        guard dialog == self.dialog else { return }
        memory = memoryFootprint()
        switch event {
        case .text(let text):
            if entries.last?.kind == .answer {
                entries[entries.count - 1].text += text
            } else {
                entries.append(Entry(kind: .answer, text: text))
            }
        case .toolCall(let name, let arguments):
            // What the model wrote to call the tool is shown as the call.
            if entries.last?.kind == .answer { entries.removeLast() }
            entries.append(Entry(kind: .toolCall, text: "\(name) \(arguments)"))
        case .toolResult(let text): entries.append(Entry(kind: .toolResult, text: text))
        case .refused(let categories):
            if entries.last?.kind == .answer { entries.removeLast() }
            entries.append(Entry(kind: .refusal, text: categories.joined(separator: ", ")))
        case .finished(let result): summary = result
        }
    }
}
