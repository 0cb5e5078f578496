package org.llamaedge.core

/**
 * Tokenizer and template together: what a dialog becomes.
 *
 * @param specialTokens by name, for the template
 * @param contentParts the template wants content as a list of parts
 */
class TextModel(
    val tokenizer: Tokenizer,
    templateSource: String,
    specialTokens: Map<String, String>,
    bosTokenId: Int?,
    val eosTokenIds: Set<Int>,
    private val contentParts: Boolean = false,
) {
    private val template = ChatTemplate(templateSource, specialTokens)
    private val control = controlTokens(tokenizer.added, template.literals, eosTokenIds + listOfNotNull(bosTokenId))
    private val quoting = Quoting(control)

    fun render(
        messages: List<Message>, tools: List<Map<String, Any?>>? = null, today: Day = Day.REFERENCE, addGenerationPrompt: Boolean = true,
    ): String = template.render(messages.map { given(it) }, tools, addGenerationPrompt, today)

    private fun given(message: Message): Message {
        val content = message["content"]
        return if (contentParts && content is String) message + ("content" to listOf(mapOf("type" to "text", "text" to content))) else message
    }

    /**
     * Token ids of a dialog. Only what the template itself writes becomes a control token: one that a message or a tool spells, in
     * whatever field, stays text, so that a person (or a page that a person pasted) cannot end a turn or speak as the system.
     */
    fun encode(messages: List<Message>, tools: List<Map<String, Any?>>? = null, today: Day = Day.REFERENCE): List<Int> {
        val rendered = template.render(messages.map { quoting.quoted(given(it)) }, tools?.map { quoting.quoted(it) }, today = today)
        val (pieces, plain) = quoting.cut(rendered) to quoting.unmarked(rendered)
        // Nobody typed a control token: the text is the tokenizer's as a whole.
        if (pieces == quoting.cut(plain)) return tokenizer.encode(plain)
        val ids = IntList()
        for (piece in pieces) {
            if (piece.isToken) ids.add(checkNotNull(tokenizer.idOf(piece.text))) else tokenizer.encode(piece.text, asText = control, out = ids)
        }
        return ids.toList()
    }

    /** The id of the added token with which the template goes on after an assistant's text. */
    fun endOfAnswer(): Int? {
        val answer = "On the northern cape of the island."
        val dialog = listOf(message("user", "Where does the old lighthouse stand?"), message("assistant", answer))
        val rendered = try {
            render(dialog, addGenerationPrompt = false)
        } catch (_: TemplateException) {
            return null
        }
        val after = rendered.substringAfterLast(answer, "").trim()
        return tokenizer.added.filter { it.text.isNotBlank() && after.startsWith(it.text.trim()) }.maxByOrNull { it.text.length }?.id
    }
}

/** Which tokens end a turn, by the rules of `llama_edge/text/end_tokens.py`. */
internal object EndTokens {
    private val DOCUMENT_ENDS = listOf("<|end_of_text|>", "<|endoftext|>")
    private val TURN_ENDS = mapOf("<|eot_id|>" to listOf("<|eot_id|>", "<|eom_id|>"), "<|im_end|>" to listOf("<|im_end|>"))

    /** Every id that ends a turn: those that are named, and those that vocabulary and template imply. An ordinary word never does. */
    fun implied(tokenizer: Tokenizer, template: String?, named: Collection<Int>): Set<Int> {
        val ofDocument = tokenizer.added.filter { it.special && it.text in DOCUMENT_ENDS }
        val ofTurn = TURN_ENDS.filterKeys { template != null && it in template }.values.flatten()
        return (named + ofDocument.map { it.id } + tokenizer.added.filter { it.text in ofTurn }.map { it.id }).toSortedSet()
    }

    /** The end token for what knows only one: the turn's end if the template has one, else the [named] one if it is an end. */
    fun main(tokenizer: Tokenizer, template: String?, named: String?, ends: Collection<Int>): String? {
        val ofTurn = TURN_ENDS.keys.firstOrNull { template != null && it in template && tokenizer.idOf(it) in ends }
        return ofTurn ?: named?.takeIf { tokenizer.idOf(it) in ends } ?: ends.minOrNull()?.let { tokenizer.tokenOf(it) }
    }
}
