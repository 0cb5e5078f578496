import Foundation

/// What an app loads.
public struct AppTarget: Equatable, Sendable {
    public let target: String
    public let backend: String

    public init(target: String, backend: String) {
        self.target = target
        self.backend = backend
    }
}

/// A bundle that kept every promise, ready to be loaded.
public struct CheckedBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest
    public let dialog: DialogEncoder

    public var tokenizer: Tokenizer { dialog.tokenizer }

    /// The file or package to open: for Core ML the `.mlpackage` folder, else the first file.
    public var artifact: URL {
        let first = manifest.files[0].path
        let path = first.split(separator: "/").first.map(String.init) ?? first
        return folder.appendingPathComponent(path.hasSuffix(".mlpackage") ? path : first)
    }
}

/// Why a bundle is refused; never empty.
public struct RefusedBundle: Error, Sendable {
    public let findings: [Finding]
}

/// The steps of `llama_edge/bundle/app_check.py`: manifest, signature, places, files, purpose, text. The next step would trust
/// what the one before refused, so the first that finds something is the last.
public struct ContractCheck: Sendable {
    private let accepts: [AppTarget]
    private let publicKey: Data?

    /// With `publicKey`, 32 bytes of Ed25519, only bundles of its owner are loaded.
    public init(accepts: [AppTarget], publicKey: Data? = nil) {
        self.accepts = accepts
        self.publicKey = publicKey
    }

    /// The bundle, all of whose files were read once. Throws `RefusedBundle`.
    public func open(_ folder: URL) throws -> CheckedBundle {
        let manifest: Manifest
        do {
            manifest = try Manifest.read(from: folder)
        } catch let finding as Finding {
            throw RefusedBundle(findings: [finding])
        }
        try refuse(try BundleSignature.check(folder: folder, publicKey: publicKey).map { [$0] } ?? [])
        let entries = Entries(below: folder)
        try refuse(Self.checkPlaces(entries, manifest))
        try refuse(try Self.checkFiles(folder, entries, manifest))
        try refuse(checkPurpose(manifest))
        return try TextCheck(folder: folder, manifest: manifest).open()
    }

    private func refuse(_ findings: [Finding]) throws {
        if !findings.isEmpty { throw RefusedBundle(findings: findings) }
    }

    private static func checkPlaces(_ entries: Entries, _ manifest: Manifest) -> [Finding] {
        let outside = manifest.files.filter { entry in
            let parts = entry.path.split(separator: "/", omittingEmptySubsequences: false)
            return parts.contains("..") || parts.contains(".") || parts.contains("")
        }
        let own = "a file of the bundle's own"
        var findings = outside.map {
            Finding("files.outside", at: Manifest.fileName, expected: "paths inside of the bundle", found: $0.path)
        }
        findings += entries.links.map { Finding("files.symlink", at: $0, expected: own, found: "a symbolic link") }
        findings += entries.others.map { Finding("files.kind", at: $0, expected: own, found: "neither a file nor a folder") }
        return findings
    }

    private static func checkFiles(_ folder: URL, _ entries: Entries, _ manifest: Manifest) throws -> [Finding] {
        let listed = Set(manifest.files.map { ExactString($0.path) })
        let others = [Manifest.fileName, BundleSignature.fileName]
        let unlisted =
            entries.files.filter { !listed.contains(ExactString($0)) && !others.contains($0) } + entries.emptyFolders
            + (entries.isCut ? ["and more than can be looked at"] : [])
        return try manifest.files.compactMap { try check($0, in: folder) }
            + unlisted.map {
                Finding("files.unlisted", at: $0, expected: "the \(listed.count) files of \(Manifest.fileName) alone", found: "one more")
            }
    }

    private static func check(_ entry: Manifest.FileEntry, in folder: URL) throws -> Finding? {
        let url = folder.appendingPathComponent(entry.path)
        guard isRegularFile(url), let size = fileSize(url) else {
            return Finding("files.missing", at: entry.path, expected: "\(entry.sizeBytes) bytes", found: "no such file")
        }
        guard size == entry.sizeBytes else {
            return Finding("files.size", at: entry.path, expected: "\(entry.sizeBytes) bytes", found: "\(size) bytes")
        }
        let hash = try sha256(ofFile: url)
        return hash == entry.sha256 ? nil : Finding("files.sha256", at: entry.path, expected: "SHA-256 \(entry.sha256)", found: hash)
    }

    private func checkPurpose(_ manifest: Manifest) -> [Finding] {
        var findings: [Finding] = []
        if manifest.verdict == "failed" {
            findings.append(Finding("verdict.failed", at: "\(Manifest.fileName): verdict", expected: "passed", found: "failed"))
        }
        if !accepts.contains(AppTarget(target: manifest.target, backend: manifest.backend)) {
            let wanted = accepts.map { "\($0.target) with \($0.backend)" }.joined(separator: " or ")
            findings.append(
                Finding("target.backend", at: "\(Manifest.fileName): target", expected: wanted, found: "\(manifest.target) with \(manifest.backend)"))
        }
        let artifact = manifest.artifact
        let positions = manifest.model.config.maxPositionEmbeddings
        let place = "\(Manifest.fileName): artifact"
        if artifact.maxContext > positions {
            findings.append(
                Finding("context.exceeds_model", at: "\(place).max_context", expected: "at most \(positions) tokens", found: "\(artifact.maxContext)")
            )
        }
        if artifact.maxPrefill > artifact.maxContext {
            findings.append(
                Finding(
                    "context.prefill", at: "\(place).max_prefill", expected: "at most the context of \(artifact.maxContext) tokens",
                    found: "\(artifact.maxPrefill)"))
        }
        return findings
    }
}
