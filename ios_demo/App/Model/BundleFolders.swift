import Foundation

/// Bundles lie in the app's Documents folder, where the Files app and Finder put them too.
@MainActor
final class BundleFolders {
    private static let chosenKey = "chosenBundle"
    private static let guardKey = "chosenGuard"

    var chosen: URL? {
        get { stored(Self.chosenKey) }
        set { UserDefaults.standard.set(newValue?.lastPathComponent, forKey: Self.chosenKey) }
    }

    var chosenGuard: URL? {
        get { stored(Self.guardKey) }
        set { UserDefaults.standard.set(newValue?.lastPathComponent, forKey: Self.guardKey) }
    }

    // Only the name is kept: the path of the container changes with each update of the app.
    private func stored(_ key: String) -> URL? {
        guard let name = UserDefaults.standard.string(forKey: key) else { return nil }
        let folder = URL.documentsDirectory.appending(path: name, directoryHint: .isDirectory)
        return FileManager.default.fileExists(atPath: folder.path) ? folder : nil
    }

    func copy(_ picked: URL) async throws -> URL {
        let target = URL.documentsDirectory.appending(path: picked.lastPathComponent, directoryHint: .isDirectory)
        guard picked.standardizedFileURL != target.standardizedFileURL else { return target }
        try await Task.detached(priority: .userInitiated) {
            let isScoped = picked.startAccessingSecurityScopedResource()
            defer { if isScoped { picked.stopAccessingSecurityScopedResource() } }
            let files = FileManager.default
            let part = target.appendingPathExtension("part")
            try? files.removeItem(at: part)
            try files.copyItem(at: picked, to: part)
            if files.fileExists(atPath: target.path) { try files.removeItem(at: target) }
            try files.moveItem(at: part, to: target)
        }.value
        return target
    }
}
