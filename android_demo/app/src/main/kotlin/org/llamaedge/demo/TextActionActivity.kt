package org.llamaedge.demo

import android.app.Activity
import android.content.ClipData
import android.content.ClipboardManager
import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.widget.Button
import android.widget.TextView
import org.llamaedge.core.Answer
import org.llamaedge.core.Chat
import org.llamaedge.core.ChatListener
import org.llamaedge.core.TooLong
import org.llamaedge.core.ToolCall
import org.llamaedge.core.message

/** Summarizes or rewrites what another app has marked or shared; the two names are aliases of this one. */
class TextActionActivity : Activity() {
    private lateinit var status: TextView
    private lateinit var result: TextView
    private lateinit var use: Button

    @Volatile
    private var chat: Chat? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.activity_text_action)
        status = findViewById(R.id.status) as TextView
        result = findViewById(R.id.result) as TextView
        use = findViewById(R.id.replace) as Button
        use.setOnClickListener { giveBack() }
        val rewrite = intent.component?.className.orEmpty().endsWith("Rewrite")
        setTitle(if (rewrite) R.string.action_rewrite else R.string.action_summarize)
        val text = given()
        val model = demo.models.chat
        when {
            state != null -> restore(state)
            model == null || text.isNullOrBlank() -> status.setText(R.string.no_model_yet)
            else -> start(model, getString(if (rewrite) R.string.prompt_rewrite else R.string.prompt_summarize), text)
        }
    }

    private fun given(): String? =
        (intent.getCharSequenceExtra(Intent.EXTRA_PROCESS_TEXT) ?: intent.getCharSequenceExtra(Intent.EXTRA_TEXT))?.toString()

    private fun start(model: LoadedModel, prompt: String, text: String) {
        status.setText(R.string.writing)
        val models = demo.models
        val listener = object : ChatListener {
            override fun onText(piece: String) = models.onMain { result.append(piece) }

            override fun onToolCall(call: ToolCall, result: String) = Unit
        }
        models.run({
            val running = Chat(model.bundle.text, model.engine(), today = Conversation::today)
            chat = running
            running.once(listOf(message("system", prompt), message("user", text)), listener)
        }) { finished(it) }
    }

    private fun finished(outcome: Result<Answer>) {
        chat = null
        outcome.onSuccess { answer ->
            result.text = answer.text.trim()
            use.isEnabled = true
            status.setText(R.string.done)
        }.onFailure { error ->
            status.text = when (error) {
                is TooLong -> getString(R.string.too_long, error.tokens, error.limit)
                else -> getString(R.string.failed, error.message ?: error.javaClass.simpleName)
            }
        }
    }

    /** Into the text field that asked, where it can be written to; else to the clipboard. */
    private fun giveBack() {
        val text = result.text.toString()
        val asked = intent.action == Intent.ACTION_PROCESS_TEXT
        if (asked && !intent.getBooleanExtra(Intent.EXTRA_PROCESS_TEXT_READONLY, false)) {
            setResult(RESULT_OK, Intent().putExtra(Intent.EXTRA_PROCESS_TEXT, text))
        } else {
            val clipboard = getSystemService(Context.CLIPBOARD_SERVICE) as ClipboardManager
            clipboard.primaryClip = ClipData.newPlainText(title, text)
        }
        finish()
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putString(RESULT, result.text.toString())
    }

    private fun restore(state: Bundle) {
        result.text = state.getString(RESULT)
        use.isEnabled = result.text.isNotEmpty()
        status.setText(R.string.done)
    }

    override fun onStop() {
        super.onStop()
        chat?.cancel()
    }

    private companion object {
        const val RESULT = "result"
    }
}
