package org.llamaedge.core

data class ToolCall(val name: String, val arguments: Map<String, Any?>)

/** A model began a tool call and did not end it as one. */
class ToolCallException(message: String) : Exception(message)

/**
 * The three forms that Llama 3.2 was trained to write: JSON `{"name", "parameters"}`, a list of Python calls `[f(a=1)]`, and
 * either after `<|python_tag|>`. The rules are those of `llama_edge/text/tool_calls.py`.
 */
object ToolCalls {
    const val PYTHON_TAG = "<|python_tag|>"
    private const val MAX_CHARACTERS = 1 shl 16
    private const val MAX_DEPTH = 16
    private val PYTHON_CALL = Regex("[A-Za-z_][A-Za-z0-9_.]*\\(")
    private val LOOKS_LIKE_CALL = Regex("\\[?\\s*\\{\\s*\"(name|type)\"\\s*:")

    /** The calls in a whole answer; none where it is plain text. Throws [ToolCallException]. */
    fun parse(answer: String): List<ToolCall> {
        var text = answer.trim()
        val tagged = text.startsWith(PYTHON_TAG)
        text = text.removePrefix(PYTHON_TAG).trim()
        if (text.startsWith("[") && PYTHON_CALL.matchesAt(text.drop(1).trimStart(), 0)) return python(text)
        if (tagged && PYTHON_CALL.matchesAt(text, 0)) return python("[$text]")
        if (text.startsWith("{") || text.startsWith("[")) {
            val calls = json(text)
            if (calls.isNotEmpty()) return calls
        }
        if (tagged) throw ToolCallException("after $PYTHON_TAG comes no call")
        return emptyList()
    }

    private fun json(text: String): List<ToolCall> {
        try {
            if (text.length > MAX_CHARACTERS) throw Json.ParseException("more than $MAX_CHARACTERS characters")
            // Calls may follow each other without being a list; strict JSON knows only the list.
            val values = parts(text).flatMap { part -> Json.parse(part).let { if (it is List<*>) it else listOf(it) } }
            val calls = values.map { call(it) }
            return if (calls.all { it != null }) calls.filterNotNull() else emptyList()
        } catch (error: Json.ParseException) {
            if (LOOKS_LIKE_CALL.matchesAt(text, 0)) throw ToolCallException("the call is not whole JSON: ${error.message}")
            return emptyList()
        }
    }

    /** Cuts `{...}; {...}` where a value ends. */
    private fun parts(text: String): List<String> {
        val parts = ArrayList<String>()
        var depth = 0
        var start = 0
        var inString = false
        var place = 0
        while (place < text.length) {
            val c = text[place]
            when {
                inString && c == '\\' -> place++
                c == '"' -> inString = !inString
                inString -> Unit
                c == '{' || c == '[' -> depth++
                c == '}' || c == ']' -> if (--depth == 0) {
                    parts += text.substring(start, place + 1)
                    while (place + 1 < text.length && text[place + 1] in " \t\r\n;") place++
                    start = place + 1
                }
            }
            place++
        }
        if (start < text.length) parts += text.substring(start)
        return parts
    }

    private fun call(value: Any?): ToolCall? {
        val call = value as? Map<*, *> ?: return null
        val name = call["name"] as? String ?: return null
        val arguments = (call["parameters"] ?: call["arguments"]) as? Map<*, *> ?: return null
        return ToolCall(name, checked(arguments.asObject()))
    }

    private fun checked(arguments: Map<String, Any?>) = arguments.also { check(it, 0) }

    private fun check(value: Any?, depth: Int) {
        if (depth > MAX_DEPTH) throw ToolCallException("arguments are nested more than $MAX_DEPTH deep")
        if (value is Map<*, *>) value.values.forEach { check(it, depth + 1) }
        if (value is List<*>) value.forEach { check(it, depth + 1) }
    }

    private fun python(text: String): List<ToolCall> {
        if (text.length > MAX_CHARACTERS) throw ToolCallException("the call has more than $MAX_CHARACTERS characters")
        return PythonCalls(text).list().onEach { check(it.arguments, 0) }
    }
}

/** `[f(a=1, b=['x', None]), g()]`: calls with named arguments whose values are plain literals. */
private class PythonCalls(private val text: String) {
    private var place = 0

    fun list(): List<ToolCall> {
        val calls = ArrayList<ToolCall>()
        items('[', ']') { calls += call() }
        skipSpace()
        if (place < text.length) fail("something follows the calls")
        return calls
    }

    private fun fail(what: String): Nothing = throw ToolCallException("$what at character $place of a call")

    private fun skipSpace() {
        while (place < text.length && text[place].isWhitespace()) place++
    }

    private fun peek(): Char = if (place < text.length) text[place] else fail("the end comes too early")

    private fun take(c: Char): Boolean {
        skipSpace()
        if (place >= text.length || text[place] != c) return false
        place++
        return true
    }

    private fun items(open: Char, close: Char, item: () -> Unit) {
        if (!take(open)) fail("'$open' is missing")
        while (!take(close)) {
            item()
            if (take(',')) continue
            if (take(close)) return
            fail("'$close' is missing")
        }
    }

    private fun call(): ToolCall {
        val name = dottedName()
        val arguments = LinkedHashMap<String, Any?>()
        items('(', ')') {
            val argument = name(NAME)
            if (!take('=')) fail("an argument has no name")
            if (argument in arguments) fail("$argument is named twice")
            arguments[argument] = value(0)
        }
        return ToolCall(name.removeSuffix(".call"), arguments)
    }

    private fun name(pattern: Regex): String {
        skipSpace()
        val found = pattern.matchAt(text, place)?.value ?: fail("a name is missing")
        place += found.length
        return found
    }

    /** No pattern with a repeated group: Java's matcher recurses once for each repetition. */
    private fun dottedName(): String {
        skipSpace()
        val start = place
        name(NAME)
        while (place < text.length && text[place] == '.') {
            val part = NAME.matchAt(text, place + 1) ?: break
            place = part.range.last + 1
        }
        return text.substring(start, place)
    }

    private fun value(depth: Int): Any? {
        if (depth > 32) fail("nested too deep")
        skipSpace()
        return when (peek()) {
            '\'', '"' -> string()
            '[' -> ArrayList<Any?>().also { out -> items('[', ']') { out += value(depth + 1) } }
            '{' -> LinkedHashMap<String, Any?>().also { out ->
                items('{', '}') {
                    skipSpace()
                    val key = string()
                    if (!take(':')) fail("':' is missing")
                    out[key] = value(depth + 1)
                }
            }
            in "-0123456789." -> number()
            else -> when (name(NAME)) {
                "True" -> true
                "False" -> false
                "None" -> null
                else -> fail("no plain value")
            }
        }
    }

    private fun number(): Any {
        val found = NUMBER.matchAt(text, place)?.value ?: fail("no number")
        place += found.length
        if (found.none { it in ".eE" }) return found.toLongOrNull() ?: fail("an integer of more than 64 bits")
        return found.toDouble().also { if (it.isInfinite()) fail("a number too large") }
    }

    private fun string(): String {
        val quote = peek()
        if (quote != '\'' && quote != '"') fail("a text is missing")
        place++
        val out = StringBuilder()
        while (peek() != quote) {
            val c = text[place++]
            if (c == '\n') fail("a text runs over a line's end")
            out.append(if (c == '\\') escape() else c.toString())
        }
        place++
        return out.toString()
    }

    private fun escape(): String {
        val c = peek()
        place++
        return when (c) {
            'n' -> "\n"
            't' -> "\t"
            'r' -> "\r"
            '\\', '\'', '"' -> c.toString()
            'x' -> code(2)
            'u' -> code(4)
            'U' -> code(8)
            else -> "\\$c"
        }
    }

    private fun code(digits: Int): String {
        val number = text.substring(place, minOf(place + digits, text.length)).toIntOrNull(16)
        if (number == null || number !in 0..0x10ffff || number in 0xd800..0xdfff || place + digits > text.length) {
            fail("an unknown character")
        }
        place += digits
        return String(Character.toChars(number))
    }

    private companion object {
        val NAME = Regex("[A-Za-z_][A-Za-z0-9_]*")
        val NUMBER = Regex("-?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([eE][+-]?[0-9]+)?")
    }
}
