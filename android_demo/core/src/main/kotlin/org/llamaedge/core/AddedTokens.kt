package org.llamaedge.core

/** A token that is found as a whole, before the text is cut into words; [normalized] ones after the others. */
class AddedToken(val text: String, val id: Int, val special: Boolean, val normalized: Boolean)

/**
 * The rule of which added tokens are control tokens: they act on the dialog, so nothing that a person types may become one.
 * `control_tokens` in `llama_edge/text/tokenizer.py` and the Swift core have the same rule.
 *
 * A control token is an added token that
 * 1. the tokenizer marks as special, or
 * 2. begins or ends a text ([beginsOrEnds], ids): a template may write it as `{{ eos_token }}`; or
 * 3. is written by the chat template: its text occurs in one of the template's [literals].
 * By 2 and 3, white space alone is none: a template has it without meaning the token.
 *
 * The flag alone does not do: some tokenizers mark `<|im_start|>` as an ordinary token. What is none of these, a `<tool_call>`
 * that the template never writes, keeps its token, as in transformers.
 */
fun controlTokens(added: Collection<AddedToken>, literals: Collection<String>, beginsOrEnds: Collection<Int>): Set<String> =
    added.filter { it.special || (!isSpace(it.text) && (it.id in beginsOrEnds || writes(literals, it.text))) }.map { it.text }.toSet()

private fun writes(literals: Collection<String>, token: String) = literals.any { token in it }

private fun isSpace(token: String) = token.all { TemplateStrings.isSpace(it.code) }

/** Finds tokens in a text from left to right, at each place the longest. */
internal class TokenFinder(tokens: Collection<String>) {
    private val tokens = tokens.toHashSet()

    /** Of the tokens that begin with a character, the longest first. */
    private val lengths: Map<Char, IntArray> =
        tokens.groupBy { it[0] }.mapValues { (_, same) -> same.map { it.length }.distinct().sortedDescending().toIntArray() }

    /** Calls [onToken] with the start of each token and the token; none is taken that [unless] follows. */
    inline fun each(text: String, unless: Char? = null, onToken: (Int, String) -> Unit) {
        var index = 0
        while (index < text.length) {
            val token = at(text, index, unless)
            if (token != null) onToken(index, token)
            index += token?.length ?: 1
        }
    }

    fun at(text: String, index: Int, unless: Char? = null): String? {
        for (length in lengths[text[index]] ?: return null) {
            if (index + length > text.length || (unless != null && text.getOrNull(index + length) == unless)) continue
            val token = text.substring(index, index + length)
            if (token in tokens) return token
        }
        return null
    }
}
