package org.llamaedge.core

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** The text path over an engine that says what a test tells it to. */
class ChatTest {
    private val root = File(System.getProperty("app.fixtures") ?: "../../app_fixtures")
    private val bundle = BundleReader(listOf(AppTarget("android", "executorch"))).run {
        val folder = createTempDirectory()
        File(root, "bundles/good-llama3-android").copyRecursively(folder)
        open(folder)
    }
    private val text = bundle.text

    private fun createTempDirectory() = File.createTempFile("bundle", "").apply { delete() }

    /** Answers in turn, each then ended by the end token. */
    private inner class Scripted(private vararg val answers: String) : Engine {
        val prompts = ArrayList<String>()
        override val maxContext = 600

        override fun generate(
            prompt: List<Int>, ends: Set<Int>, maxNewTokens: Int, sampling: Sampling, onToken: (Int) -> Boolean,
        ): StopReason {
            val answer = answers[prompts.size]
            prompts += text.tokenizer.decode(prompt)
            for (token in text.tokenizer.encode(answer)) if (!onToken(token)) return StopReason.CANCELLED
            return StopReason.END_TOKEN
        }

        override fun reset() = prompts.clear()

        override fun close() = Unit
    }

    private class Heard : ChatListener {
        val pieces = ArrayList<String>()
        val calls = ArrayList<Pair<ToolCall, String>>()
        var onPiece: () -> Unit = {}

        override fun onText(piece: String) {
            pieces += piece
            onPiece()
        }

        override fun onToolCall(call: ToolCall, result: String) {
            calls += call to result
        }
    }

    private fun clock() = Tool("clock", "The time", emptyMap()) { arguments ->
        require("zone" in arguments) { "a zone is needed" }
        "12:30"
    }

    @Test
    fun streamsWholeCharactersAndKeepsTheDialog() {
        val engine = Scripted("ü👍🏽ส", "two")
        val heard = Heard()
        val chat = Chat(text, engine, systemPrompt = "Be brief.")
        val answer = chat.ask("one?", heard)
        assertEquals("ü👍🏽ส", answer.text)
        assertTrue(heard.pieces.none { '\ufffd' in it })
        assertEquals(answer.text, heard.pieces.joinToString(""))
        chat.ask("again?", heard)
        assertEquals(listOf("user", "assistant", "user", "assistant"), chat.messages.map { it["role"] })
        assertTrue(engine.prompts[1].let { "Be brief." in it && "one?" in it && "ü👍🏽ส" in it && "again?" in it })
    }

    @Test
    fun goesOnWithWhatWasKeptWhileTheProcessWasAway() {
        val first = Chat(text, Scripted("one"))
        first.ask("first?", Heard())
        val kept = SavedChat.read(SavedChat("bundle", first.messages).write()!!)!!
        val engine = Scripted("two")
        val second = Chat(text, engine).apply { restore(kept.messages) }
        second.ask("second?", Heard())
        assertTrue(engine.prompts.single().let { "first?" in it && "one" in it && "second?" in it })
        assertEquals(4, second.messages.size)
    }

    @Test
    fun runsTheToolAndAsksAgain() {
        val engine = Scripted("{\"name\": \"clock\", \"parameters\": {\"zone\": \"UTC\"}}", "Half past twelve.")
        val heard = Heard()
        val answer = Chat(text, engine, tools = listOf(clock())).ask("How late?", heard)
        assertEquals("Half past twelve.", answer.text)
        assertEquals("{\"result\": \"12:30\"}", heard.calls.single().second)
        assertTrue("12:30" in engine.prompts[1])
    }

    @Test
    fun tellsTheModelWhatWasWrongWithItsCall() {
        val heard = Heard()
        Chat(text, Scripted("[clock()]", "[nothing(a=1)]", "Sorry."), tools = listOf(clock())).ask("How late?", heard)
        assertEquals(listOf("{\"error\": \"a zone is needed\"}", "{\"error\": \"there is no nothing\"}"), heard.calls.map { it.second })
    }

    @Test
    fun aModelThatOnlyCallsIsStopped() {
        val heard = Heard()
        val call = "[clock(zone='UTC')]"
        Chat(text, Scripted(call, call, call, call, call), tools = listOf(clock())).ask("How late?", heard)
        assertEquals(Chat.MAX_TOOL_ROUNDS, heard.calls.size)
    }

    @Test
    fun stopsAtStopSequencesAndWhenCancelled() {
        val stopped = Chat(text, Scripted("yes END no"), stops = listOf("END")).ask("?", Heard())
        assertEquals("yes ", stopped.text)
        assertEquals(StopReason.END_TOKEN, stopped.reason)
        val chat = Chat(text, Scripted("a long answer"))
        val heard = Heard().apply { onPiece = { chat.cancel() } }
        val cancelled = chat.ask("?", heard)
        assertEquals(StopReason.CANCELLED, cancelled.reason)
        assertEquals("a", cancelled.text)
    }

    @Test
    fun leavesOutTheOldestAndRefusesWhatCannotFit() {
        val chat = Chat(text, Scripted("1", "2", "3"), maxNewTokens = 100)
        chat.ask("x".repeat(220), Heard())
        chat.ask("y".repeat(220), Heard())
        val answer = chat.ask("z", Heard())
        assertEquals(2, answer.droppedMessages)
        assertThrows(TooLong::class.java) { chat.ask("w".repeat(700), Heard()) }
        assertEquals("a refused question is forgotten", 6, chat.messages.size)
    }

    @Test
    fun theEngineReusesWhatItHas() {
        val calls = ArrayList<Pair<Int, Int>>()
        val model = object : LogitsModel {
            override val maxContext = 12
            override val maxPrefill = 3

            /** Always the next number after the last token. */
            override fun forward(tokens: List<Int>, position: Int): FloatArray {
                calls += position to tokens.size
                return FloatArray(20) { if (it == tokens.last() + 1) 1f else 0f }
            }

            override fun close() = Unit
        }
        val engine = LogitsEngine(model)
        val out = ArrayList<Int>()
        assertEquals(StopReason.END_TOKEN, engine.generate(listOf(1, 2, 3, 4), setOf(7), 9, Sampling()) { out.add(it) })
        assertEquals(listOf(5, 6), out)
        assertEquals(listOf(0 to 3, 3 to 1, 4 to 1, 5 to 1), calls)
        calls.clear()
        engine.generate(listOf(1, 2, 3, 4, 5, 6, 9), setOf(10), 9, Sampling()) { true }
        assertEquals("only what is new", listOf(6 to 1), calls)
        calls.clear()
        assertEquals(StopReason.CONTEXT_FULL, engine.generate(listOf(1, 2), setOf(19), 99, Sampling()) { true })
        assertEquals(1 to 1, calls.first())
        assertEquals(12, calls.last().let { it.first + it.second })
    }
}
