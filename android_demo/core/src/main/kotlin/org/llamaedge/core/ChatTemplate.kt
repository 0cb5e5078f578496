package org.llamaedge.core

import java.util.Calendar
import java.util.GregorianCalendar

/**
 * The subset of Jinja that chat templates in Llama's style use. What is not known is an error and never a guess. A template is
 * a program from a stranger: steps, output and nesting are bounded, and nothing outside of its variables can be reached.
 *
 * @param specialTokens by the names under which the template writes them, `bos_token` and others
 */
class ChatTemplate(source: String, private val specialTokens: Map<String, String>) {
    private val nodes: List<Node>

    /** The template's own text and string constants. */
    val literals: Set<String>

    init {
        if (source.length > MAX_CHARACTERS) throw TemplateException("the chat template has more than $MAX_CHARACTERS characters")
        nodes = TemplateParser(source).parse()
        literals = literals(nodes)
    }

    /** A dialog as one string, control tokens and BOS included; throws [TemplateException]. */
    fun render(
        messages: List<Message>,
        tools: List<Map<String, Any?>>? = null,
        addGenerationPrompt: Boolean = true,
        today: Day = Day.REFERENCE,
    ): String {
        val variables = specialTokens + mapOf(
            "messages" to messages, "add_generation_prompt" to addGenerationPrompt, "tools" to tools, "documents" to null,
        )
        return TemplateRun(variables, today).render(nodes)
    }

    companion object {
        const val MAX_CHARACTERS = 1 shl 17
    }
}

/** A day as templates print it, in English whatever the phone's language: that is what models were trained on. */
data class Day(val year: Int, val month: Int, val dayOfMonth: Int) {
    internal fun format(pattern: String): String = buildString {
        var place = 0
        while (place < pattern.length) {
            if (pattern[place] != '%') {
                append(pattern[place++])
                continue
            }
            append(
                when (pattern.getOrNull(place + 1)) {
                    'd' -> dayOfMonth.toString().padStart(2, '0')
                    'm' -> month.toString().padStart(2, '0')
                    'Y' -> year.toString().padStart(4, '0')
                    'y' -> (year % 100).toString().padStart(2, '0')
                    'b' -> MONTHS[month - 1].take(3)
                    'B' -> MONTHS[month - 1]
                    'a' -> weekday().take(3)
                    'A' -> weekday()
                    '%' -> "%"
                    else -> throw TemplateException("strftime_now('$pattern') is not supported")
                },
            )
            place += 2
        }
    }

    private fun weekday() = WEEKDAYS[GregorianCalendar(year, month - 1, dayOfMonth).get(Calendar.DAY_OF_WEEK) - 1]

    companion object {
        /** The day that Llama 3.2's own template falls back to; golden dialogs are rendered with it. */
        val REFERENCE = Day(2024, 7, 26)
        private val MONTHS = listOf(
            "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
            "December",
        )
        private val WEEKDAYS = listOf("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
    }
}
