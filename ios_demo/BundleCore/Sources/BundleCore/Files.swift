import Foundation

/// Whether a file is there, links followed.
func isRegularFile(_ url: URL) -> Bool {
    var isFolder: ObjCBool = false
    return FileManager.default.fileExists(atPath: url.path, isDirectory: &isFolder) && !isFolder.boolValue
}

func fileSize(_ url: URL) -> Int? {
    let attributes = try? FileManager.default.attributesOfItem(atPath: url.resolvingSymlinksInPath().path)
    return (attributes?[.size] as? NSNumber)?.intValue
}

/// Paths of all files below a folder, with forward slashes.
func filesBelow(_ folder: URL) -> [String] {
    FileManager.default.enumerator(atPath: folder.path)?
        .compactMap { $0 as? String }
        .filter { isRegularFile(folder.appendingPathComponent($0)) }
        .sorted() ?? []
}

/// Whether a path, links followed, stays in a folder.
func lies(_ url: URL, inside folder: URL) -> Bool {
    let inner = url.resolvingSymlinksInPath().standardizedFileURL.pathComponents
    let outer = folder.resolvingSymlinksInPath().standardizedFileURL.pathComponents
    return inner.count > outer.count && inner.starts(with: outer)
}
