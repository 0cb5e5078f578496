import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#elseif canImport(Crypto)
    import Crypto
#endif

/// SHA-256 of bytes that come in pieces.
///
/// CryptoKit's on Apple platforms. Foundation has none, so without CryptoKit (the checks on Linux) the algorithm of FIPS
/// 180-4 is written out: it hashes nothing secret, and the tests hold it to the standard's own vectors.
public struct SHA256Stream {
    #if canImport(CryptoKit) || canImport(Crypto)
        private var state = SHA256()

        public init() {}

        public mutating func update(_ data: Data) {
            state.update(data: data)
        }

        public func finish() -> [UInt8] {
            Array(state.finalize())
        }
    #else
        private var state = PlainSHA256()

        public init() {}

        public mutating func update(_ data: Data) {
            state.update(data)
        }

        public func finish() -> [UInt8] {
            var copy = state
            return copy.finish()
        }
    #endif
}

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
