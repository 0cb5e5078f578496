package org.llamaedge.core

/** A role, and text or, for tools, what the template wants besides. */
typealias Message = Map<String, Any?>

fun message(role: String, content: String): Message = mapOf("role" to role, "content" to content)

/** The last exchange alone does not fit; [tokens] are needed where [limit] are free. */
class TooLong(val tokens: Int, val limit: Int) : Exception("$tokens tokens are needed and $limit are free")

/**
 * The newest part of a dialog that fits. A user's message goes together with everything up to the next one: an answer
 * without its question, or a tool's result without its call, would mislead the model. System messages in front stay.
 */
fun trimDialog(messages: List<Message>, limit: Int, countTokens: (List<Message>) -> Int): List<Message> {
    val system = messages.takeWhile { it["role"] == "system" }
    val rest = messages.drop(system.size)
    val starts = listOf(0) + rest.indices.filter { it > 0 && rest[it]["role"] == "user" }
    var tokens = 0
    for (start in starts) {
        val kept = system + rest.drop(start)
        tokens = countTokens(kept)
        if (tokens <= limit) return kept
    }
    throw TooLong(tokens, limit)
}
