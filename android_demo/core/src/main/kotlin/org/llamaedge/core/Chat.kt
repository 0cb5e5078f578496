package org.llamaedge.core

import java.util.concurrent.atomic.AtomicBoolean

/** A function that the model may call; it runs on the phone and reaches no network. */
class Tool(val name: String, val description: String, val parameters: Map<String, Any?>, val run: (Map<String, Any?>) -> Any?) {
    /** As templates show it to the model. */
    val schema: Map<String, Any?> get() = mapOf(
        "type" to "function",
        "function" to mapOf("name" to name, "description" to description, "parameters" to parameters),
    )
}

/** What a screen shows while an answer comes. */
interface ChatListener {
    fun onText(piece: String)

    /** The text so far was a call: it gives way to this line. */
    fun onToolCall(call: ToolCall, result: String)
}

/** How an answer ended. */
class Answer(val text: String, val newTokens: Int, val seconds: Double, val reason: StopReason, val droppedMessages: Int) {
    /** From the first token on, prefill included. */
    val tokensPerSecond: Double get() = if (seconds > 0) newTokens / seconds else 0.0
}

/**
 * One conversation over an engine: template, trimming, streaming, stop sequences, tools. Not for use from two threads, but
 * [cancel] may come from any.
 */
class Chat(
    private val text: TextModel,
    private val engine: Engine,
    private val systemPrompt: String? = null,
    private val tools: List<Tool> = emptyList(),
    private val stops: List<String> = emptyList(),
    private val sampling: Sampling = Sampling(),
    private val maxNewTokens: Int = 512,
    private val today: () -> Day = { Day.REFERENCE },
    private val clock: () -> Long = System::nanoTime,
) {
    private val history = ArrayList<Message>()
    private val cancelled = AtomicBoolean()

    val messages: List<Message> get() = history.toList()

    /** Puts back what a screen kept while the app was away. */
    fun restore(messages: List<Message>) {
        history.clear()
        history += messages
    }

    fun cancel() = cancelled.set(true)

    fun reset() {
        history.clear()
        engine.reset()
    }

    /** Asks and streams the answer; a call of a tool is run and answered, at most [MAX_TOOL_ROUNDS] times. */
    fun ask(question: String, listener: ChatListener): Answer {
        cancelled.set(false)
        val before = history.size
        history += message("user", question)
        try {
            var answer = round(listener)
            for (round in 1..MAX_TOOL_ROUNDS) {
                if (!runTools(answer, listener)) break
                answer = round(listener)
            }
            return answer
        } catch (error: TooLong) {
            while (history.size > before) history.removeAt(history.size - 1)
            throw error
        }
    }

    /** A dialog of its own that leaves the conversation alone: summary, rewriting, a guard's verdict. */
    fun once(messages: List<Message>, listener: ChatListener): Answer {
        cancelled.set(false)
        return stream(messages, null, listener)
    }

    private fun round(listener: ChatListener): Answer {
        val system = listOfNotNull(systemPrompt?.let { message("system", it) })
        val offered = tools.map { it.schema }.ifEmpty { null }
        val answer = stream(system + history, offered, listener)
        history += message("assistant", answer.text)
        return answer
    }

    private fun stream(messages: List<Message>, offered: List<Map<String, Any?>>?, listener: ChatListener): Answer {
        val reserve = minOf(maxNewTokens, engine.maxContext / 4)
        val day = today()
        val kept = trimDialog(messages, engine.maxContext - reserve) { text.encode(it, offered, day).size }
        val filter = StopFilter(stops)
        val bytes = Utf8Stream()
        val out = StringBuilder()
        var count = 0
        val start = clock()
        fun show(piece: String) {
            if (piece.isEmpty()) return
            out.append(piece)
            listener.onText(piece)
        }
        val reason = engine.generate(text.encode(kept, offered, day), text.eosTokenIds, maxNewTokens, sampling) { token ->
            count++
            show(filter.push(bytes.push(text.tokenizer.bytes(token))))
            !filter.stopped && !cancelled.get()
        }
        show(filter.push(bytes.flush()) + filter.flush())
        val ended = if (filter.stopped) StopReason.END_TOKEN else reason
        return Answer(out.toString(), count, (clock() - start) / 1e9, ended, messages.size - kept.size)
    }

    private fun runTools(answer: Answer, listener: ChatListener): Boolean {
        if (tools.isEmpty() || answer.reason != StopReason.END_TOKEN) return false
        val calls = try {
            ToolCalls.parse(answer.text)
        } catch (_: ToolCallException) {
            return false // shown as the text that it is
        }
        for (call in calls) {
            val result = result(call)
            listener.onToolCall(call, result)
            history += message("ipython", result)
        }
        return calls.isNotEmpty()
    }

    /** JSON, errors included: the model is told what was wrong with its call. */
    private fun result(call: ToolCall): String {
        val tool = tools.firstOrNull { it.name == call.name } ?: return Json.write(mapOf("error" to "there is no ${call.name}"))
        return try {
            Json.write(mapOf("result" to tool.run(call.arguments)))
        } catch (error: IllegalArgumentException) {
            Json.write(mapOf("error" to error.message.orEmpty()))
        }
    }

    companion object {
        const val MAX_TOOL_ROUNDS = 3
    }
}

/** Llama Guard's answer: `safe`, or `unsafe` and on the next line the categories. */
data class GuardVerdict(val safe: Boolean, val categories: List<String>) {
    companion object {
        private val BLANKS = charArrayOf(' ', '\t', '\r', '\n')

        /** Anything but a clear `safe` counts as unsafe; what is no verdict, without a category. */
        fun parse(answer: String): GuardVerdict {
            val lines = answer.trim(*BLANKS).split('\n').map { it.trim(*BLANKS) }
            if (lines == listOf("safe")) return GuardVerdict(true, emptyList())
            if (lines.first() != "unsafe" || lines.size > 2) return GuardVerdict(false, emptyList())
            return GuardVerdict(false, lines.getOrElse(1) { "" }.split(',').map { it.trim(*BLANKS) }.filter { it.isNotEmpty() })
        }
    }
}
