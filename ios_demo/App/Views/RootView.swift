import BundleCore
import SwiftUI

struct RootView: View {
    let models: ModelStore
    let chat: ChatModel
    @State private var isPicking = false
    @State private var picksGuard = false

    var body: some View {
        NavigationStack {
            content
                .navigationTitle("app.title")
                .navigationBarTitleDisplayMode(.inline)
                .toolbar { ToolbarItem(placement: .topBarTrailing) { menu } }
        }
        .fileImporter(isPresented: $isPicking, allowedContentTypes: [.folder]) { result in
            guard case .success(let folder) = result else { return }
            chat.reset()
            Task { await models.importBundle(folder, asGuard: picksGuard) }
        }
    }

    @ViewBuilder
    private var content: some View {
        switch models.phase {
        case .empty:
            ContentUnavailableView {
                Label("load.empty", systemImage: "shippingbox")
            } description: {
                Text("load.empty.description")
            } actions: {
                Button("load.pick") { pick(asGuard: false) }.buttonStyle(.borderedProminent)
            }
        case .checking: ProgressView("load.checking")
        case .ready(let bundle): ChatView(chat: chat, models: models, name: bundle.manifest.model.source)
        case .refused(let findings): RefusalView(findings: findings) { pick(asGuard: false) }
        case .failed(let message):
            ContentUnavailableView {
                Label("load.failed", systemImage: "exclamationmark.triangle")
            } description: {
                Text(verbatim: message)
            } actions: {
                Button("load.pick") { pick(asGuard: false) }
            }
        }
    }

    private var menu: some View {
        Menu {
            Button("load.pick", systemImage: "folder") { pick(asGuard: false) }
            if models.guardName == nil {
                Button("guard.pick", systemImage: "checkmark.shield") { pick(asGuard: true) }
            } else {
                Button("guard.remove", systemImage: "xmark.shield", role: .destructive) {
                    chat.reset()
                    models.removeGuard()
                }
            }
            Toggle("chat.tools", systemImage: "wrench.and.screwdriver", isOn: Bindable(chat).usesTools)
            Button("chat.reset", systemImage: "arrow.counterclockwise", role: .destructive) { chat.reset() }
        } label: {
            Label("menu.more", systemImage: "ellipsis.circle")
        }
    }

    private func pick(asGuard: Bool) {
        picksGuard = asGuard
        isPicking = true
    }
}
