package org.llamaedge.demo

import android.content.Context
import java.util.Calendar
import org.llamaedge.core.Answer
import org.llamaedge.core.Chat
import org.llamaedge.core.ChatListener
import org.llamaedge.core.Day
import org.llamaedge.core.GuardVerdict
import org.llamaedge.core.Json
import org.llamaedge.core.Message
import org.llamaedge.core.Sampling
import org.llamaedge.core.SavedChat
import org.llamaedge.core.TooLong
import org.llamaedge.core.ToolCall
import org.llamaedge.core.message

/** What the chat screen shows; it may come and go, the conversation stays. */
interface ConversationView {
    fun onChanged()

    fun onFinished(note: String?)
}

/** A line on the screen. */
class Line(val kind: Kind, var text: String) {
    enum class Kind { USER, ASSISTANT, TOOL, NOTE }
}

/** The running conversation, held by the application so that rotation does not end it. Main thread only but for [cancel]. */
class Conversation(private val context: Context) {
    val lines = ArrayList<Line>()
    var view: ConversationView? = null
    var tokensPerSecond = 0.0
        private set
    var answering = false
        private set

    private val models get() = (context.applicationContext as DemoApp).models
    private var history: List<Message> = emptyList()

    private var asked: Asked? = null

    @Volatile
    private var running: Chat? = null

    private class Asked(val question: String, val line: Line)

    /** What a process before this one was talking about, until its bundle is open again or another one is chosen. */
    var kept: SavedChat? = null
        private set

    /** Whether [kept]'s bundle may be opened unasked: not without the guard that was in front of it. */
    var goesOnAlone = false
        private set

    /** For [keep] in the next process; null: there is nothing to keep. An answer that is still coming is kept as far as it came. */
    fun save(): String? {
        val bundle = models.chat?.bundle?.root?.path ?: return null
        val half = asked?.takeIf { it.line.text.isNotEmpty() }
        val unfinished = half?.let { listOf(message("user", it.question), message("assistant", it.line.text)) }
        return SavedChat(bundle, history + unfinished.orEmpty()).write()
    }

    fun keep(saved: String, guarded: Boolean) {
        kept = SavedChat.read(saved)
        goesOnAlone = !guarded
    }

    fun forgetKept() {
        kept = null
    }

    /** A bundle was opened: a new conversation, or the one that was kept with it. */
    fun begin(bundle: String) {
        val same = kept?.takeIf { it.bundle == bundle }
        forgetKept()
        reset()
        if (same == null) return
        history = same.messages
        lines += same.lines().map { (part, text) -> Line(kind(part), text) }
    }

    private fun kind(part: SavedChat.Part) = when (part) {
        SavedChat.Part.QUESTION -> Line.Kind.USER
        SavedChat.Part.ANSWER -> Line.Kind.ASSISTANT
        SavedChat.Part.TOOL -> Line.Kind.TOOL
    }

    fun cancel() {
        running?.cancel()
    }

    fun reset() {
        cancel()
        history = emptyList()
        asked = null
        lines.clear()
        view?.onChanged()
    }

    fun ask(question: String, systemPrompt: String) {
        val model = models.chat ?: return
        val guard = models.guard
        answering = true
        lines += Line(Line.Kind.USER, question)
        val line = Line(Line.Kind.ASSISTANT, "")
        lines += line
        asked = Asked(question, line)
        view?.onChanged()
        val before = history
        models.run({
            val refused = guard?.let { verdict(it, question) }?.takeIf { !it.safe }
            if (refused != null) Outcome(null, refused, before) else answer(model, before, question, systemPrompt, line)
        }) { result -> finish(result, line) }
    }

    private class Outcome(val answer: Answer?, val refused: GuardVerdict?, val history: List<Message>)

    private fun verdict(guard: LoadedModel, question: String): GuardVerdict {
        val chat = Chat(guard.bundle.text, guard.engine(), maxNewTokens = 32, today = ::today).also { running = it }
        val silent = object : ChatListener {
            override fun onText(piece: String) = Unit

            override fun onToolCall(call: ToolCall, result: String) = Unit
        }
        return GuardVerdict.parse(chat.once(listOf(message("user", question)), silent).text)
    }

    private fun answer(model: LoadedModel, before: List<Message>, question: String, systemPrompt: String, line: Line): Outcome {
        val chat = Chat(
            model.bundle.text, model.engine(), systemPrompt, DemoTools(context).all(), today = ::today,
            sampling = Sampling.of(model.bundle.manifest.generationDefaults, seed = System.nanoTime().toInt()),
        )
        chat.restore(before)
        running = chat
        val answer = chat.ask(question, Screen(line))
        return Outcome(answer, null, chat.messages)
    }

    /** Shows pieces on the main thread, a call in a line of its own above the answer. */
    private inner class Screen(private val line: Line) : ChatListener {
        override fun onText(piece: String) = models.onMain {
            line.text += piece
            view?.onChanged()
        }

        override fun onToolCall(call: ToolCall, result: String) = models.onMain {
            line.text = ""
            val shown = context.getString(R.string.tool_line, call.name, Json.write(call.arguments), result)
            lines.add(lines.indexOf(line).coerceAtLeast(0), Line(Line.Kind.TOOL, shown))
            view?.onChanged()
        }
    }

    private fun finish(result: Result<Outcome>, line: Line) {
        running = null
        asked = null
        answering = false
        val outcome = result.getOrNull()
        val note = when {
            outcome?.refused != null -> context.getString(R.string.guard_refused, outcome.refused.categories.joinToString(", "))
            outcome?.answer != null && outcome.answer.droppedMessages > 0 -> context.getString(R.string.dropped)
            else -> result.exceptionOrNull()?.let { reason(it) }
        }
        if (outcome != null && lines.isNotEmpty()) history = outcome.history
        outcome?.answer?.let { tokensPerSecond = it.tokensPerSecond }
        if (note != null) lines += Line(Line.Kind.NOTE, note)
        if (line.text.isEmpty()) lines.remove(line)
        view?.onFinished(note)
    }

    private fun reason(error: Throwable): String = when (error) {
        is TooLong -> context.getString(R.string.too_long, error.tokens, error.limit)
        else -> context.getString(R.string.failed, error.message ?: error.javaClass.simpleName)
    }

    companion object {
        fun today(): Day = Calendar.getInstance().run { Day(get(Calendar.YEAR), get(Calendar.MONTH) + 1, get(Calendar.DAY_OF_MONTH)) }
    }
}
