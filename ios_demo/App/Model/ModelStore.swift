import BundleCore
import Foundation
import Observation

/// Which bundle is open, whether its promises hold, and its model while it is in memory.
@MainActor
@Observable
final class ModelStore {
    static let shared = ModelStore()

    enum Phase {
        case empty
        case checking
        case ready(CheckedBundle)
        case refused([Finding])
        case failed(String)
    }

    private(set) var phase = Phase.empty
    /// Whether the model is in memory; it is loaded with the next question, and gone in the background.
    private(set) var isLoaded = false
    private(set) var guardName: String?

    private var generator: Generator?
    private var guardBundle: CheckedBundle?
    private var guardModel: GuardModel?
    /// Counts unloadings, so that what was still loading then is dropped when it arrives.
    private var unloadings = 0
    private let store = BundleFolders()

    var bundle: CheckedBundle? {
        if case .ready(let bundle) = phase { return bundle }
        return nil
    }

    /// Open what was open when the app was last used.
    func restore() async {
        if case .empty = phase, let folder = store.chosen { await open(folder) }
        if guardBundle == nil, let folder = store.chosenGuard { await openGuard(folder) }
    }

    /// Copy a picked folder into the app, so that it stays when the provider goes, and open it.
    func importBundle(_ picked: URL, asGuard: Bool) async {
        phase = asGuard ? phase : .checking
        do {
            let folder = try await store.copy(picked)
            if asGuard { await openGuard(folder) } else { await open(folder) }
        } catch {
            phase = .failed(error.localizedDescription)
        }
    }

    func open(_ folder: URL) async {
        unload()
        phase = .checking
        do {
            phase = .ready(try await Self.check(folder))
            store.chosen = folder
        } catch let refused as RefusedBundle {
            phase = .refused(refused.findings)
        } catch {
            phase = .failed(error.localizedDescription)
        }
    }

    private func openGuard(_ folder: URL) async {
        do {
            let checked = try await Self.check(folder)
            guardBundle = checked
            guardModel = nil
            guardName = checked.manifest.model.source
            store.chosenGuard = folder
        } catch let refused as RefusedBundle {
            phase = .refused(refused.findings)
        } catch {
            phase = .failed(error.localizedDescription)
        }
    }

    func removeGuard() {
        guardBundle = nil
        guardModel = nil
        guardName = nil
        store.chosenGuard = nil
    }

    /// Hashing a gigabyte takes seconds: never on the main actor.
    private nonisolated static func check(_ folder: URL) async throws -> CheckedBundle {
        try await Task.detached(priority: .userInitiated) {
            try ContractCheck(accepts: EngineLoader.accepts, publicKey: EngineLoader.trustedKey).open(folder)
        }.value
    }

    /// The one generator of the open bundle's engine, loaded when it is not in memory.
    func loadedGenerator() async throws -> Generator {
        if let generator { return generator }
        guard let bundle else { throw EngineError(String(localized: "error.no_bundle")) }
        let before = unloadings
        let engine = try await EngineLoader.load(bundle)
        guard before == unloadings else { throw CancellationError() }
        // Another question may have loaded it meanwhile: two of them would not fit.
        if let generator { return generator }
        let loaded = Generator(engine: engine, tokenizer: bundle.tokenizer, endTokens: bundle.manifest.text.eosTokenIds)
        generator = loaded
        isLoaded = true
        return loaded
    }

    func loadedGuard() async throws -> GuardModel? {
        if let guardModel { return guardModel }
        guard let guardBundle else { return nil }
        let before = unloadings
        let loaded = GuardModel(bundle: guardBundle, engine: try await EngineLoader.load(guardBundle))
        guard before == unloadings else { throw CancellationError() }
        guardModel = loaded
        return loaded
    }

    /// Give the memory back. A running answer keeps its generator until it has seen that it was cancelled.
    func unload() {
        unloadings += 1
        generator = nil
        guardModel = nil
        isLoaded = false
    }
}
