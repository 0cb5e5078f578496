package org.llamaedge.core

/**
 * UTF-8 that arrives in pieces. A character that is not finished waits for its next bytes; what can never become one is
 * U+FFFD at once, one for each maximal part (Unicode 15, section 3.9), as in Python's incremental decoder.
 */
class Utf8Stream {
    private val held = ByteArray(4)
    private var heldCount = 0

    fun push(bytes: ByteArray): String {
        val input = held.copyOf(heldCount) + bytes
        heldCount = 0
        val out = StringBuilder()
        var place = 0
        while (place < input.size) {
            val length = wholeLength(input, place)
            when {
                length > 0 -> out.append(String(input, place, length, Charsets.UTF_8))
                length == 0 -> {
                    heldCount = input.size - place
                    input.copyInto(held, 0, place)
                    return out.toString()
                }
                else -> out.append(REPLACEMENT)
            }
            place += Math.abs(length)
        }
        return out.toString()
    }

    /** The U+FFFD of a character that was never finished. */
    fun flush(): String = if (heldCount == 0) "" else REPLACEMENT.toString().also { heldCount = 0 }

    companion object {
        const val REPLACEMENT = '\ufffd'

        /** The text, or null where the bytes are not UTF-8. */
        fun decodeStrict(bytes: ByteArray): String? = try {
            Charsets.UTF_8.newDecoder().decode(java.nio.ByteBuffer.wrap(bytes)).toString()
        } catch (_: java.nio.charset.CharacterCodingException) {
            null
        }

        /** Bytes of the character at [place]; 0: it goes on beyond the end; negative: so many bytes are none. */
        private fun wholeLength(bytes: ByteArray, place: Int): Int {
            val first = bytes[place].toInt() and 0xff
            val length = when (first) {
                in 0x00..0x7f -> return 1
                in 0xc2..0xdf -> 2
                in 0xe0..0xef -> 3
                in 0xf0..0xf4 -> 4
                else -> return -1
            }
            for (offset in 1 until length) {
                if (place + offset >= bytes.size) return 0
                val next = bytes[place + offset].toInt() and 0xff
                val least = if (offset > 1) 0x80 else when (first) { 0xe0 -> 0xa0; 0xf0 -> 0x90; else -> 0x80 }
                val most = if (offset > 1) 0xbf else when (first) { 0xed -> 0x9f; 0xf4 -> 0x8f; else -> 0xbf }
                if (next !in least..most) return -offset
            }
            return length
        }
    }
}

/** Passes text on until a stop sequence has been written, and nothing of that one; what may become one is held back. */
class StopFilter(private val stops: List<String>) {
    private var held = ""
    var stopped = false
        private set

    init {
        require("" !in stops) { "a stop sequence is empty; it would stop before the first word" }
    }

    fun push(piece: String): String {
        if (stopped) return ""
        val text = held + piece
        val place = stops.map { text.indexOf(it) }.filter { it >= 0 }.minOrNull()
        if (place != null) {
            stopped = true
            held = ""
            return text.substring(0, place)
        }
        val keep = heldLength(text)
        held = text.takeLast(keep)
        return text.dropLast(keep)
    }

    /** What was held back and became no stop sequence. */
    fun flush(): String = held.also { held = "" }

    private fun heldLength(text: String): Int {
        val longest = minOf((stops.maxOfOrNull { it.length } ?: 1) - 1, text.length)
        return (longest downTo 1).firstOrNull { length -> stops.any { it.startsWith(text.takeLast(length)) } } ?: 0
    }
}
