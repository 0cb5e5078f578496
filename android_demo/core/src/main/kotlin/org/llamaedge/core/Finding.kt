package org.llamaedge.core

/** One fault of a bundle; the wording is the catalog's, so that the app says what `llama-edge doctor` says. */
data class Finding(val code: String, val where: String, val expected: String, val found: String) {
    /** One sentence. */
    val what: String get() = Catalog.entry(code).first

    /** What the reader can do about it. */
    val remedy: String get() = Catalog.entry(code).second
}

/** `finding_codes.json`, the same file that Python carries. */
object Catalog {
    private val entries: Map<String, Pair<String, String>> by lazy {
        Json.parse(resource("finding_codes.json")).asObject().mapValues { (_, entry) ->
            entry.asObject().getValue("what") as String to entry.asObject().getValue("remedy") as String
        }
    }

    /** What is wrong, and the remedy. */
    fun entry(code: String): Pair<String, String> = entries[code] ?: error("$code is not in the catalog")
}

internal fun resource(name: String): ByteArray =
    checkNotNull(Catalog::class.java.getResourceAsStream("/llama_edge/$name")) { "$name was not packaged" }.use { it.readBytes() }

/** A message that may hold a stranger's text, short enough for a screen. */
internal fun shown(message: String): String = if (message.length <= MAX_SHOWN) message else message.take(MAX_SHOWN) + "…"

private const val MAX_SHOWN = 300
