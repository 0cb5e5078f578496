package org.llamaedge.core

/**
 * What templates do with texts, as Python's `str` does it: by code points, and with everything measured. Marks of [Quoting] are
 * not seen; they stay with the character in front of them.
 */
internal class TemplateStrings(private val budget: TemplateBudget) {
    private fun fail(what: String): Nothing = throw TemplateException(what)

    private fun seen(text: String): Unmarked {
        budget.charge(3L * text.length)
        return Unmarked(text)
    }

    fun concat(left: String, right: String): String {
        budget.text(left.length.toLong() + right.length)
        return left + right
    }

    fun join(texts: List<String>, separator: String): String {
        budget.text(texts.sumOf { it.length.toLong() } + separator.length.toLong() * texts.size)
        return texts.joinToString(separator)
    }

    fun upper(text: String): String = cased(text) { it.uppercase() }

    fun lower(text: String): String = cased(text) { it.lowercase() }

    /** One character may become three. */
    private fun cased(text: String, change: (String) -> String): String {
        val where = seen(text)
        budget.text(3L * text.length)
        return where.marking(change(where.text))
    }

    fun strip(text: String, characters: String?, left: Boolean = true, right: Boolean = true): String {
        if (characters != null && characters.length > MAX_STRIPPED) fail("strip of more than $MAX_STRIPPED different characters")
        val where = seen(text)
        val clean = where.text
        budget.charge(clean.length * (1L + (characters?.length ?: 0)))
        fun goes(codePoint: Int) =
            if (characters == null) isSpace(codePoint) else String(Character.toChars(codePoint)) in characters
        var from = 0
        var to = clean.length
        while (left && from < to && goes(clean.codePointAt(from))) from += Character.charCount(clean.codePointAt(from))
        while (right && to > from && goes(clean.codePointBefore(to))) to -= Character.charCount(clean.codePointBefore(to))
        budget.text(text.length.toLong())
        return where.cut(from, to)
    }

    fun contains(text: String, part: String): Boolean {
        val (where, what) = seen(text).text to seen(part).text
        chargeSearch(where, what)
        return what in where
    }

    fun startsWith(text: String, part: String): Boolean = seen(text).text.startsWith(seen(part).text)

    fun endsWith(text: String, part: String): Boolean = seen(text).text.endsWith(seen(part).text)

    fun same(left: String, right: String): Boolean = seen(left).text == seen(right).text

    fun compare(left: String, right: String): Int {
        val (one, other) = seen(left).text to seen(right).text
        val common = one.commonPrefixWith(other).length
        // By code points: as UTF-16, what is above U+FFFF would come before U+E000.
        if (common == minOf(one.length, other.length)) return one.length - other.length
        return one.codePointAt(common) - other.codePointAt(common)
    }

    fun split(text: String, separator: String): List<String> {
        val (where, what) = seen(text) to seen(separator).text
        val starts = occurrences(where.text, what)
        budget.list(starts.size + 1L)
        budget.text(text.length.toLong())
        val froms = listOf(0) + starts.map { it + what.length }
        return froms.mapIndexed { index, from -> where.cut(from, starts.getOrElse(index) { where.text.length }) }
    }

    fun replace(text: String, part: String, other: String): String {
        val (where, what) = seen(text) to seen(part).text
        val starts = occurrences(where.text, what)
        budget.text(text.length + starts.size * (other.length.toLong() - what.length).coerceAtLeast(0))
        if (starts.isEmpty()) return text
        return buildString {
            var from = 0
            for (start in starts) {
                append(where.cut(from, start)).append(other)
                from = start + what.length
            }
            append(where.cut(from, where.text.length))
        }
    }

    fun length(text: String): Long = seen(text).text.let { it.codePointCount(0, it.length).toLong() }

    /** Code points from one index to another; [bounds] gets their number. */
    fun slice(text: String, bounds: (Int) -> Pair<Int, Int>): String {
        val where = seen(text)
        val (from, to) = bounds(where.text.codePointCount(0, where.text.length))
        budget.text(text.length.toLong())
        return where.cut(where.text.offsetByCodePoints(0, from), where.text.offsetByCodePoints(0, to))
    }

    fun characters(text: String): List<String> {
        val where = seen(text)
        val count = where.text.codePointCount(0, where.text.length)
        budget.list(count.toLong())
        var start = 0
        return List(count) {
            val from = start
            start = where.text.offsetByCodePoints(start, 1)
            where.cut(from, start)
        }
    }

    /** Where [part] begins in [text], the next one after the end of the last. */
    private fun occurrences(text: String, part: String): IntArray {
        if (part.isEmpty()) fail("an empty text is nothing to look for")
        chargeSearch(text, part)
        val starts = IntList()
        var start = text.indexOf(part)
        while (start >= 0) {
            starts.add(start)
            start = text.indexOf(part, start + part.length)
        }
        return starts.toIntArray()
    }

    /** A search compares at each place up to a whole [part], sixteen characters in the time that others take for one. */
    private fun chargeSearch(text: String, part: String) {
        if (part.length <= text.length) budget.charge(text.length + (text.length - part.length + 1L) * part.length / 16)
    }

    companion object {
        private const val MAX_STRIPPED = 256

        /** What Python's `str.strip` takes away. */
        fun isSpace(codePoint: Int) =
            codePoint in 0x09..0x0d || codePoint in 0x1c..0x20 || codePoint == 0x85 || Character.isSpaceChar(codePoint)
    }
}
