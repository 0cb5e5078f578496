import Foundation

/// A tool that runs on the phone.
public struct LocalTool: Sendable {
    /// Name, description and parameters, as the template shows them to the model.
    public let schema: JSONValue
    public let run: @Sendable (JSONValue) throws -> JSONValue

    public init(schema: JSONValue, run: @escaping @Sendable (JSONValue) throws -> JSONValue) {
        self.schema = schema
        self.run = run
    }

    public var name: String { schema["function"]?["name"]?.stringValue ?? "" }
}

/// What a chat screen shows as it happens.
public enum ChatEvent: Equatable, Sendable {
    case text(String)
    case toolCall(name: String, arguments: String)
    case toolResult(String)
    case finished(GenerationSummary)
    /// The Guard model found the question or the answer unsafe; the categories it named.
    case refused([String])
}

/// One dialog: template, trimming, answers, tools, and a Guard in front where there is one.
public actor ChatSession {
    /// Calls that may follow each other before the model has to answer in words.
    private static let maxToolRounds = 3

    private let bundle: CheckedBundle
    private let generator: Generator
    private let guardModel: GuardModel?
    private let tools: [LocalTool]
    private let today: TemplateDate
    private let limit: Int
    private let maxNewTokens: Int
    public private(set) var messages: [JSONValue]

    public init(
        bundle: CheckedBundle, generator: Generator, guardModel: GuardModel? = nil, tools: [LocalTool] = [], system: String? = nil,
        today: TemplateDate = .reference, maxNewTokens: Int = Generator.defaultMaxNewTokens, continuing messages: [JSONValue] = []
    ) {
        self.bundle = bundle
        self.generator = generator
        self.guardModel = guardModel
        self.tools = tools
        self.today = today
        self.maxNewTokens = maxNewTokens
        // Room for an answer is kept free, in a short context at most half of it.
        limit = generator.maxContext - min(maxNewTokens, generator.maxContext / 2)
        self.messages = messages.isEmpty ? system.map { [Self.message("system", $0)] } ?? [] : messages
    }

    private static func message(_ role: String, _ content: String) -> JSONValue {
        .object(JSONObject([("role", .string(role)), ("content", .string(content))]))
    }

    /// Forget the dialog; the system prompt stays.
    public func reset() async {
        messages = messages.filter { $0["role"]?.stringValue == "system" }
        await generator.reset()
    }

    /// Ask, and have the answer told piece by piece. A cancelled or failed answer leaves what was said until then in the dialog.
    public func ask(_ question: String, onEvent: @escaping @Sendable (ChatEvent) async -> Void) async throws {
        if let categories = try await guardModel?.unsafeCategories(question: question, answer: nil) {
            await onEvent(.refused(categories))
            return
        }
        messages.append(Self.message("user", question))
        for round in 0...Self.maxToolRounds {
            let (answer, summary) = try await answer(onEvent)
            let calls = round < Self.maxToolRounds && !tools.isEmpty ? (try? ToolCall.parse(answer)) ?? [] : []
            if let call = calls.first {
                messages.append(Self.message(calling: call))
                await onEvent(.toolCall(name: call.name, arguments: call.arguments.dumped()))
                let result = run(call)
                messages.append(Self.message("ipython", result))
                await onEvent(.toolResult(result))
                continue
            }
            messages.append(Self.message("assistant", answer))
            if let categories = try await guardModel?.unsafeCategories(question: question, answer: answer) {
                messages.removeLast(2)
                await onEvent(.refused(categories))
                return
            }
            await onEvent(.finished(summary))
            return
        }
    }

    private func answer(_ onEvent: @escaping @Sendable (ChatEvent) async -> Void) async throws -> (String, GenerationSummary) {
        let schemas = tools.isEmpty ? nil : tools.map(\.schema)
        func encode(_ messages: [JSONValue]) throws -> [Int] {
            try bundle.dialog.encode(messages, tools: schemas, today: today)
        }
        messages = try Dialog.trimmed(messages, limit: limit) { try encode($0).count }
        let said = SaidText()
        do {
            let summary = try await generator.generate(
                encode(messages), sampling: SamplingConfig(bundle.manifest.generationDefaults), maxNewTokens: maxNewTokens
            ) { text in
                await said.append(text)
                await onEvent(.text(text))
            }
            return (await said.text, summary)
        } catch {
            let text = await said.text
            if !text.isEmpty { messages.append(Self.message("assistant", text)) }
            throw error
        }
    }

    private static func message(calling call: ToolCall) -> JSONValue {
        let function = JSONValue.object(JSONObject([("name", .string(call.name)), ("arguments", call.arguments)]))
        let entry = JSONValue.object(JSONObject([("type", .string("function")), ("function", function)]))
        return .object(JSONObject([("role", .string("assistant")), ("content", .string("")), ("tool_calls", .array([entry]))]))
    }

    private func run(_ call: ToolCall) -> String {
        guard let tool = tools.first(where: { sameText($0.name, call.name) }) else {
            return JSONValue.object(JSONObject([("error", .string("there is no tool \(call.name)"))])).dumped()
        }
        do {
            return try tool.run(call.arguments).dumped()
        } catch {
            return JSONValue.object(JSONObject([("error", .string("\(error)"))])).dumped()
        }
    }
}
