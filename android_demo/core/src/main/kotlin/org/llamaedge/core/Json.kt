package org.llamaedge.core

/**
 * JSON as plain values: `Map`, `List`, `String`, `Long`, `Double`, `Boolean` and null. Strict, and bounded, since it may come from
 * a stranger: in depth, in the number of values, in the length of a number; a name that an object has twice is refused, and so is
 * half of a surrogate pair.
 */
object Json {
    const val MAX_DEPTH = 64

    /** Items of all lists and members of all objects; the largest tokenizers have 1.8 million. */
    const val MAX_VALUES = 1 shl 21

    /** `model_max_length` is often an integer of 31 digits. */
    private const val MAX_NUMBER_CHARACTERS = 64
    private const val MAX_INDENT = 16

    open class ParseException(message: String) : Exception(message)

    /** There are more values than the caller takes. */
    class TooManyValues(limit: Int) : ParseException("more than $limit values")

    /** The one value that [text] holds; throws [ParseException]. */
    fun parse(text: String, maxValues: Int = MAX_VALUES): Any? = Reader(text, maxValues).document()

    /** Bytes that must be UTF-8; throws [ParseException]. */
    fun parse(bytes: ByteArray, maxValues: Int = MAX_VALUES): Any? =
        parse(Utf8Stream.decodeStrict(bytes) ?: throw ParseException("not UTF-8"), maxValues)

    /**
     * As Python's `json.dumps(ensure_ascii=False)` writes it; templates rely on each space.
     *
     * Throws [IllegalArgumentException] for what is no JSON value, is nested too deep, or needs more than [maxCharacters].
     */
    fun write(value: Any?, indent: Int? = null, maxCharacters: Int = Int.MAX_VALUE): String {
        require(indent == null || indent in 0..MAX_INDENT) { "an indent of $indent; 0 to $MAX_INDENT are accepted" }
        return StringBuilder().also { Writer(it, indent, maxCharacters).value(value, 0) }.toString()
    }

    private class Writer(val out: StringBuilder, val indent: Int?, val maxCharacters: Int) {
        fun value(value: Any?, depth: Int) {
            require(depth <= MAX_DEPTH) { "a value is nested more than $MAX_DEPTH deep" }
            when (value) {
                null -> put("null")
                is String -> string(value)
                is Map<*, *> -> items("{", "}", value.entries, depth) { entry ->
                    string(entry.key as String)
                    put(": ")
                    value(entry.value, depth + 1)
                }
                is List<*> -> items("[", "]", value, depth) { value(it, depth + 1) }
                is Double -> put(number(value))
                is Boolean, is Long, is Int -> put(value.toString())
                else -> throw IllegalArgumentException("${value::class.simpleName} is no JSON value")
            }
        }

        private fun put(text: String, from: Int = 0, to: Int = text.length) {
            require(to - from <= maxCharacters - out.length) { "JSON of more than $maxCharacters characters" }
            out.append(text, from, to)
        }

        private fun <T> items(open: String, close: String, items: Collection<T>, depth: Int, write: (T) -> Unit) {
            put(open)
            items.forEachIndexed { index, item ->
                if (index > 0) put(if (indent == null) ", " else ",")
                line(depth + 1)
                write(item)
            }
            if (items.isNotEmpty()) line(depth)
            put(close)
        }

        private fun line(depth: Int) {
            if (indent == null) return
            put("\n")
            repeat(depth) { put(" ".repeat(indent)) }
        }

        private fun string(text: String) {
            put("\"")
            var start = 0
            text.forEachIndexed { index, c ->
                val escaped = escaped(c) ?: return@forEachIndexed
                put(text, start, index)
                put(escaped)
                start = index + 1
            }
            put(text, start, text.length)
            put("\"")
        }

        private fun escaped(c: Char): String? = when (c) {
            '"' -> "\\\""
            '\\' -> "\\\\"
            '\n' -> "\\n"
            '\r' -> "\\r"
            '\t' -> "\\t"
            '\b' -> "\\b"
            '\u000c' -> "\\f"
            else -> if (c < ' ') "\\u%04x".format(c.code) else null
        }
    }

    /** Python's shortest form, which differs from Kotlin's in the exponent. */
    private fun number(value: Double): String {
        require(!value.isNaN() && !value.isInfinite()) { "$value is no JSON value" }
        val magnitude = Math.abs(value)
        if (magnitude != 0.0 && (magnitude >= 1e16 || magnitude < 1e-4)) {
            val (digits, exponent) = value.toString().split('E').let { it[0] to it[1].toInt() }
            val sign = if (exponent < 0) "-" else "+"
            return digits.removeSuffix(".0") + "e" + sign + Math.abs(exponent).toString().padStart(2, '0')
        }
        val plain = java.math.BigDecimal(value.toString()).stripTrailingZeros().toPlainString()
        return if ('.' in plain) plain else "$plain.0"
    }

    private class Reader(val text: String, val maxValues: Int) {
        private var place = 0
        private var values = 0

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
                if (name in members) fail("the name ${write(name.take(SHOWN))} for the second time")
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
                if (++values > maxValues) throw TooManyValues(maxValues)
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
                    c == '"' -> return out.toString().also { if (hasLoneSurrogate(it)) fail("half of a surrogate pair") }
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

        /** By hand: a matcher over [text] copies all of it on Android, and a tokenizer has a number for each token. */
        private fun number(): Any {
            val start = place
            if (peek() == '-') place++
            val first = peek()
            val digits = skipDigits()
            if (digits == 0 || (digits > 1 && first == '0')) fail("no value")
            var whole = true
            if (takeAny(".")) {
                whole = false
                if (skipDigits() == 0) fail("a digit is missing")
            }
            if (takeAny("eE")) {
                whole = false
                takeAny("+-")
                if (skipDigits() == 0) fail("a digit is missing")
            }
            if (place - start > MAX_NUMBER_CHARACTERS) fail("a number of more than $MAX_NUMBER_CHARACTERS characters")
            val found = text.substring(start, place)
            val integer = if (whole) found.toLongOrNull() else null
            return integer ?: found.toDouble().also { if (it.isInfinite()) fail("a number too large") }
        }

        private fun skipDigits(): Int {
            val start = place
            while (place < text.length && text[place] in '0'..'9') place++
            return place - start
        }

        private fun takeAny(characters: String): Boolean {
            if (place >= text.length || text[place] !in characters) return false
            place++
            return true
        }
    }

    private fun hasLoneSurrogate(text: String): Boolean {
        var index = 0
        while (index < text.length) {
            val c = text[index++]
            if (!c.isSurrogate()) continue
            if (c.isLowSurrogate() || index == text.length || !text[index++].isLowSurrogate()) return true
        }
        return false
    }

    /** Characters of a stranger's name that an error shows. */
    private const val SHOWN = 40
    private val HEX = Regex("[0-9a-fA-F]{4}")
}

/** Fields of what a schema has already checked. */
@Suppress("UNCHECKED_CAST")
internal fun Any?.asObject(): Map<String, Any?> = this as Map<String, Any?>

internal fun Any?.asList(): List<Any?> = this as List<Any?>

/** Works for 1 and 1.0, as in JSON Schema. */
internal fun Any?.asInt(): Int = (this as Number).toInt()

internal fun Any?.asInts(): List<Int> = asList().map { it.asInt() }
