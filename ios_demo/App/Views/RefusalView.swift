import BundleCore
import SwiftUI

/// Why a bundle was refused: each finding in the words, and with the code, of `llama-edge doctor`.
struct RefusalView: View {
    let findings: [Finding]
    let pick: () -> Void

    var body: some View {
        List {
            Section {
                ForEach(findings) { finding in
                    VStack(alignment: .leading, spacing: 6) {
                        Text(verbatim: finding.what).font(.headline)
                        Text(verbatim: finding.remedy)
                        LabeledContent("refusal.where") { Text(verbatim: finding.location) }
                        LabeledContent("refusal.expected") { Text(verbatim: finding.expected) }
                        LabeledContent("refusal.found") { Text(verbatim: finding.found) }
                        Text(verbatim: finding.code).font(.caption.monospaced()).foregroundStyle(.secondary)
                    }
                    .font(.subheadline)
                    .textSelection(.enabled)
                    .accessibilityElement(children: .combine)
                }
            } header: {
                Label("refusal.title", systemImage: "xmark.seal")
            } footer: {
                Text("refusal.footer")
            }
            Button("load.pick", action: pick)
        }
    }
}
