package org.llamaedge.core

import java.io.File
import java.math.BigInteger
import java.security.KeyPairGenerator
import java.security.Signature
import java.util.Base64
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class SignatureTest {
    @get:Rule
    val folder = TemporaryFolder()

    private fun bytes(hex: String) = hex.chunked(2).map { it.toInt(16).toByte() }.toByteArray()

    private fun changed(bytes: ByteArray, index: Int) = bytes.copyOf().also { it[index] = (it[index].toInt() xor 1).toByte() }

    /** RFC 8032, section 7.1, tests 1 and 2. */
    @Test
    fun verifiesTheExamplesOfTheStandard() {
        val first = bytes("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
        val ofFirst = bytes(
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        )
        val second = bytes("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
        val ofSecond = bytes(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        )
        assertTrue(SignatureFile.verifies(first, ByteArray(0), ofFirst))
        assertTrue(SignatureFile.verifies(second, byteArrayOf(0x72), ofSecond))
        assertFalse("of the other key", SignatureFile.verifies(first, byteArrayOf(0x72), ofSecond))
    }

    @Test
    fun agreesWithTheClassLibraryOfTheDesktop() {
        val generator = KeyPairGenerator.getInstance("Ed25519")
        repeat(8) { round ->
            val pair = generator.generateKeyPair()
            val key = pair.public.encoded.takeLast(32).toByteArray()
            val message = ByteArray(round * 37) { it.toByte() }
            val signature = Signature.getInstance("Ed25519").run {
                initSign(pair.private)
                update(message)
                sign()
            }
            assertTrue(SignatureFile.verifies(key, message, signature))
            assertFalse(SignatureFile.verifies(key, message + 1, signature))
            for (index in listOf(0, 31, 32, 63)) assertFalse(SignatureFile.verifies(key, message, changed(signature, index)))
            assertFalse("the scalar plus the group's order", SignatureFile.verifies(key, message, withOrderAdded(signature)))
        }
    }

    private fun withOrderAdded(signature: ByteArray): ByteArray {
        val order = BigInteger.ONE.shiftLeft(252) + BigInteger("27742317777372353535851937790883648493")
        val scalar = BigInteger(1, signature.copyOfRange(32, 64).reversedArray()) + order
        val encoded = scalar.toByteArray().reversedArray().copyOf(32)
        return signature.copyOf(32) + encoded
    }

    @Test
    fun whatIsNoKeyVerifiesNothing() {
        for (key in listOf(ByteArray(0), ByteArray(31), ByteArray(33), ByteArray(32) { -1 })) {
            assertFalse(SignatureFile.verifies(key, ByteArray(1), ByteArray(64)))
        }
    }

    @Test
    fun theSignatureIsStrictBase64Of64Bytes() {
        fun code(signature: String): String? {
            val form = mapOf("algorithm" to "ed25519", "format_version" to 1L, "key_id" to "k", "signature" to signature)
            File(folder.root, SignatureFile.NAME).writeText(Json.write(form))
            return SignatureFile(folder.root).check(ByteArray(0), null)?.code
        }
        val good = Base64.getEncoder().encodeToString(ByteArray(64) { (it * 5).toByte() })
        assertNull(code(good))
        val wrong = listOf(
            good.dropLast(2), good.dropLast(1), " $good", "$good\n", good.replaceRange(4, 5, "-"), good.replaceRange(4, 5, "="), good + good, "",
        )
        assertEquals(wrong.map { "signature.unreadable" }, wrong.map { code(it) })
    }
}
