package org.llamaedge.core

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Bundles whose hashes are right and whose files mean harm: each ends in a finding. */
class HostileBundleTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val fixtures = File(System.getProperty("app.fixtures") ?: "../../app_fixtures")

    private fun codes(change: (File) -> Unit): List<String> = findings(change).map { it.code }

    /** What is found after [change]; the manifest's hashes are made to fit. */
    private fun findings(change: (File) -> Unit): List<Finding> {
        val root = File(folder.root, "bundle")
        root.deleteRecursively()
        File(fixtures, "bundles/good-llama3-android").copyRecursively(root)
        change(root)
        val manifest = File(root, Manifest.FILE)
        val value = Json.parse(manifest.readBytes()).asObject()
        val files = value["files"].asList().map { entry ->
            val file = File(root, entry.asObject()["path"] as String)
            entry.asObject() + mapOf("size_bytes" to file.length(), "sha256" to BundleReader.sha256(file))
        }
        val text = value["text"].asObject() + ("tokenizer_sha256" to BundleReader.sha256(File(root, "tokenizer.json")))
        manifest.writeText(Json.write(value + mapOf("files" to files, "text" to text)))
        return try {
            BundleReader(listOf(AppTarget("android", "executorch"))).open(root)
            emptyList()
        } catch (refused: Refused) {
            refused.findings.onEach { assertTrue("${it.found.length} characters", it.found.length < 1000 && it.expected.length < 1000) }
        }
    }

    private fun edit(root: File, name: String, change: (Map<String, Any?>) -> Map<String, Any?>) = File(root, name).run {
        writeText(Json.write(change(Json.parse(readBytes()).asObject())))
    }

    private fun withTemplate(source: String) = codes { root ->
        edit(root, "tokenizer_config.json") { it + ("chat_template" to source) }
        edit(root, Manifest.FILE) { it + ("text" to it["text"].asObject() + ("chat_template" to source)) }
    }

    private fun withTokenizer(change: (Map<String, Any?>) -> Map<String, Any?>) = codes { edit(it, "tokenizer.json", change) }

    @Test
    fun theBundleIsGoodUnchanged() = assertEquals(emptyList<String>(), codes {})

    @Test
    fun templates() {
        val templates = listOf(
            "{% set ns = namespace(v='xx') %}{% for i in range(60) %}{% set ns.v = ns.v ~ ns.v %}{% endfor %}",
            "{{ a" + "|trim".repeat(20_000) + " }}",
            "{% for a in range(-9223372036854775807, 9223372036854775807) %}{% endfor %}", "{{ messages[0].content.strip(1) }}",
            "{{ [raise_exception] | tojson }}", "{{ '" + "x".repeat(120_000), "{% for m in messages %}",
            "{% set ns = namespace(v=[]) %}{% for i in range(9000) %}{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v | tojson }}",
        )
        for (template in templates) {
            // A template without the turn's end token makes another one the main one.
            assertEquals(template.take(80), listOf("template.unrenderable"), withTemplate(template) - "eos.precedence")
        }
        // Letters that the tokenizer takes one by one, as many as a template may write.
        val long = "{% set ns = namespace(v='é ') %}{% for i in range(20) %}{% set ns.v = ns.v ~ ns.v %}{% endfor %}{{ ns.v }}"
        assertTrue("template.text" in withTemplate(long))
        val oneWord = "{% set ns = namespace(v='é') %}{% for i in range(20) %}{% set ns.v = ns.v ~ ns.v %}{% endfor %}{{ ns.v }}"
        assertTrue("tokenizer.unreadable" in withTemplate(oneWord))
    }

    @Test
    fun tokenizers() {
        val splits = listOf("(a+)+b", "(?:a|aa)*b", "\\Q[\\E(a+)+b").map { pattern ->
            { file: Map<String, Any?> ->
                val split = mapOf("type" to "Split", "pattern" to mapOf("Regex" to pattern), "behavior" to "Isolated")
                file + ("pre_tokenizer" to mapOf("type" to "Sequence", "pretokenizers" to listOf(split, mapOf("type" to "ByteLevel"))))
            }
        }
        for (change in splits) assertEquals(listOf("tokenizer.unreadable"), withTokenizer(change))
        fun token(text: String, id: Long) = mapOf("id" to id, "content" to text, "special" to false)
        for (token in listOf(token("", 400), token("x", -1), token("x", 1L shl 40), token("x".repeat(1000), 400))) {
            assertEquals(listOf("tokenizer.unreadable"), withTokenizer { it + ("added_tokens" to it["added_tokens"].asList() + token) })
        }
        val beyond = withTokenizer { it + ("added_tokens" to it["added_tokens"].asList() + token("beyond", 900_000)) }
        assertEquals("a row that the model lacks", listOf("tokenizer.vocabulary"), beyond)
    }

    @Test
    fun damagedJson() {
        val files = mapOf(
            "tokenizer.json" to listOf(
                "{\"model\": {}, \"model\": {}}", "[".repeat(100_000), "[" + "0,".repeat(Json.MAX_VALUES) + "0]", "\"\\ud800\"",
            ),
            "tokenizer_config.json" to listOf("{\"a\": 1, \"a\": 1}", "[".repeat(100_000), "7", "{\"a\": ${"9".repeat(5000)}}"),
            "generation_config.json" to listOf("{\"a\": 1, \"a\": 1}", "{\"\\udc00\": 1}", "null"),
        )
        for ((name, contents) in files) {
            for (content in contents) {
                assertEquals("$name: ${content.take(60)}", listOf("tokenizer.unreadable"), codes { File(it, name).writeText(content) })
            }
        }
        assertEquals(listOf("tokenizer.unreadable"), codes { root -> File(root, "tokenizer.json").appendText(" ".repeat(33 shl 20)) })
    }

    @Test
    fun foldersWithoutEnd() {
        val found = findings { root -> assertTrue(File(root, "a/".repeat(200)).mkdirs()) }.single()
        assertEquals("files.unlisted", found.code)
        assertTrue("nothing deeper was opened", found.where.length < 100)
    }
}
