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

    private val control = controlTokens(tokenizer.added, null, emptyList())
    private val finder = TokenFinder(control)

    fun render(messages: List<Message>, tools: List<Map<String, Any?>>? = null, today: Day = Day.REFERENCE): String =
        template.render(messages, tools, today = today)

    /**
     * Token ids of a dialog. Control tokens that a message's content spells stay text, so that a person (or a page that a
     * person pasted) cannot end a turn or speak as the system.
     */
    fun encode(messages: List<Message>, tools: List<Map<String, Any?>>? = null, today: Day = Day.REFERENCE): List<Int> {
        val rendered = template.render(messages.map { quoted(it) }, tools, today = today)
        if (QUOTE !in rendered) return tokenizer.encode(rendered)
        val ids = IntList()
        var start = 0
        finder.each(rendered) { index, token ->
            plain(rendered.substring(start, index), ids)
            ids.add(checkNotNull(tokenizer.idOf(token)))
            start = index + token.length
        }
        plain(rendered.substring(start), ids)
        return ids.toList()
    }

    private fun plain(text: String, ids: IntList) = tokenizer.encode(text.replace(QUOTE, ""), control, ids)

    private fun quoted(message: Message): Message {
        val content = message["content"] as? String ?: return message
        val clean = content.replace(QUOTE, Utf8Stream.REPLACEMENT.toString())
        val starts = HashSet<Int>()
        finder.each(clean) { index, _ -> starts += index }
        return message + ("content" to clean.mapIndexed { index, c -> if (index in starts) "$c$QUOTE" else "$c" }.joinToString(""))
    }

    companion object {
        /** Stands inside a spelled control token while the dialog is rendered; a noncharacter, so no text has it. */
        private const val QUOTE = "\ufdd0"
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
