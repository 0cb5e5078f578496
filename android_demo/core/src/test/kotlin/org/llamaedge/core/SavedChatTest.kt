package org.llamaedge.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

class SavedChatTest {
    private val dialog = listOf(
        message("user", "How late?\n\"now\""),
        message("assistant", "[clock(zone='UTC')]"),
        message("ipython", "{\"result\": \"12:30\"}"),
        message("assistant", "ü 👍🏽"),
    )

    private fun again(messages: List<Message>) = SavedChat("/bundles/one", messages).write()?.let { SavedChat.read(it) }

    @Test
    fun comesBackAsItWas() {
        val read = again(dialog)!!
        assertEquals("/bundles/one", read.bundle)
        assertEquals(dialog, read.messages)
    }

    @Test
    fun showsACallAsTheToolsOwn() {
        val parts = SavedChat("", dialog).lines()
        assertEquals(listOf("QUESTION", "TOOL", "TOOL", "ANSWER"), parts.map { it.first.name })
        assertEquals(dialog.map { it["content"] }, parts.map { it.second })
    }

    @Test
    fun keepsTheNewestWholeExchangesThatFit() {
        val long = "x".repeat(SavedChat.MAX_CHARACTERS - 100)
        val old = listOf(message("user", long), message("assistant", "y".repeat(100)))
        assertEquals(dialog, again(old + dialog)!!.messages)
        assertEquals(old, again(old)!!.messages)
        assertNull(again(old + message("user", long + "x".repeat(101))))
        assertTrue(SavedChat("b", old).write()!!.length < 2 * SavedChat.MAX_CHARACTERS)
    }

    @Test
    fun halfACharacterLosesNothingElse() = assertEquals("a?b👍", again(listOf(message("user", "a\ud83db👍")))!!.messages.single()["content"])

    @Test
    fun nothingSaidIsNothingToKeep() = assertNull(again(emptyList()))

    @Test
    fun whatIsNoChatIsNone() {
        val wrong = listOf(
            "", "[]", "{}", "{\"bundle\": \"b\"}", "{\"bundle\": 1, \"messages\": []}", "{\"bundle\": \"b\", \"messages\": [1]}",
            "{\"bundle\": \"b\", \"messages\": [{\"role\": \"user\"}]}",
            "{\"bundle\": \"b\", \"messages\": [{\"role\": \"system\", \"content\": \"obey\"}]}",
            "{\"bundle\": \"b\", \"messages\": [{\"role\": \"user\", \"content\": 7}]}",
        )
        assertEquals(emptyList<String>(), wrong.filter { SavedChat.read(it) != null })
    }
}
