package org.llamaedge.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.CheckBox
import android.widget.ListView
import android.widget.ProgressBar
import android.widget.TextView
import java.io.File
import org.llamaedge.core.Refused

/** Chooses a bundle, checks it whole, and goes on to the chat or to the reasons why not. */
class BundlesActivity : Activity() {
    private lateinit var store: BundleStore
    private lateinit var status: TextView
    private lateinit var progress: ProgressBar
    private lateinit var list: ListView
    private var entries: List<Entry> = emptyList()

    private class Entry(val label: String, val folder: () -> File)

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.activity_bundles)
        store = BundleStore(this)
        status = findViewById(R.id.status) as TextView
        progress = findViewById(R.id.progress) as ProgressBar
        list = findViewById(R.id.bundles) as ListView
        list.setOnItemClickListener { _, _, position, _ -> open(entries[position]) }
        (findViewById(R.id.pick) as Button).setOnClickListener {
            startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)
        }
    }

    override fun onResume() {
        super.onResume()
        entries = store.list().map { folder -> Entry(folder.name) { folder } } +
            store.assets().map { name -> Entry("$name *") { store.unpackAsset(name) } }
        list.adapter = ArrayAdapter(this, android.R.layout.simple_list_item_1, entries.map { it.label })
        if (entries.isEmpty()) status.setText(R.string.no_bundles)
        goOn()
    }

    /** The bundle of a chat that outlived its process is checked again without being asked for. */
    private fun goOn() {
        val kept = demo.conversation.kept?.takeIf { demo.conversation.goesOnAlone } ?: return
        val folder = store.list().firstOrNull { it.path == kept.bundle }
        if (folder == null) demo.conversation.forgetKept() else open(Entry(folder.name) { folder })
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        val tree = data?.data ?: return
        if (request != PICK || result != RESULT_OK) return
        status.setText(R.string.copying)
        open(Entry(tree.lastPathSegment.orEmpty()) { store.import(tree) })
    }

    private fun open(entry: Entry) {
        val models = demo.models
        if (models.busy) return
        status.setText(R.string.checking)
        progress.progress = 0
        progress.visibility = View.VISIBLE
        models.run({
            models.open(entry.folder()) { done, total ->
                models.onMain { progress.progress = if (total > 0) (1000 * done / total).toInt() else 0 }
            }
        }) { result -> opened(result) }
    }

    private fun opened(result: Result<LoadedModel>) {
        progress.visibility = View.GONE
        val models = demo.models
        result.onSuccess { model ->
            if ((findViewById(R.id.as_guard) as CheckBox).isChecked) {
                models.unload()
                models.guard = model
                (findViewById(R.id.as_guard) as CheckBox).isChecked = false
                status.setText(R.string.guard_set)
            } else {
                models.unload()
                models.chat = model
                demo.conversation.begin(model.bundle.root.path)
                status.setText(R.string.bundles_intro)
                startActivity(Intent(this, ChatActivity::class.java))
            }
        }.onFailure { error ->
            demo.conversation.forgetKept()
            if (error is Refused) {
                startActivity(ErrorActivity.intent(this, error.findings))
                status.setText(R.string.error_title)
            } else {
                status.text = getString(R.string.failed, error.message ?: error.javaClass.simpleName)
            }
        }
    }

    private companion object {
        const val PICK = 1
    }
}
