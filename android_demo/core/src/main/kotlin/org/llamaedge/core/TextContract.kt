package org.llamaedge.core

import java.io.File

/** The last step: do these text files make of the manifest's sample texts what the model's own tokenizer made of them? */
internal class TextContract(private val root: File, private val manifest: Manifest) {
    private val findings = ArrayList<Finding>()
    private var unrenderable: TemplateException? = null

    fun check(): Bundle {
        val text = try {
            val files = read()
            checkTokenizer(files)
            val text = model(files)
            checkEndTokens(files, text?.endOfAnswer())
            checkDefaults(files.generation)
            checkTemplate(files.template, text)
            text
        } catch (error: TokenizerException) {
            throw Refused(Finding("tokenizer.unreadable", TOKENIZER, "files that can be read", error.message.orEmpty()))
        }
        if (findings.isNotEmpty() || text == null) throw Refused(findings)
        return Bundle(root, manifest, text)
    }

    private fun add(code: String, where: String, expected: Any?, found: Any?) {
        findings += Finding(code, where, "$expected", "$found")
    }

    private class Files(
        val tokenizer: Tokenizer, val config: Map<String, Any?>, val named: Map<String, String>, val generation: Map<String, Any?>,
        val template: String?,
    )

    private fun read(): Files {
        val tokenizer = Tokenizer(bytes(TOKENIZER) ?: throw TokenizerException("the file is missing"))
        val config = json(CONFIG)
        return Files(tokenizer, config, NamedTokens.of(config, json(NamedTokens.SPECIAL_TOKENS)), json(GENERATION), template(config))
    }

    /** Null where the template is absent or cannot be read, which [checkTemplate] tells. */
    private fun model(files: Files): TextModel? {
        try {
            val (source, ends) = (files.template ?: return null) to manifest.eosTokenIds.toSet()
            return TextModel(files.tokenizer, source, files.named, manifest.bosTokenId, ends, manifest.contentParts)
        } catch (error: TemplateException) {
            unrenderable = error
            return null
        }
    }

    /** The named one; where no name is given, the id in a config. */
    private fun bos(files: Files): Int? {
        files.named["bos_token"]?.let { return files.tokenizer.idOf(it) }
        if ("bos_token" in files.config && files.config["bos_token"] == null) return null
        return ids(files.generation, "bos_token_id").firstOrNull() ?: ids(json("config.json"), "bos_token_id").firstOrNull()
    }

    /** An id or a list of ids; null and an absent key are none. */
    private fun ids(source: Map<String, Any?>, key: String): List<Int> {
        val value = source[key]
        return (if (value is List<*>) value else listOfNotNull(value)).map {
            (it as? Long)?.toInt() ?: throw TokenizerException("$key has what is no token id; one or a list of them is needed")
        }
    }

    /** `chat_template.jinja` goes before the config, as in transformers; of several named ones in the config, the default. */
    private fun template(config: Map<String, Any?>): String? {
        bytes(TEMPLATE)?.let { return Utf8Stream.decodeStrict(it) ?: throw TokenizerException("$TEMPLATE is not UTF-8") }
        val value = config["chat_template"]
        val named = if (value is List<*>) value.filterIsInstance<Map<*, *>>().lastOrNull { it["name"] == "default" }?.get("template") else value
        if (named != null && named !is String) throw TokenizerException("$CONFIG: chat_template is no text")
        return named
    }

    private fun bytes(name: String): ByteArray? {
        val file = File(root, name)
        if (!file.isFile) return null
        if (file.length() > MAX_BYTES) {
            throw TokenizerException("$name has ${file.length()} bytes; at most $MAX_BYTES are accepted")
        }
        return BundleReader.readAll(file)
    }

    private fun json(name: String): Map<String, Any?> = try {
        val value = Json.parse(bytes(name) ?: "{}".toByteArray())
        if (value is Map<*, *>) value.asObject() else throw TokenizerException("$name is no JSON object")
    } catch (error: Json.ParseException) {
        throw TokenizerException("$name: ${error.message}")
    }

    private fun checkTokenizer(files: Files) {
        val (tokenizer, config) = files.tokenizer to files.config
        val sha256 = BundleReader.sha256(File(root, TOKENIZER))
        if (sha256 != manifest.tokenizerSha256) add("tokenizer.sha256", TOKENIZER, manifest.tokenizerSha256, sha256)
        val bos = bos(files)
        if (bos != manifest.bosTokenId) add("tokenizer.bos", "$CONFIG: bos_token", manifest.bosTokenId, bos)
        val addBos = config["add_bos_token"] == true && bos != null
        if (addBos != manifest.addBos) add("tokenizer.bos", "$CONFIG: add_bos_token", manifest.addBos, addBos)
        val control = controlTokens(tokenizer.added, emptyList(), manifest.eosTokenIds + listOfNotNull(manifest.bosTokenId))
        manifest.goldenTokens.forEachIndexed { index, golden ->
            val tokens = tokenizer.encode(golden.text, asText = control)
            if (tokens != golden.tokens) {
                val place = "$TOKENIZER: golden_tokens[$index] (${golden.language})"
                val (wanted, found) = firstDifference(golden.tokens, tokens)
                add("tokenizer.golden_tokens", place, wanted, found)
            }
        }
        val largest = (manifest.goldenTokens.flatMap { it.tokens } + manifest.eosTokenIds + (tokenizer.vocabSize - 1)).max()
        if (largest >= manifest.vocabSize) {
            add("tokenizer.vocabulary", TOKENIZER, "token ids below the model's ${manifest.vocabSize} rows", "id $largest")
        }
    }

    /** The manifest's list, which the app waits for, against what each file and the template say. */
    private fun checkEndTokens(files: Files, endOfAnswer: Int?) {
        val (tokenizer, template) = files.tokenizer to files.template
        val expected = manifest.eosTokenIds.toSortedSet()
        val implied = EndTokens.implied(tokenizer, template, expected + listOfNotNull(endOfAnswer))
        if ((implied - expected).isNotEmpty()) add("eos.missing", "${Manifest.FILE}: text.eos_token_ids", implied, expected)
        val listed = ids(files.generation, "eos_token_id").toSet()
        val token = files.named["eos_token"]
        val main = token?.let { tokenizer.idOf(it) }
        val missing = expected - listed
        if (missing.isNotEmpty()) {
            val code = if (missing == setOf(main)) "eos.precedence" else "eos.missing"
            add(code, "$GENERATION: eos_token_id", expected, listed)
        }
        if ((listed - implied).isNotEmpty()) add("eos.foreign", "$GENERATION: eos_token_id", expected, listed)
        if (template != null && "eos_token" in template) return // the template writes it by this name, whatever ends a turn
        val wanted = EndTokens.main(tokenizer, template, token, implied + listed)
        if (main != null && main !in implied) {
            add("eos.foreign", "$CONFIG: eos_token", "one of the ids $expected", main)
        } else if (token != wanted) {
            add("eos.precedence", "$CONFIG: eos_token", wanted, token)
        }
    }

    private fun checkDefaults(generation: Map<String, Any?>) {
        fun numbers(values: Map<String, Any?>) = values.mapValues { (_, it) -> if (it is Number) it.toDouble() else it }
        val found = numbers(generation.filterKeys { it in GENERATION_KEYS }.filterValues { it != null })
        val expected = numbers(manifest.generationDefaults)
        if (found != expected) add("text.generation_defaults", GENERATION, expected, found)
    }

    private fun checkTemplate(source: String?, text: TextModel?) {
        val place = "$CONFIG: chat_template"
        if (source == null || manifest.goldenChats.isEmpty()) {
            add("template.missing", place, "a template", if (source == null) "none" else "one without a sample dialog")
            return
        }
        if (source != manifest.chatTemplate) {
            val (wanted, found) = firstDifference(manifest.chatTemplate.orEmpty(), source)
            add("template.source", place, wanted, found)
        }
        try {
            if (text == null) throw checkNotNull(unrenderable)
            manifest.goldenChats.forEachIndexed { index, chat -> checkGolden(text, chat, "$place, golden_chats[$index]") }
        } catch (error: TemplateException) {
            add("template.unrenderable", place, "a template that renders", error.message)
        }
    }

    private fun checkGolden(text: TextModel, chat: Manifest.GoldenChat, place: String) {
        val rendered = text.render(chat.messages)
        val tokens = text.encode(chat.messages)
        if (rendered != chat.text) {
            val (wanted, found) = firstDifference(chat.text, rendered)
            add("template.text", place, wanted, found)
        } else if (tokens != chat.tokens) {
            val (wanted, found) = firstDifference(chat.tokens, tokens)
            add("template.tokens", place, wanted, found)
        }
    }

    private fun firstDifference(expected: List<Int>, found: List<Int>): Pair<String, String> {
        val place = expected.zip(found).indexOfFirst { (want, have) -> want != have }.let { if (it < 0) minOf(expected.size, found.size) else it }
        return "${expected.getOrNull(place) ?: "the end"} as token $place" to "${found.getOrNull(place) ?: "the end"}"
    }

    private fun firstDifference(expected: String, found: String): Pair<String, String> {
        val place = expected.commonPrefixWith(found).length
        val from = maxOf(0, place - 12)
        fun shown(text: String) = Json.write(text.substring(minOf(from, text.length), minOf(place + 12, text.length)))
        return "${shown(expected)} at character $place" to shown(found)
    }

    private companion object {
        const val TOKENIZER = "tokenizer.json"
        const val CONFIG = NamedTokens.CONFIG
        const val GENERATION = "generation_config.json"
        const val TEMPLATE = "chat_template.jinja"
        /** A phone gives an app some 256 MB, and the text of a file takes twice its bytes. */
        const val MAX_BYTES = 32L shl 20
        val GENERATION_KEYS = setOf("do_sample", "min_p", "repetition_penalty", "temperature", "top_k", "top_p")
    }
}
