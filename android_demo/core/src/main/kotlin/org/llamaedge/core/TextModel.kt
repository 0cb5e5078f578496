package org.llamaedge.core

/** Tokenizer and template together: what a dialog becomes. */
class TextModel(
    val tokenizer: Tokenizer,
    templateSource: String,
    bosTokenId: Int?,
    val eosTokenIds: Set<Int>,
) {
    private val bosToken = bosTokenId?.let { tokenizer.tokenOf(it) }.orEmpty()
    private val template = ChatTemplate(templateSource, bosToken, mainEndToken(tokenizer, templateSource, eosTokenIds).orEmpty())
    private val control = controlTokens(tokenizer.added, templateSource, eosTokenIds + listOfNotNull(bosTokenId))
    private val quoting = Quoting(control)

    fun render(messages: List<Message>, tools: List<Map<String, Any?>>? = null, today: Day = Day.REFERENCE): String =
        template.render(messages, tools, today = today)

    /**
     * Token ids of a dialog. Only what the template itself writes becomes a control token: one that a message or a tool spells, in
     * whatever field, stays text, so that a person (or a page that a person pasted) cannot end a turn or speak as the system.
     */
    fun encode(messages: List<Message>, tools: List<Map<String, Any?>>? = null, today: Day = Day.REFERENCE): List<Int> {
        val rendered = template.render(messages.map { quoting.quoted(it) }, tools?.map { quoting.quoted(it) }, today = today)
        if (Quoting.MARK !in rendered) return tokenizer.encode(rendered)
        val ids = IntList()
        quoting.cut(
            rendered,
            onText = { tokenizer.encode(it, asText = control, out = ids) },
            onToken = { ids.add(checkNotNull(tokenizer.idOf(it))) },
        )
        return ids.toList()
    }

    companion object {
        private val DOCUMENT_ENDS = listOf("<|end_of_text|>", "<|endoftext|>")
        private val TURN_ENDS = mapOf("<|eot_id|>" to listOf("<|eot_id|>", "<|eom_id|>"), "<|im_end|>" to listOf("<|im_end|>"))

        /** Every id that ends a turn: those that are named, and those that vocabulary and template imply. */
        fun impliedEnds(tokenizer: Tokenizer, template: String?, named: Collection<Int>): Set<Int> {
            val tokens = DOCUMENT_ENDS + TURN_ENDS.filterKeys { template != null && it in template }.values.flatten()
            return (named + tokens.mapNotNull { tokenizer.specialIds[it] }).toSortedSet()
        }

        /** The end token for what knows only one: the turn's end if there is a template. */
        fun mainEndToken(tokenizer: Tokenizer, template: String?, ends: Collection<Int>): String? {
            val ofTurn = TURN_ENDS.keys.firstOrNull { template != null && it in template && tokenizer.idOf(it) in ends }
            return ofTurn ?: ends.minOrNull()?.let { tokenizer.tokenOf(it) }
        }
    }
}
