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

    init(below folder: URL) {
        add(folder, prefix: "")
        files.sort()
    }

    private mutating func add(_ folder: URL, prefix: String) {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        if names.isEmpty && !prefix.isEmpty { emptyFolders.append(String(prefix.dropLast())) }
        for name in names.sorted() {
            let url = folder.appendingPathComponent(name)
            let found = kind(url)
            if found == .typeRegular {
                files.append(prefix + name)
            } else if found == .typeDirectory {
                add(url, prefix: "\(prefix)\(name)/")
            } else if found == .typeSymbolicLink {
                links.append(prefix + name)
            } else {
                others.append(prefix + name)
            }
        }
    }
}
