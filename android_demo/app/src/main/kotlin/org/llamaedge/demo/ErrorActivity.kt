package org.llamaedge.demo

import android.app.Activity
import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.widget.TextView
import org.llamaedge.core.Finding

/** Every fault with its code and wording, selectable, so that it can be sent to whoever made the bundle. */
class ErrorActivity : Activity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.activity_error)
        (findViewById(R.id.findings) as TextView).text = intent.getStringExtra(FINDINGS)
    }

    companion object {
        private const val FINDINGS = "findings"
        private const val MAX_SHOWN = 20

        fun intent(context: Context, findings: List<Finding>): Intent =
            Intent(context, ErrorActivity::class.java).putExtra(FINDINGS, findings.take(MAX_SHOWN).joinToString("\n\n") { shown(it) })

        private fun shown(finding: Finding) = with(finding) { "$code\n$what\n$where: $expected ≠ $found\n→ $remedy" }
    }
}
