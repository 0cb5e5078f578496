import Foundation

/// Whether a plain file is there, links followed: a named pipe is none, and reading it would wait for ever.
func isRegularFile(_ url: URL) -> Bool {
    kind(url.resolvingSymlinksInPath()) == .typeRegular
}

/// What is at a path itself: of a link, that it is one. Nil: nothing is there.
private func kind(_ url: URL) -> FileAttributeType? {
    (try? FileManager.default.attributesOfItem(atPath: url.path))?[.type] as? FileAttributeType
}

func fileSize(_ url: URL) -> Int? {
    let attributes = try? FileManager.default.attributesOfItem(atPath: url.resolvingSymlinksInPath().path)
    return (attributes?[.size] as? NSNumber)?.intValue
}

/// Everything below a folder. No link is followed: what one points to can be changed after the check.
struct Entries {
    /// Paths of all plain files, with forward slashes, sorted.
    private(set) var files: [String] = []
    /// Folders with nothing in them.
    private(set) var emptyFolders: [String] = []
    private(set) var links: [String] = []
    /// Named pipes, sockets and devices.
    private(set) var others: [String] = []

    /// Names that were found and not looked at, because there are too many.
    private(set) var isCut = false
    private static let maxEntries = 100_000

    init(below folder: URL) {
        var left = Self.maxEntries
        // Not recursive: a path may have two thousand folders.
        var waiting = [(folder, "")]
        while let (folder, prefix) = waiting.popLast() {
            let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
            if names.isEmpty && !prefix.isEmpty { emptyFolders.append(String(prefix.dropLast())) }
            left -= names.count
            guard left >= 0 else {
                isCut = true
                break
            }
            for name in names {
                let url = folder.appendingPathComponent(name)
                switch kind(url) {
                case .typeRegular?: files.append(prefix + name)
                case .typeDirectory?: waiting.append((url, "\(prefix)\(name)/"))
                case .typeSymbolicLink?: links.append(prefix + name)
                default: others.append(prefix + name)
                }
            }
        }
        files.sort()
        emptyFolders.sort()
        links.sort()
        others.sort()
    }
}
