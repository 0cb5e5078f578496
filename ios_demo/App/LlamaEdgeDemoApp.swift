import SwiftUI
import UIKit

@main
struct LlamaEdgeDemoApp: App {
    @Environment(\.scenePhase) private var scenePhase
    @State private var models = ModelStore.shared
    @State private var chat = ChatModel(models: .shared)

    var body: some Scene {
        WindowGroup {
            RootView(models: models, chat: chat)
                .task { await models.restore() }
                .onReceive(NotificationCenter.default.publisher(for: UIApplication.didReceiveMemoryWarningNotification)) { _ in
                    release()
                }
        }
        .onChange(of: scenePhase) { _, phase in
            // A model of a gigabyte in the background is the first thing that the system ends.
            if phase == .background { release() }
        }
    }

    private func release() {
        chat.unload()
        models.unload()
    }
}
