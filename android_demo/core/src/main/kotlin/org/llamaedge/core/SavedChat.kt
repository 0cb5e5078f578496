package org.llamaedge.core

/**
 * A conversation as a screen keeps it while the system has ended the process: the bundle that it was held with, and what was
 * said. Another bundle gets none of it: calls of tools are written as its own template has them.
 */
class SavedChat(val bundle: String, val messages: List<Message>) {
    /** What a line on the screen is. */
    enum class Part { QUESTION, ANSWER, TOOL }

    /** The lines to show; an answer that called a tool is the tool's, as its result is. */
    fun lines(): List<Pair<Part, String>> = messages.mapIndexed { index, message ->
        val part = when {
            message["role"] == "user" -> Part.QUESTION
            message["role"] == "ipython" || messages.getOrNull(index + 1)?.get("role") == "ipython" -> Part.TOOL
            else -> Part.ANSWER
        }
        part to message["content"] as String
    }

    /** As text of at most [MAX_CHARACTERS] of content: the oldest exchanges go first; null where nothing is left to keep. */
    fun write(): String? {
        val kept = try {
            trimDialog(messages, MAX_CHARACTERS) { kept -> kept.sumOf { (it["content"] as String).length } }
        } catch (_: TooLong) {
            return null
        }
        // A keyboard may leave half of a character, which JSON refuses; as bytes it is a question mark.
        val whole = kept.map { it + ("content" to String((it["content"] as String).toByteArray())) }
        return if (kept.isEmpty()) null else Json.write(mapOf("bundle" to bundle, "messages" to whole))
    }

    companion object {
        /** A saved state passes through a buffer of 1 MB that all of a process's transactions share; this is a fifth of it. */
        const val MAX_CHARACTERS = 100_000
        private val ROLES = setOf("user", "assistant", "ipython")

        /** What [write] wrote, perhaps in an older version of the app; null where it is not that. */
        fun read(text: String): SavedChat? {
            val value = try {
                Json.parse(text) as? Map<*, *>
            } catch (_: Json.ParseException) {
                null
            }
            val bundle = value?.get("bundle") as? String ?: return null
            val messages = (value["messages"] as? List<*> ?: return null).map { entry ->
                val role = (entry as? Map<*, *>)?.get("role") as? String
                val content = (entry as? Map<*, *>)?.get("content") as? String
                if (role !in ROLES || role == null || content == null) return null
                message(role, content)
            }
            return SavedChat(bundle, messages)
        }
    }
}
