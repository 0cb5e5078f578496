import Foundation

/// Something that verifies Ed25519 signatures; a test may put its own in.
public protocol SignatureVerifier: Sendable {
    func verifies(_ signature: Data, of message: Data, publicKey: Data) throws -> Bool
}

/// `manifest.sig`: Ed25519 over the bytes of `manifest.json`, which names every other file's hash.
public struct BundleSignature: Sendable {
    public static let fileName = "manifest.sig"
    private static let maxBytes = 1 << 16

    let keyID: String
    let signature: Data

    /// The finding, or nil where the signature holds, or where no key is trusted and nothing contradicts.
    public static func check(
        folder: URL, publicKey: Data?, verifier: some SignatureVerifier = SystemSignatureVerifier()
    ) throws -> Finding? {
        let url = folder.appendingPathComponent(fileName)
        let keyName = publicKey.map { sha256(of: $0) }
        let wanted = keyName.map { "a signature with the key \($0)" } ?? "a signature"
        guard isRegularFile(url) else {
            return publicKey.map { _ in Finding("signature.missing", at: fileName, expected: wanted, found: "no such file") }
        }
        guard let read = read(url) else {
            return Finding("signature.unreadable", at: fileName, expected: wanted, found: "another form")
        }
        guard let publicKey, let keyName else { return nil }
        guard read.keyID == keyName else {
            return Finding("signature.unknown_key", at: fileName, expected: wanted, found: "one with \(read.keyID)")
        }
        let manifest = try Data(contentsOf: folder.appendingPathComponent(Manifest.fileName))
        if try verifier.verifies(read.signature, of: manifest, publicKey: publicKey) { return nil }
        return Finding("signature.invalid", at: fileName, expected: wanted, found: "a signature of other bytes")
    }

    private static func read(_ url: URL) -> BundleSignature? {
        guard let size = fileSize(url), size <= maxBytes, let data = try? Data(contentsOf: url),
            let form = try? JSONValue(parsing: data), form["algorithm"] == .string("ed25519"), form["format_version"] == .int(1),
            let keyID = form["key_id"]?.stringValue, let text = form["signature"]?.stringValue,
            let signature = Data(base64Encoded: text), signature.count == 64
        else { return nil }
        return BundleSignature(keyID: keyID, signature: signature)
    }

    /// The 32 bytes in a PEM file of `llama-edge keygen`; nil for anything else.
    public static func publicKey(pem: String) -> Data? {
        // RFC 8410: a SubjectPublicKeyInfo of Ed25519 is these 12 bytes and the key.
        let prefix = Data([0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00])
        let body = pem.split(whereSeparator: \.isNewline).filter { !$0.hasPrefix("-----") }.joined()
        guard let data = Data(base64Encoded: body), data.count == 44, data.starts(with: prefix) else { return nil }
        return data.suffix(32)
    }
}
