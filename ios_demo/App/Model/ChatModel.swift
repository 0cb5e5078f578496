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
    /// The engine that the session was made with; another one begins with an empty cache.
    private var sessionEngine: ObjectIdentifier?
    private var task: Task<Void, Never>?

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
        entries = []
        summary = nil
        failure = nil
        session = nil
    }

    private func answer(_ question: String) async {
        defer {
            isAnswering = false
            memory = memoryFootprint()
        }
        do {
            try await preparedSession().ask(question) { [weak self] event in await self?.show(event) }
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

    /// The session goes on after the model was unloaded: the dialog is kept, the new engine reads it again.
    private func preparedSession() async throws -> ChatSession {
        let engine = try await models.loadedEngine()
        if let session, sessionEngine == ObjectIdentifier(engine as AnyObject) { return session }
        guard let bundle = models.bundle else { throw EngineError(String(localized: "error.no_bundle")) }
        let made = ChatSession(
            bundle: bundle, engine: engine, guardModel: try await models.loadedGuard(), tools: usesTools ? DemoTools.all : [],
            today: TemplateDate(.now), continuing: await session?.messages ?? [])
        session = made
        sessionEngine = ObjectIdentifier(engine as AnyObject)
        return made
    }

    private func show(_ event: ChatEvent) {
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
