import AppIntents

// The intents run in the app, not in a share extension: an extension may use some 120 MB, no model fits. They open the app,
// because a model may not be loaded in the background.

struct SummarizeTextIntent: AppIntent {
    static let title: LocalizedStringResource = "intent.summarize"
    static let description = IntentDescription("intent.summarize.description")
    static let openAppWhenRun = true

    @Parameter(title: "intent.text", inputOptions: String.IntentInputOptions(multiline: true))
    var text: String

    @MainActor
    func perform() async throws -> some IntentResult & ReturnsValue<String> & ProvidesDialog {
        let answer = try await TextTask.summary.run(on: text)
        return .result(value: answer, dialog: "\(answer)")
    }
}

struct RewriteTextIntent: AppIntent {
    static let title: LocalizedStringResource = "intent.rewrite"
    static let description = IntentDescription("intent.rewrite.description")
    static let openAppWhenRun = true

    @Parameter(title: "intent.text", inputOptions: String.IntentInputOptions(multiline: true))
    var text: String

    @MainActor
    func perform() async throws -> some IntentResult & ReturnsValue<String> & ProvidesDialog {
        let answer = try await TextTask.rewriting.run(on: text)
        return .result(value: answer, dialog: "\(answer)")
    }
}

struct DemoShortcuts: AppShortcutsProvider {
    static var appShortcuts: [AppShortcut] {
        AppShortcut(
            intent: SummarizeTextIntent(), phrases: ["Summarize with \(.applicationName)"], shortTitle: "intent.summarize",
            systemImageName: "text.badge.minus")
        AppShortcut(
            intent: RewriteTextIntent(), phrases: ["Rewrite with \(.applicationName)"], shortTitle: "intent.rewrite",
            systemImageName: "pencil.line")
    }
}
