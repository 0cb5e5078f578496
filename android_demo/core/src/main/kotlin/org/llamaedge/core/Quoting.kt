package org.llamaedge.core

/**
 * Keeps control tokens that messages spell apart from those that the template writes: while a dialog is rendered, [MARK] follows
 * each character of a message that a control token could begin with. So no part of a message begins one, whatever the template
 * joins it with, cuts out of it or replaces in it, and none of a single character is one; and since its own operations do not see the marks ([Unmarked]), the template
 * decides as without them.
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
            if (fold(codePoint) in firsts) append(MARK)
        }
    }

    /** A template may change the case of what it is given. */
    private fun fold(codePoint: Int) = Character.toLowerCase(Character.toUpperCase(codePoint))

    /** Cuts what was rendered into the control tokens that the template wrote, and texts, without marks, between them. */
    inline fun cut(rendered: String, onText: (String) -> Unit, onToken: (String) -> Unit) {
        var start = 0
        finder.each(rendered, unless = MARK) { index, token ->
            onText(unmarked(rendered.substring(start, index)))
            onToken(token)
            start = index + token.length
        }
        onText(unmarked(rendered.substring(start)))
    }

    private fun unmarked(text: String) = text.replace("$MARK", "")

    companion object {
        /** A Unicode noncharacter: no text has it. */
        const val MARK = '\ufdd0'
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

    /** From one index of [text] to another, a mark after the last character included. */
    fun cut(from: Int, to: Int): String = if (places == null) marked.substring(from, to) else marked.substring(places[from], places[to])
}
