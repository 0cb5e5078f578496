import Foundation
import XCTest

@testable import BundleCore

/// Generation and dialogs over the scripted engine, with the tokenizer of the shared fixtures.
final class EngineTests: XCTestCase {
    private struct Parts {
        let bundle: CheckedBundle
        let end: Int

        func tokens(_ text: String) -> [Int] { (try? bundle.tokenizer.encode(text, controlTokens: false)) ?? [] }

        func engine(_ answers: [String], maxContext: Int = 256, maxPrefill: Int = 64) -> ScriptedEngine {
            ScriptedEngine(
                answers: answers.map(tokens), endToken: end, vocabularySize: bundle.manifest.model.config.vocabSize, maxContext: maxContext,
                maxPrefill: maxPrefill)
        }
    }

    private func generator(_ parts: Parts, _ engine: ScriptedEngine) -> Generator {
        Generator(engine: engine, tokenizer: parts.bundle.tokenizer, endTokens: parts.bundle.manifest.text.eosTokenIds)
    }

    private actor Events {
        private(set) var all: [ChatEvent] = []
        func add(_ event: ChatEvent) { all.append(event) }
        var text: String {
            all.map { if case .text(let text) = $0 { text } else { "" } }.joined()
        }
    }

    private func parts() throws -> Parts {
        let folder = try Fixtures.namedBundle("good-ios")
        let bundle = try ContractCheck(accepts: [AppTarget(target: "ios", backend: "coreml")]).open(folder)
        XCTAssertEqual(bundle.artifact.lastPathComponent, "model.mlpackage")
        return Parts(bundle: bundle, end: bundle.manifest.text.eosTokenIds[1])
    }

    private func generate(
        _ parts: Parts, _ engine: ScriptedEngine, _ prompt: [Int], maxNewTokens: Int = 64, stops: [String] = []
    ) async throws -> (String, GenerationSummary) {
        let generator = generator(parts, engine)
        let said = SaidText()
        let summary = try await generator.generate(prompt, sampling: .greedy, maxNewTokens: maxNewTokens, stops: stops) { await said.append($0) }
        return (await said.text, summary)
    }

    func testAnAnswerEndsWithItsEndToken() async throws {
        let parts = try parts()
        let (text, summary) = try await generate(parts, parts.engine(["Grüezi 👍🏽"]), parts.tokens("Hello"))
        XCTAssertTrue(sameText(text, "Grüezi 👍🏽"), text)
        XCTAssertEqual(summary.reason, .endToken)
        XCTAssertEqual(summary.newTokens, parts.tokens("Grüezi 👍🏽").count)
    }

    func testAnswersEndByLengthStopSequenceAndContext() async throws {
        let parts = try parts()
        let (_, byLength) = try await generate(parts, parts.engine(["abcdef"]), parts.tokens("xy"), maxNewTokens: 3)
        XCTAssertEqual([byLength.reason.rawValue, "\(byLength.newTokens)"], ["maxNewTokens", "3"])
        let (text, byStop) = try await generate(parts, parts.engine(["one END two"]), parts.tokens("xy"), stops: ["END"])
        XCTAssertEqual([text, byStop.reason.rawValue], ["one ", "stopSequence"])
        let (_, byContext) = try await generate(parts, parts.engine(["abcdefghij"], maxContext: 6), parts.tokens("xy"))
        XCTAssertEqual(byContext.reason, .contextFull)
        XCTAssertEqual(byContext.newTokens, 5)
    }

    func testALongPromptIsReadInPieces() async throws {
        let parts = try parts()
        let engine = parts.engine(["y"], maxPrefill: 4)
        let prompt = Array(repeating: parts.tokens("x")[0], count: 10)
        _ = try await generate(parts, engine, prompt)
        let calls = await engine.calls
        XCTAssertEqual(calls.prefix(3).map(\.position), [0, 4, 8])
        XCTAssertEqual(calls.prefix(3).map(\.tokens.count), [4, 4, 2])
    }

    func testWhatTheCacheHoldsIsNotReadAgain() async throws {
        let parts = try parts()
        let engine = parts.engine(["one", "two"])
        let session = ChatSession(bundle: parts.bundle, generator: generator(parts, engine))
        let events = Events()
        try await session.ask("first") { await events.add($0) }
        try await session.ask("second") { await events.add($0) }
        let summaries = await events.all.compactMap { if case .finished(let summary) = $0 { summary } else { nil } }
        XCTAssertEqual(summaries[0].prefilledTokens, summaries[0].promptTokens)
        XCTAssertLessThan(summaries[1].prefilledTokens, summaries[1].promptTokens)
        let said = await events.text
        XCTAssertEqual(said, "onetwo")
        await session.reset()
        let left = await session.messages
        XCTAssertEqual(left, [])
    }

    func testTwoSessionsShareOneCache() async throws {
        let parts = try parts()
        let engine = parts.engine(["one", "summary", "two"])
        let shared = generator(parts, engine)
        let chat = ChatSession(bundle: parts.bundle, generator: shared)
        let other = ChatSession(bundle: parts.bundle, generator: shared, system: "Summarize.")
        let events = Events()
        try await chat.ask("first") { await events.add($0) }
        try await other.ask("a long text") { await events.add($0) }
        try await chat.ask("second") { await events.add($0) }
        let said = await events.text
        XCTAssertEqual(said, "onesummarytwo")
        // What the engine's cache held before each call, rebuilt: the last dialog must be whole in it.
        var cache: [Int] = []
        for call in await engine.calls { cache = cache[..<call.position] + call.tokens }
        let whole = try await parts.bundle.dialog.encode(chat.messages, addGenerationPrompt: false)
        XCTAssertTrue(whole.starts(with: cache), "another dialog is left in the cache")
    }

    func testASecondAnswerAtTheSameTimeIsRefused() async throws {
        let parts = try parts()
        let shared = generator(parts, parts.engine(["one", "two"]))
        let prompt = parts.tokens("xy")
        _ = try await shared.generate(prompt, sampling: .greedy) { _ in
            do {
                _ = try await shared.generate(prompt, sampling: .greedy) { _ in }
                XCTFail("two answers at once")
            } catch {
                XCTAssertTrue(error is EngineError)
            }
        }
    }

    func testACancelledAnswerStopsAndLeavesTheSessionUsable() async throws {
        let parts = try parts()
        let session = ChatSession(bundle: parts.bundle, generator: generator(parts, parts.engine([String(repeating: "a", count: 100), "b"])))
        let task = Task {
            try await session.ask("q") { event in
                if case .text = event { withUnsafeCurrentTask { $0?.cancel() } }
            }
        }
        do {
            try await task.value
            XCTFail("it was not cancelled")
        } catch is CancellationError {}
        let last = await session.messages.last
        XCTAssertEqual(last?["role"], .string("assistant"))
        XCTAssertLessThan(last?["content"]?.stringValue?.count ?? .max, 100)
    }

    func testAToolIsCalledAndItsResultIsAnswered() async throws {
        let parts = try parts()
        let schema = try JSONValue(parsing: #"{"type":"function","function":{"name":"add","parameters":{}}}"#)
        let tool = LocalTool(schema: schema) { arguments in
            .int((arguments["a"]?.intValue ?? 0) + (arguments["b"]?.intValue ?? 0))
        }
        let engine = parts.engine([#"{"name": "add", "parameters": {"a": 2, "b": 3}}"#, "It is 5."])
        let session = ChatSession(bundle: parts.bundle, generator: generator(parts, engine), tools: [tool])
        let events = Events()
        try await session.ask("2 + 3?") { await events.add($0) }
        let all = await events.all
        XCTAssertTrue(all.contains(.toolCall(name: "add", arguments: #"{"a": 2, "b": 3}"#)))
        XCTAssertTrue(all.contains(.toolResult("5")))
        let said = await events.text
        XCTAssertTrue(said.hasSuffix("It is 5."), said)
        let roles = await session.messages.map { $0["role"]?.stringValue }
        XCTAssertEqual(roles, ["user", "assistant", "ipython", "assistant"])
    }

    func testAGuardRefusesTheQuestionBeforeTheModelSeesIt() async throws {
        let parts = try parts()
        let engine = parts.engine(["never"])
        let guardModel = GuardModel(bundle: parts.bundle, engine: parts.engine(["unsafe\nS1,S9"]))
        let session = ChatSession(bundle: parts.bundle, generator: generator(parts, engine), guardModel: guardModel)
        let events = Events()
        try await session.ask("bad") { await events.add($0) }
        let all = await events.all
        XCTAssertEqual(all, [.refused(["S1", "S9"])])
        let calls = await engine.calls
        XCTAssertEqual(calls.count, 0)
    }

    func testAGuardRefusesAnAnswer() async throws {
        let parts = try parts()
        let guardModel = GuardModel(bundle: parts.bundle, engine: parts.engine(["safe", "unsafe\nS2"]))
        let session = ChatSession(bundle: parts.bundle, generator: generator(parts, parts.engine(["bad answer"])), guardModel: guardModel)
        let events = Events()
        try await session.ask("fine") { await events.add($0) }
        let last = await events.all.last
        XCTAssertEqual(last, .refused(["S2"]))
        let left = await session.messages
        XCTAssertEqual(left, [])
    }

    func testAQuestionThatDoesNotFitIsRefused() async throws {
        let parts = try parts()
        let session = ChatSession(bundle: parts.bundle, generator: generator(parts, parts.engine([], maxContext: 40)))
        do {
            try await session.ask(String(repeating: "x", count: 100)) { _ in }
            XCTFail("it fitted")
        } catch let error as DialogTooLong {
            XCTAssertEqual(error.limit, 20)
        }
    }

    func testFixedFunctionsReadAnyNumberOfTokens() {
        func plan(_ count: Int, _ used: Int) -> [CallPlan.Call] {
            CallPlan.calls(for: count, used: used, maxContext: 16, lengths: [1, 8])
        }
        XCTAssertEqual(plan(1, 0), [.init(count: 1, places: 1)])
        XCTAssertEqual(plan(11, 0), [.init(count: 8, places: 8), .init(count: 3, places: 8)])
        XCTAssertEqual(plan(3, 13), Array(repeating: .init(count: 1, places: 1), count: 3), "a filled call would leave the cache")
    }

    func testSampling() throws {
        var random = SeededGenerator(seed: 7)
        func choose(_ config: SamplingConfig) throws -> Set<Int> {
            Set(try (0..<200).map { _ in try Sampler.choose([0, 3, 1, 2.9], config, using: &random) })
        }
        XCTAssertEqual(try choose(.greedy), [1])
        XCTAssertEqual(try choose(SamplingConfig(temperature: 1, topP: 1, topK: 2)), [1, 3])
        XCTAssertEqual(try choose(SamplingConfig(temperature: 1, topP: 0.1, topK: 0)), [1])
        XCTAssertEqual(try choose(SamplingConfig(temperature: 5, topP: 1, topK: 0)), [0, 1, 2, 3])
        XCTAssertThrowsError(try Sampler.choose([.nan, .nan], .greedy, using: &random))
        XCTAssertThrowsError(try Sampler.choose([], .greedy, using: &random))
        XCTAssertEqual(SamplingConfig(["temperature": .double(0.6), "do_sample": .bool(false)]), .greedy)
    }
}
