package org.llamaedge.demo

import android.app.Activity
import android.content.Intent
import android.graphics.Typeface
import android.os.Bundle
import android.os.Debug
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView

/** A thin screen over [Conversation]. */
class ChatActivity : Activity(), ConversationView {
    private lateinit var turns: LinearLayout
    private lateinit var scroll: ScrollView
    private lateinit var stats: TextView
    private lateinit var question: EditText
    private lateinit var send: Button
    private lateinit var stop: Button
    private val conversation get() = demo.conversation

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        if (demo.models.chat == null) { // the process was ended meanwhile: the bundle has to be checked again
            state?.getString(SAVED)?.let { conversation.keep(it, state.getBoolean(GUARDED)) }
            startActivity(Intent(this, BundlesActivity::class.java).addFlags(Intent.FLAG_ACTIVITY_CLEAR_TOP))
            finish()
            return
        }
        setContentView(R.layout.activity_chat)
        turns = findViewById(R.id.turns) as LinearLayout
        scroll = findViewById(R.id.scroll) as ScrollView
        stats = findViewById(R.id.stats) as TextView
        question = findViewById(R.id.question) as EditText
        send = findViewById(R.id.send) as Button
        stop = findViewById(R.id.stop) as Button
        send.setOnClickListener { ask() }
        stop.setOnClickListener { conversation.cancel() }
        (findViewById(R.id.reset) as Button).setOnClickListener { conversation.reset() }
    }

    override fun onStart() {
        super.onStart()
        if (demo.models.chat == null) return
        conversation.view = this
        onChanged()
        showStats()
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        conversation.save()?.let { state.putString(SAVED, it) }
        state.putBoolean(GUARDED, demo.models.guard != null)
    }

    override fun onStop() {
        super.onStop()
        if (conversation.view === this) conversation.view = null
        if (!isChangingConfigurations) conversation.cancel()
    }

    private fun ask() {
        val text = question.text.toString().trim()
        if (text.isEmpty() || conversation.answering) return
        question.setText("")
        conversation.ask(text, getString(R.string.system_prompt))
    }

    override fun onChanged() {
        val lines = conversation.lines
        while (turns.childCount > lines.size) turns.removeViewAt(turns.childCount - 1)
        while (turns.childCount < lines.size) turns.addView(TextView(this).apply { setTextIsSelectable(true) })
        lines.forEachIndexed { index, line -> show(line, turns.getChildAt(index) as TextView) }
        send.isEnabled = !conversation.answering
        stop.isEnabled = conversation.answering
        scroll.post { scroll.fullScroll(View.FOCUS_DOWN) }
    }

    private fun show(line: Line, view: TextView) {
        val text = if (line.kind == Line.Kind.USER) getString(R.string.you, line.text) else line.text
        if (view.text.toString() == text) return
        view.text = text
        view.textSize = 16f // in sp
        view.setPadding(0, 12, 0, 12)
        val style = when (line.kind) {
            Line.Kind.USER -> Typeface.BOLD
            Line.Kind.ASSISTANT -> Typeface.NORMAL
            Line.Kind.TOOL, Line.Kind.NOTE -> Typeface.ITALIC
        }
        view.setTypeface(Typeface.DEFAULT, style)
    }

    override fun onFinished(note: String?) {
        onChanged()
        showStats()
        // A screen reader says the whole answer once, and not each piece of it.
        val answer = conversation.lines.lastOrNull { it.kind != Line.Kind.USER }?.text
        if (answer != null) turns.announceForAccessibility(answer)
    }

    private fun showStats() {
        val name = demo.models.chat?.bundle?.manifest?.let { "${it.source} ${it.recipe}" }.orEmpty()
        stats.text = getString(R.string.stats, name, conversation.tokensPerSecond, Debug.getPss() / KIB_PER_MIB)
    }

    private companion object {
        const val SAVED = "conversation"
        const val GUARDED = "guarded"
        const val KIB_PER_MIB = 1024
    }
}
