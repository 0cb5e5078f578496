import Foundation

public func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { String(format: "%02x", $0) }.joined()
}

public func sha256(of data: Data) -> String {
    var stream = SHA256Stream()
    stream.update(data)
    return hexadecimal(stream.finish())
}

/// SHA-256 of a file, read in pieces: a model does not fit a phone's memory twice.
public func sha256(ofFile url: URL, pieceSize: Int = 1 << 20) throws -> String {
    let file = try FileHandle(forReadingFrom: url)
    defer { try? file.close() }
    var stream = SHA256Stream()
    while let piece = try file.read(upToCount: pieceSize), !piece.isEmpty {
        try Task.checkCancellation()
        stream.update(piece)
    }
    return hexadecimal(stream.finish())
}
