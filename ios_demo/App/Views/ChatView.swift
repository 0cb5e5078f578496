import BundleCore
import SwiftUI

struct ChatView: View {
    let chat: ChatModel
    let models: ModelStore
    let name: String
    @State private var question = ""
    @FocusState private var isTyping: Bool

    var body: some View {
        VStack(spacing: 0) {
            ScrollViewReader { scroll in
                ScrollView {
                    LazyVStack(alignment: .leading, spacing: 12) {
                        ForEach(chat.entries) { EntryView(entry: $0) }
                        if let failure = chat.failure {
                            Label(failure, systemImage: "exclamationmark.triangle").foregroundStyle(.red)
                        }
                        Color.clear.frame(height: 1).id("end").accessibilityHidden(true)
                    }
                    .padding()
                }
                .onChange(of: chat.entries.last?.text) { scroll.scrollTo("end", anchor: .bottom) }
            }
            StatusView(chat: chat, models: models, name: name)
            input
        }
        .onDisappear { chat.stop() }
    }

    private var input: some View {
        HStack(alignment: .bottom) {
            TextField("chat.placeholder", text: $question, axis: .vertical)
                .lineLimit(1...6)
                .textFieldStyle(.roundedBorder)
                .focused($isTyping)
                .onSubmit(send)
            if chat.isAnswering {
                Button("chat.stop", systemImage: "stop.circle.fill") { chat.stop() }
            } else {
                Button("chat.send", systemImage: "arrow.up.circle.fill", action: send)
                    .disabled(trimmedQuestion.isEmpty)
            }
        }
        .labelStyle(.iconOnly)
        .font(.title2)
        .padding()
    }

    private var trimmedQuestion: String { question.trimmingCharacters(in: .whitespacesAndNewlines) }

    private func send() {
        guard !trimmedQuestion.isEmpty, !chat.isAnswering else { return }
        chat.send(trimmedQuestion)
        question = ""
        isTyping = false
    }
}

/// One turn, a tool's call or its result.
private struct EntryView: View {
    let entry: ChatModel.Entry

    var body: some View {
        switch entry.kind {
        case .question: bubble("chat.you", Color.accentColor.opacity(0.2), .trailing)
        case .answer: bubble("chat.model", Color.secondary.opacity(0.15), .leading)
        case .toolCall: note("chat.tool_call", "wrench.and.screwdriver")
        case .toolResult: note("chat.tool_result", "arrow.turn.down.left")
        case .refusal: note("guard.refused", "hand.raised")
        }
    }

    private func bubble(_ speaker: LocalizedStringKey, _ color: Color, _ side: Alignment) -> some View {
        Text(verbatim: entry.text)
            .textSelection(.enabled)
            .padding(10)
            .background(color, in: .rect(cornerRadius: 12))
            .frame(maxWidth: .infinity, alignment: side)
            .accessibilityElement(children: .ignore)
            .accessibilityLabel(Text(speaker))
            .accessibilityValue(Text(verbatim: entry.text))
    }

    private func note(_ title: LocalizedStringKey, _ image: String) -> some View {
        VStack(alignment: .leading) {
            Label(title, systemImage: image).font(.caption.bold())
            Text(verbatim: entry.text).font(.caption.monospaced()).textSelection(.enabled)
        }
        .foregroundStyle(.secondary)
        .accessibilityElement(children: .combine)
    }
}

/// Speed and memory, measured on this phone for the last answer.
private struct StatusView: View {
    let chat: ChatModel
    let models: ModelStore
    let name: String

    var body: some View {
        ViewThatFits(in: .horizontal) {
            HStack(spacing: 16) { items }
            VStack(alignment: .leading) { items }
        }
        .font(.caption)
        .foregroundStyle(.secondary)
        .padding(.horizontal)
        .accessibilityElement(children: .combine)
    }

    @ViewBuilder
    private var items: some View {
        Label(name, systemImage: models.isLoaded ? "cpu.fill" : "cpu")
        if let speed = chat.summary?.tokensPerSecond {
            Text("status.speed \(speed.formatted(.number.precision(.fractionLength(1))))")
        }
        if let first = chat.summary?.timeToFirstToken {
            Text("status.first_token \(first.formatted(.number.precision(.fractionLength(2))))")
        }
        if let memory = chat.memory {
            Text("status.memory \(memory.formatted(.byteCount(style: .memory)))")
        }
        if models.guardName != nil { Label("guard.on", systemImage: "checkmark.shield") }
    }
}
