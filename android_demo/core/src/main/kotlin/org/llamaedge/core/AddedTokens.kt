package org.llamaedge.core

/** A token that is found as a whole, before the text is cut into words; [normalized] ones after the others. */
class AddedToken(val text: String, val id: Int, val special: Boolean, val normalized: Boolean)

/**
 * The rule of which added tokens are control tokens: they act on the dialog, so nothing that a person types may become one. The
 * Python and Swift sides have the same rule.
 *
 * A control token is an added token that
 * 1. the tokenizer marks as special, or
 * 2. begins or ends a text ([beginsOrEnds], ids), or
 * 3. is written by the chat template: its text occurs in the template's source. Blank ones and single characters are left out
 *    (some vocabularies add runs of spaces): a template has them without meaning the token.
 *
 * The flag alone does not do: some tokenizers mark `<|im_start|>` as an ordinary token. What is none of these, a `<tool_call>`
 * that the template never writes, keeps its token, as in transformers.
 */
fun controlTokens(added: Collection<AddedToken>, template: String?, beginsOrEnds: Collection<Int>): Set<String> =
    added.filter { it.special || it.id in beginsOrEnds || writes(template, it.text) }.map { it.text }.toSet()

private fun writes(template: String?, token: String): Boolean =
    template != null && token in template && token.isNotBlank() && token.codePointCount(0, token.length) > 1

/** Finds tokens in a text from left to right, at each place the longest. */
internal class TokenFinder(tokens: Collection<String>) {
    private val tokens = tokens.toHashSet()

    /** Of the tokens that begin with a character, the longest first. */
    private val lengths: Map<Char, IntArray> =
        tokens.groupBy { it[0] }.mapValues { (_, same) -> same.map { it.length }.distinct().sortedDescending().toIntArray() }

    /** Calls [onToken] with the start of each token and the token. */
    inline fun each(text: String, onToken: (Int, String) -> Unit) {
        var index = 0
        while (index < text.length) {
            val token = at(text, index)
            if (token != null) onToken(index, token)
            index += token?.length ?: 1
        }
    }

    fun at(text: String, index: Int): String? {
        for (length in lengths[text[index]] ?: return null) {
            if (index + length > text.length) continue
            val token = text.substring(index, index + length)
            if (token in tokens) return token
        }
        return null
    }
}
