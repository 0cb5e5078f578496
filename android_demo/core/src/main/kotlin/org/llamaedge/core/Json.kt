package org.llamaedge.core

/** JSON as plain values: `Map`, `List`, `String`, `Long`, `Double`, `Boolean` and null. Strict, and bounded in depth. */
object Json {
    const val MAX_DEPTH = 64

    class ParseException(message: String) : Exception(message)

    /** The one value that [text] holds; throws [ParseException]. */
    fun parse(text: String): Any? = Reader(text).document()

    /** Bytes that must be UTF-8; throws [ParseException]. */
    fun parse(bytes: ByteArray): Any? = parse(Utf8Stream.decodeStrict(bytes) ?: throw ParseException("not UTF-8"))

    /** As Python's `json.dumps(ensure_ascii=False)` writes it; templates rely on each space. */
    fun write(value: Any?, indent: Int? = null): String = StringBuilder().also { Writer(it, indent).value(value, 0) }.toString()

    private class Writer(val out: StringBuilder, val indent: Int?) {
        fun value(value: Any?, depth: Int) {
            when (value) {
                null -> out.append("null")
                is String -> string(value)
                is Map<*, *> -> items('{', '}', value.entries.toList(), depth) { entry ->
                    string(entry.key as String)
                    out.append(": ")
                    value(entry.value, depth + 1)
                }
                is List<*> -> items('[', ']', value, depth) { value(it, depth + 1) }
                is Double -> out.append(number(value))
                is Boolean, is Long, is Int -> out.append(value.toString())
                else -> throw IllegalArgumentException("${value::class.simpleName} is no JSON value")
            }
        }

        private fun <T> items(open: Char, close: Char, items: List<T>, depth: Int, write: (T) -> Unit) {
            out.append(open)
            items.forEachIndexed { index, item ->
                if (index > 0) out.append(if (indent == null) ", " else ",")
                line(depth + 1)
                write(item)
            }
            if (items.isNotEmpty()) line(depth)
            out.append(close)
        }

        private fun line(depth: Int) {
            if (indent != null) out.append('\n').append(" ".repeat(indent * depth))
        }

        private fun string(text: String) {
            out.append('"')
            for (c in text) {
                when (c) {
                    '"' -> out.append("\\\"")
                    '\\' -> out.append("\\\\")
                    '\n' -> out.append("\\n")
                    '\r' -> out.append("\\r")
                    '\t' -> out.append("\\t")
                    '\b' -> out.append("\\b")
                    '\u000c' -> out.append("\\f")
                    else -> if (c < ' ') out.append("\\u%04x".format(c.code)) else out.append(c)
                }
            }
            out.append('"')
        }
    }

    /** Python's shortest form, which differs from Kotlin's in the exponent. */
    private fun number(value: Double): String {
        val magnitude = Math.abs(value)
        if (magnitude != 0.0 && (magnitude >= 1e16 || magnitude < 1e-4)) {
            val (digits, exponent) = value.toString().split('E').let { it[0] to it[1].toInt() }
            val sign = if (exponent < 0) "-" else "+"
            return digits.removeSuffix(".0") + "e" + sign + Math.abs(exponent).toString().padStart(2, '0')
        }
        val plain = java.math.BigDecimal(value.toString()).stripTrailingZeros().toPlainString()
        return if ('.' in plain) plain else "$plain.0"
    }

    private class Reader(val text: String) {
        private var place = 0

        fun document(): Any? {
            val value = value(0)
            skipSpace()
            if (place < text.length) fail("something follows the value")
            return value
        }

        private fun fail(what: String): Nothing = throw ParseException("$what at character $place")

        private fun skipSpace() {
            while (place < text.length && text[place] in " \t\r\n") place++
        }

        private fun peek(): Char = if (place < text.length) text[place] else fail("the end comes too early")

        private fun expect(c: Char) {
            if (peek() != c) fail("'$c' is missing")
            place++
        }

        private fun value(depth: Int): Any? {
            if (depth > MAX_DEPTH) fail("nested more than $MAX_DEPTH deep")
            skipSpace()
            return when (peek()) {
                '{' -> objectValue(depth)
                '[' -> arrayValue(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        private fun word(word: String, value: Boolean?): Boolean? {
            if (!text.startsWith(word, place)) fail("no value")
            place += word.length
            return value
        }

        private fun objectValue(depth: Int): Map<String, Any?> {
            val members = LinkedHashMap<String, Any?>()
            separated('{', '}') {
                skipSpace()
                if (peek() != '"') fail("a name is missing")
                val name = string()
                skipSpace()
                expect(':')
                members[name] = value(depth + 1)
            }
            return members
        }

        private fun arrayValue(depth: Int): List<Any?> {
            val items = ArrayList<Any?>()
            separated('[', ']') { items += value(depth + 1) }
            return items
        }

        private fun separated(open: Char, close: Char, item: () -> Unit) {
            expect(open)
            skipSpace()
            if (peek() == close) {
                place++
                return
            }
            while (true) {
                item()
                skipSpace()
                if (peek() == close) break
                expect(',')
            }
            place++
        }

        private fun string(): String {
            expect('"')
            val out = StringBuilder()
            while (true) {
                val c = peek()
                place++
                when {
                    c == '"' -> return out.toString()
                    c == '\\' -> out.append(escape())
                    c < ' ' -> fail("a control character")
                    else -> out.append(c)
                }
            }
        }

        private fun escape(): Char {
            val c = peek()
            place++
            return when (c) {
                '"', '\\', '/' -> c
                'n' -> '\n'
                't' -> '\t'
                'r' -> '\r'
                'b' -> '\b'
                'f' -> '\u000c'
                'u' -> {
                    val digits = text.substring(place, minOf(place + 4, text.length))
                    if (!HEX.matches(digits)) fail("\\u needs four digits")
                    place += 4
                    digits.toInt(16).toChar()
                }
                else -> fail("an unknown escape")
            }
        }

        private fun number(): Any {
            val found = NUMBER.matchAt(text, place)?.value ?: fail("no value")
            place += found.length
            val whole = if (found.any { it in ".eE" }) null else found.toLongOrNull()
            return whole ?: found.toDouble().also { if (it.isInfinite()) fail("a number too large") }
        }
    }

    private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")
    private val HEX = Regex("[0-9a-fA-F]{4}")
}

/** Fields of what a schema has already checked. */
@Suppress("UNCHECKED_CAST")
internal fun Any?.asObject(): Map<String, Any?> = this as Map<String, Any?>

internal fun Any?.asList(): List<Any?> = this as List<Any?>

/** Works for 1 and 1.0, as in JSON Schema. */
internal fun Any?.asInt(): Int = (this as Number).toInt()

internal fun Any?.asInts(): List<Int> = asList().map { it.asInt() }
