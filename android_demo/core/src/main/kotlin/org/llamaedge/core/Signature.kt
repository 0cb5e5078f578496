package org.llamaedge.core

import java.io.File
import java.security.MessageDigest
import java.util.Base64
import org.bouncycastle.crypto.params.Ed25519PublicKeyParameters
import org.bouncycastle.crypto.signers.Ed25519Signer

/** `manifest.sig`: Ed25519 over the bytes of the manifest; docs/signing.md has the format. */
internal class SignatureFile(private val root: File) {
    fun check(manifest: ByteArray, publicKey: ByteArray?): Finding? {
        val file = File(root, NAME)
        val keyId = publicKey?.let { BundleReader.hex(MessageDigest.getInstance("SHA-256").digest(it)) }
        val trusted = if (keyId == null) "a signature" else "a signature with the key $keyId"
        if (!file.isFile) return if (publicKey == null) null else Finding("signature.missing", NAME, trusted, "no such file")
        val value = read(file)
        val signature = base64(value?.get("signature") as? String ?: "")
        val known = value?.get("algorithm") == "ed25519" && value["format_version"] == 1L && value["key_id"] is String
        if (!known || signature == null || signature.size != SIGNATURE_BYTES) {
            return Finding("signature.unreadable", NAME, trusted, "another format")
        }
        if (publicKey == null) return null
        if (value["key_id"] != keyId) return Finding("signature.unknown_key", NAME, trusted, "one with ${value["key_id"]}")
        if (verifies(publicKey, manifest, signature)) return null
        return Finding("signature.invalid", NAME, trusted, "a signature of other bytes")
    }

    private fun read(file: File): Map<*, *>? = try {
        if (file.length() > MAX_BYTES) null else Json.parse(BundleReader.readAll(file)) as? Map<*, *>
    } catch (_: Json.ParseException) {
        null
    }

    private fun base64(text: String): ByteArray? = try {
        // The decoder takes text without its padding, which Python's does not.
        if (text.length % 4 == 0) Base64.getDecoder().decode(text) else null
    } catch (_: IllegalArgumentException) {
        null
    }

    companion object {
        const val NAME = "manifest.sig"
        private const val MAX_BYTES = 1L shl 16
        private const val SIGNATURE_BYTES = 64

        /** Whether [signature] over [message] was made with the private half of [publicKey], 32 bytes; false where that is no key. */
        fun verifies(publicKey: ByteArray, message: ByteArray, signature: ByteArray): Boolean {
            val key = try {
                Ed25519PublicKeyParameters(publicKey)
            } catch (_: IllegalArgumentException) {
                return false
            }
            return Ed25519Signer().run {
                init(false, key)
                update(message, 0, message.size)
                verifySignature(signature)
            }
        }
    }
}
