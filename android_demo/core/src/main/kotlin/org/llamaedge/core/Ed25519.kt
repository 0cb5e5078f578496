package org.llamaedge.core

import java.math.BigInteger
import java.security.MessageDigest

/**
 * Verification of Ed25519 signatures (RFC 8032, section 5.1.7). Android's own provider has them only in recent versions.
 * Nothing here is secret, so nothing needs constant time.
 */
object Ed25519 {
    // BigInteger.TWO is younger than the oldest Android that the app runs on.
    private val TWO = BigInteger.valueOf(2)
    private val P = TWO.pow(255) - BigInteger.valueOf(19)
    private val ORDER = TWO.pow(252) + BigInteger("27742317777372353535851937790883648493")
    private val D = (BigInteger.valueOf(-121665) * BigInteger.valueOf(121666).modInverse(P)).mod(P)
    private val ROOT_OF_MINUS_ONE = TWO.modPow((P - BigInteger.ONE) / BigInteger.valueOf(4), P)
    private val IDENTITY = Point(BigInteger.ZERO, BigInteger.ONE, BigInteger.ONE, BigInteger.ZERO)
    private val BASE = decode(encodeY(BigInteger.valueOf(4) * BigInteger.valueOf(5).modInverse(P)))!!

    /** Whether [signature] (64 bytes) over [message] was made with the private half of [publicKey] (32 bytes). */
    fun verify(publicKey: ByteArray, message: ByteArray, signature: ByteArray): Boolean {
        if (publicKey.size != 32 || signature.size != 64) return false
        val key = decode(publicKey) ?: return false
        val nonce = signature.copyOf(32)
        val r = decode(nonce) ?: return false
        val s = littleEndian(signature.copyOfRange(32, 64))
        if (s >= ORDER) return false
        val digest = MessageDigest.getInstance("SHA-512").run {
            update(nonce)
            update(publicKey)
            digest(message)
        }
        val challenge = littleEndian(digest).mod(ORDER)
        return BASE.times(s).sameAs(r.plus(key.times(challenge)))
    }

    /** Extended homogeneous coordinates, RFC 8032 section 5.1.4. */
    private class Point(val x: BigInteger, val y: BigInteger, val z: BigInteger, val t: BigInteger) {
        fun plus(other: Point): Point {
            val a = ((y - x) * (other.y - other.x)).mod(P)
            val b = ((y + x) * (other.y + other.x)).mod(P)
            val c = (TWO * t * other.t * D).mod(P)
            val d = (TWO * z * other.z).mod(P)
            val (e, f) = b - a to d - c
            val (g, h) = d + c to b + a
            return Point((e * f).mod(P), (g * h).mod(P), (f * g).mod(P), (e * h).mod(P))
        }

        fun times(scalar: BigInteger): Point {
            var sum = IDENTITY
            for (bit in scalar.bitLength() - 1 downTo 0) {
                sum = sum.plus(sum)
                if (scalar.testBit(bit)) sum = sum.plus(this)
            }
            return sum
        }

        fun sameAs(other: Point): Boolean =
            (x * other.z - other.x * z).mod(P).signum() == 0 && (y * other.z - other.y * z).mod(P).signum() == 0
    }

    private fun littleEndian(bytes: ByteArray) = BigInteger(1, bytes.reversedArray())

    private fun encodeY(y: BigInteger): ByteArray {
        val bytes = y.mod(P).toByteArray().reversedArray()
        return ByteArray(32) { if (it < bytes.size) bytes[it] else 0 }
    }

    private fun decode(bytes: ByteArray): Point? {
        val odd = bytes[31].toInt() and 0x80 != 0
        val y = littleEndian(bytes.copyOf().also { it[31] = (it[31].toInt() and 0x7f).toByte() })
        if (y >= P) return null
        val (u, v) = (y * y - BigInteger.ONE).mod(P) to (D * y * y + BigInteger.ONE).mod(P)
        val square = (u * v.modInverse(P)).mod(P)
        var x = square.modPow((P + BigInteger.valueOf(3)) / BigInteger.valueOf(8), P)
        if ((x * x - square).mod(P).signum() != 0) x = (x * ROOT_OF_MINUS_ONE).mod(P)
        if ((x * x - square).mod(P).signum() != 0) return null
        if (x.signum() == 0 && odd) return null
        if (x.testBit(0) != odd) x = P - x
        return Point(x, y, BigInteger.ONE, (x * y).mod(P))
    }
}
