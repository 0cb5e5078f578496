import Foundation

/// A Llama Guard bundle: says of a question, or of an answer, whether it is safe.
public actor GuardModel {
    /// "safe", or "unsafe" and a line of categories.
    private static let maxNewTokens = 24

    private let bundle: CheckedBundle
    private let generator: Generator

    public init(bundle: CheckedBundle, engine: any Engine) {
        self.bundle = bundle
        generator = Generator(engine: engine, tokenizer: bundle.tokenizer, endTokens: bundle.manifest.text.eosTokenIds)
    }

    /// nil: safe. What is neither "safe" nor "unsafe" counts as unsafe, without a category.
    public func unsafeCategories(question: String, answer: String?) async throws -> [String]? {
        var messages = [Self.message("user", question)]
        if let answer { messages.append(Self.message("assistant", answer)) }
        let said = SaidText()
        _ = try await generator.generate(
            bundle.dialog.encode(messages), sampling: .greedy, maxNewTokens: Self.maxNewTokens
        ) { await said.append($0) }
        return Self.categories(in: await said.text)
    }

    /// By Unicode scalars: "\r\n" would be one `Character`.
    static func categories(in verdict: String) -> [String]? {
        let lines = parts(of: trimmed(verdict.unicodeScalars[...]), separatedBy: "\n")
        if lines == ["safe"] { return nil }
        guard lines.first == "unsafe", lines.count <= 2 else { return [] }
        return lines.dropFirst().flatMap { parts(of: $0, separatedBy: ",") }.filter { !$0.isEmpty }
    }

    private static func parts(of text: String, separatedBy separator: Unicode.Scalar) -> [String] {
        text.unicodeScalars.split(separator: separator, omittingEmptySubsequences: false).map(trimmed)
    }

    private static func trimmed(_ text: Substring.UnicodeScalarView) -> String {
        let blanks: Set<Unicode.Scalar> = [" ", "\t", "\r", "\n"]
        let start = text.firstIndex { !blanks.contains($0) } ?? text.endIndex
        let end = text.lastIndex { !blanks.contains($0) }.map { text.index(after: $0) } ?? start
        return String(Substring(text[start..<end]))
    }

    private static func message(_ role: String, _ content: String) -> JSONValue {
        .object(JSONObject([("role", .string(role)), ("content", .string(content))]))
    }
}
