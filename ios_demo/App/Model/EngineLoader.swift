import BundleCore
import Foundation

/// Which bundles this app loads, and with what.
enum EngineLoader {
    /// The publisher's Ed25519 key, 32 bytes: put yours here, and bundles that it did not sign are refused.
    static let trustedKey: Data? = nil

    static var accepts: [AppTarget] {
        var targets = [AppTarget(target: "ios", backend: "coreml")]
        #if canImport(ExecuTorch)
            targets += ["ios", "android"].map { AppTarget(target: $0, backend: "executorch") }
        #endif
        return targets
    }

    static func load(_ bundle: CheckedBundle) async throws -> any Engine {
        switch bundle.manifest.backend {
        case "coreml": return try await CoreMLEngine(bundle)
        #if canImport(ExecuTorch)
            case "executorch": return try ExecuTorchEngine(bundle)
        #endif
        default: throw EngineError("no engine for \(bundle.manifest.backend)")
        }
    }
}
