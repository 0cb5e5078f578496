package org.llamaedge.core

/** What the app needs of a manifest that has passed the schema. */
class Manifest private constructor(private val value: Map<String, Any?>) {
    class FileEntry(val path: String, val sizeBytes: Long, val sha256: String)

    class GoldenTokens(val language: String, val text: String, val tokens: List<Int>)

    class GoldenChat(val messages: List<Map<String, Any?>>, val text: String, val tokens: List<Int>)

    private val artifact = value.getValue("artifact").asObject()
    private val text = value.getValue("text").asObject()
    private val model = value.getValue("model").asObject()
    private val config = model.getValue("config").asObject()

    val passed: Boolean = value["verdict"] == "passed"
    val target = value["target"] as String
    val backend = value["backend"] as String
    val source = model["source"] as String
    val recipe = value.getValue("recipe").asObject()["name"] as String
    val files: List<FileEntry> = value.getValue("files").asList().map { entry ->
        entry.asObject().let { FileEntry(it["path"] as String, (it["size_bytes"] as Number).toLong(), it["sha256"] as String) }
    }
    val maxContext = artifact["max_context"].asInt()
    val maxPrefill = artifact["max_prefill"].asInt()
    val vocabSize = config["vocab_size"].asInt()
    val maxPositions = config["max_position_embeddings"].asInt()
    val tokenizerSha256 = text["tokenizer_sha256"] as String
    val bosTokenId: Int? = text["bos_token_id"]?.asInt()
    val addBos = text["add_bos"] as Boolean
    val eosTokenIds: List<Int> = text["eos_token_ids"].asInts()
    val chatTemplate = text["chat_template"] as String?
    /** The template wants content as a list of parts. */
    val contentParts = text["content_parts"] == true
    val generationDefaults: Map<String, Any?> = text["generation_defaults"].asObject()
    val goldenTokens: List<GoldenTokens> = text["golden_tokens"].asList().map { entry ->
        entry.asObject().let { GoldenTokens(it["language"] as String, it["text"] as String, it["tokens"].asInts()) }
    }
    val goldenChats: List<GoldenChat> = text["golden_chats"].asList().map { entry ->
        entry.asObject().let { chat ->
            GoldenChat(chat["messages"].asList().map { it.asObject() }, chat["text"] as String, chat["tokens"].asInts())
        }
    }

    /** The version of a library that wrote or ran the files, for the screen that describes a bundle. */
    fun version(name: String): String? = value["versions"].asObject()[name] as String?

    companion object {
        const val FILE = "manifest.json"
        const val VERSION = 1L
        const val MAX_BYTES = 16L shl 20
        /** Items of all lists and members of all objects; a 3B model's manifest has some 10,000. */
        const val MAX_VALUES = 200_000
        private val plainPath = Regex("[A-Za-z0-9._/-]*")
        private val schema by lazy { Schema(Json.parse(resource("manifest.schema.json")).asObject()) }

        /** Throws [Refused] with the first fault. */
        fun parse(bytes: ByteArray): Manifest {
            val value = try {
                Json.parse(bytes, MAX_VALUES)
            } catch (_: Json.TooManyValues) {
                throw Refused(Finding("manifest.too_large", FILE, "at most $MAX_VALUES values", "more"))
            } catch (error: Json.ParseException) {
                throw Refused(Finding("manifest.not_json", FILE, "a JSON object", error.message.orEmpty()))
            }
            if (value !is Map<*, *>) throw Refused(Finding("manifest.not_json", FILE, "a JSON object", "another value"))
            val version = value["format_version"]
            if (version is Number && version.toDouble() > VERSION) {
                val place = "$FILE: format_version"
                throw Refused(Finding("manifest.version", place, "at most $VERSION", "format_version $version"))
            }
            strangePath(value)?.let { throw Refused(Finding("files.name", "$FILE: files", "letters, digits and ._-/ alone", it)) }
            schema.breach(value)?.let {
                val place = if (it.field.isEmpty()) FILE else "$FILE: ${it.field}"
                throw Refused(Finding("manifest.schema", place, "what the schema says", "${it.field} ${it.message}".trim()))
            }
            return Manifest(value.asObject())
        }

        /** The first path with a character that means something to a shell or a screen, which is escaped. */
        private fun strangePath(value: Map<*, *>): String? = (value["files"] as? List<*>).orEmpty()
            .mapNotNull { (it as? Map<*, *>)?.get("path") as? String }
            .firstOrNull { !plainPath.matches(it) }
            ?.take(200)?.map { if (it in ' '..'~') "$it" else "\\u%04x".format(it.code) }?.joinToString("")
    }
}

/** A bundle that is not loaded, with the reasons. */
class Refused(val findings: List<Finding>) : Exception(findings.joinToString { it.code }) {
    constructor(finding: Finding) : this(listOf(finding))
}
