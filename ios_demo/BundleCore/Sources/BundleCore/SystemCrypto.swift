import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// SHA-256 of bytes that come in pieces.
public struct SHA256Stream {
    private var state = SHA256()

    public init() {}

    public mutating func update(_ data: Data) {
        state.update(data: data)
    }

    public func finish() -> [UInt8] {
        Array(state.finalize())
    }
}

/// CryptoKit's Ed25519, or swift-crypto's.
public struct SystemSignatureVerifier: SignatureVerifier {
    public init() {}

    public func verifies(_ signature: Data, of message: Data, publicKey: Data) throws -> Bool {
        try Curve25519.Signing.PublicKey(rawRepresentation: publicKey).isValidSignature(signature, for: message)
    }
}
