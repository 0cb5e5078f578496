package org.llamaedge.core

/**
 * Keeps control tokens that messages spell apart from those that the template writes: while a dialog is rendered, [MARK] follows
 * each character of a message that a control token could begin with. So no part of a message begins one, whatever the template
 * joins it with, cuts out of it or replaces in it, and none of a single character is one. The template's own operations do not
 * see the marks ([Unmarked]): it decides as without them.
 */
internal class Quoting(control: Set<String>) {
    private val finder = TokenFinder(control)
    private val firsts = control.map { fold(it.codePointAt(0)) }.toSet()

    /** Every text in [values], names included: role, content, the calls of tools, their arguments. */
    fun quoted(values: Map<String, Any?>): Map<String, Any?> =
        values.entries.associate { (name, value) -> quoted(name) to quotedValue(value) }

    private fun quotedValue(value: Any?): Any? = when (value) {
        is String -> quoted(value)
        is Map<*, *> -> quoted(value.asObject())
        is List<*> -> value.map { quotedValue(it) }
        else -> value
    }

    private fun quoted(text: String): String = buildString(text.length) {
        var index = 0
        while (index < text.length) {
            val codePoint = text.codePointAt(index)
            index += Character.charCount(codePoint)
            if (codePoint == MARK.code) append(Utf8Stream.REPLACEMENT) else appendCodePoint(codePoint)
            if (isFirst(codePoint)) append(MARK)
        }
    }

    /** A template may change the case of what it is given; in capitals, one character may become several. */
    private fun isFirst(codePoint: Int): Boolean {
        if (fold(codePoint) in firsts) return true
        if (codePoint < ASCII) return false
        val text = String(Character.toChars(codePoint))
        return (text.uppercase() + text.lowercase()).any { fold(it.code) in firsts }
    }

    private fun fold(codePoint: Int) = Character.toLowerCase(Character.toUpperCase(codePoint))

    /** A control token, or text between two of them. */
    data class Piece(val text: String, val isToken: Boolean)

    /** What was rendered, without marks; control tokens are those that the template wrote. */
    fun cut(rendered: String): List<Piece> {
        val pieces = ArrayList<Piece>()
        var start = 0
        finder.each(rendered, unless = MARK) { index, token ->
            pieces += Piece(unmarked(rendered.substring(start, index)), isToken = false)
            pieces += Piece(token, isToken = true)
            start = index + token.length
        }
        pieces += Piece(unmarked(rendered.substring(start)), isToken = false)
        return pieces
    }

    fun unmarked(text: String) = text.replace("$MARK", "")

    companion object {
        /** A Unicode noncharacter: no text has it. */
        const val MARK = '\ufdd0'
        private const val ASCII = 128
    }
}

/** A text as a template sees it, without marks, and where its characters are in the text. */
internal class Unmarked(private val marked: String) {
    private val places: IntArray?
    val text: String

    init {
        if (Quoting.MARK in marked) {
            val list = IntList(marked.length)
            text = buildString(marked.length) {
                marked.forEachIndexed { index, c ->
                    if (c == Quoting.MARK) return@forEachIndexed
                    append(c)
                    list.add(index)
                }
            }
            list.add(marked.length)
            places = list.toIntArray()
        } else {
            text = marked
            places = null
        }
    }

    /** The text in another case, with the marks. Where one character has become several, nobody knows which: each gets one. */
    fun marking(changed: String): String {
        if (places == null) return changed
        val isAligned = changed.length == text.length
        return buildString {
            changed.forEachIndexed { index, c ->
                append(c)
                if (!c.isHighSurrogate() && (!isAligned || places[index + 1] - places[index] > 1)) append(Quoting.MARK)
            }
        }
    }

    /** From one index of [text] to another, a mark after the last character included. */
    fun cut(from: Int, to: Int): String = if (places == null) marked.substring(from, to) else marked.substring(places[from], places[to])
}
