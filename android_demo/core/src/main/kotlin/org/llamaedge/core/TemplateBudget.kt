package org.llamaedge.core

/**
 * What one rendering may cost. Everything that a template makes is measured before it is made, and all of it together has a
 * limit, so what it holds at once has the same one: some 64 MB, which a phone gives an app.
 */
internal class TemplateBudget {
    private var steps = 0
    private var work = 0L

    private fun fail(what: String): Nothing = throw TemplateException(what)

    /** One turn of a loop. */
    fun step() {
        if (++steps > MAX_STEPS) fail("it takes more than $MAX_STEPS steps")
    }

    /** Work, in characters that are read or written, before it is done. */
    fun charge(characters: Long) {
        if (characters > MAX_WORK - work) fail("it does more work than to read or write $MAX_WORK characters")
        work += characters
    }

    /** A text, before it is made. */
    fun text(characters: Long) {
        if (characters > MAX_TEXT) fail("it makes a text of $characters characters; at most $MAX_TEXT are accepted")
        charge(characters)
    }

    /** A list or a mapping, before it is made. */
    fun list(items: Long) {
        if (items > MAX_ITEMS) fail("it makes a list of $items items; at most $MAX_ITEMS are accepted")
        charge(items * ITEM)
    }

    /** How long the next text may be. */
    val room: Int get() = minOf(MAX_TEXT.toLong(), MAX_WORK - work).toInt()

    companion object {
        const val MAX_STEPS = 50_000
        const val MAX_TEXT = 1 shl 22
        const val MAX_ITEMS = 1 shl 17
        const val MAX_WORK = 1L shl 25

        /** An item is a reference and an object of some 60 bytes, as 32 characters are. */
        private const val ITEM = 32L
    }
}
