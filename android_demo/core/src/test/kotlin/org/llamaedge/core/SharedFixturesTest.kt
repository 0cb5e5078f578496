package org.llamaedge.core

import java.io.File
import java.nio.file.Files
import java.nio.file.Paths
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Every case of `app_fixtures/`; Python and Swift run the same ones. */
class SharedFixturesTest {
    private val root = File(System.getProperty("app.fixtures") ?: "../../app_fixtures")
    private val cases = Json.parse(File(root, "index.json").readBytes()).asObject()["cases"].asList().map { it.asObject() }

    /** Runs all cases of a kind and names each that differs; gives how many there were. */
    private fun each(kind: String, minimum: Int, check: (Map<String, Any?>) -> Unit) {
        val mine = cases.filter { it["kind"] == kind }
        assertTrue("only ${mine.size} of $kind", mine.size >= minimum)
        val failures = mine.mapNotNull { case ->
            try {
                check(case)
                null
            } catch (error: AssertionError) {
                "${case["name"]}: ${error.message}"
            }
        }
        println("$kind: ${mine.size} cases, ${failures.size} differ")
        assertTrue(failures.joinToString("\n"), failures.isEmpty())
    }

    private fun fixture(name: Any?) = File(root, name as String)

    @Test
    fun bundles() = each("bundle", 40) { case ->
        val folder = TemporaryFolder().apply { create() }
        try {
            val bundle = folder.newFolder("bundle")
            fun copy(entries: Any?, to: File) = (entries ?: emptyMap<String, Any?>()).asObject().forEach { (name, source) ->
                fixture(source).copyTo(File(to, name))
            }
            copy(case["files"], bundle)
            copy(case["beside"], folder.root)
            (case["symlinks"] ?: emptyMap<String, Any?>()).asObject().forEach { (name, target) ->
                Files.createSymbolicLink(File(bundle, name).toPath(), Paths.get(target as String))
            }
            (case["folders"] ?: emptyList<String>()).asList().forEach { assertTrue(File(bundle, it as String).mkdir()) }
            (case["pipes"] ?: emptyList<String>()).asList().forEach {
                assertEquals(0, ProcessBuilder("mkfifo", File(bundle, it as String).path).start().waitFor())
            }
            val accepts = case["accepts"].asList().map { it.asObject() }.map { AppTarget(it["target"] as String, it["backend"] as String) }
            val key = (case["public_key"] as String?)?.let { java.util.Base64.getDecoder().decode(it) }
            val findings = try {
                BundleReader(accepts, key).open(bundle)
                emptyList()
            } catch (refused: Refused) {
                refused.findings
            }
            findings.forEach { assertTrue(it.what.isNotEmpty() && it.remedy.isNotEmpty() && it.where.isNotEmpty()) }
            assertEquals(findings.toString(), case["codes"], findings.map { it.code }.distinct())
        } finally {
            folder.delete()
        }
    }

    @Test
    fun aManifestOfTooManyValuesIsRefusedUnread() {
        val text = fixture("bundles/good-android/manifest.json").readText()
        fun codes(values: Int) = try {
            Manifest.parse(text.replaceFirst("{", "{\"surprise\":[${"0,".repeat(values)}0],").toByteArray())
            emptyList()
        } catch (refused: Refused) {
            refused.findings.map { it.code }
        }
        assertEquals(listOf("manifest.too_large"), codes(Manifest.MAX_VALUES))
        assertEquals(listOf("manifest.schema"), codes(Manifest.MAX_VALUES / 2))
    }

    @Test
    fun tokens() = each("tokens", 60) { case ->
        val tokenizer = Tokenizer(fixture(case["tokenizer"]).readBytes())
        val tokens = case["tokens"].asInts()
        val asText = if (case["control_tokens"] as Boolean) emptySet() else controlTokens(tokenizer.added, emptyList(), emptyList())
        assertEquals(tokens, tokenizer.encode(case["text"] as String, asText))
        assertEquals(case["decoded"], tokenizer.decode(tokens))
    }

    @Test
    fun chatTokens() = each("chat_tokens", 4) { case ->
        val tokenizer = Tokenizer(fixture(case["tokenizer"]).readBytes())
        val text = TextModel(
            tokenizer, case["template"] as String, texts(case["special_tokens"]), case["bos_token_id"]?.asInt(),
            case["eos_token_ids"].asInts().toSet(), case["content_parts"] as Boolean,
        )
        assertEquals(case["tokens"].asInts(), text.encode(messages(case)))
    }

    private fun texts(value: Any?): Map<String, String> = value.asObject().mapValues { it.value as String }

    private fun messages(case: Map<String, Any?>) = case["messages"].asList().map { it.asObject() }

    @Test
    fun chats() = each("chat", 10) { case ->
        val (year, month, day) = (case["date"] as String).split('-').map { it.toInt() }
        val rendered = try {
            ChatTemplate(fixture(case["template"]).readText(), texts(case["special_tokens"])).render(
                messages(case), case["tools"]?.asList()?.map { it.asObject() }, case["add_generation_prompt"] as Boolean,
                Day(year, month, day),
            )
        } catch (error: TemplateException) {
            if (case["text"] != null) throw AssertionError(error)
            null
        }
        assertEquals(case["text"], rendered)
    }

    /** Which tokens may be chosen, and how probable each is; the draw itself differs between languages. */
    @Test
    fun sampling() = each("sampling", 20) { case ->
        val logits = case["logits"].asList().map { (it as Number).toFloat() }.toFloatArray()
        val (temperature, topP) = listOf("temperature", "top_p").map { (case[it] as Number).toDouble() }
        val found = Sampler(Sampling(temperature, topP, case["top_k"].asInt())).candidates(logits)
        val sum = found.weights.take(found.count).sum()
        val probabilities = (0 until found.count).map { found.tokens[it] to found.weights[it] / sum }.sortedBy { it.first }
        assertEquals(case["tokens"].asInts(), probabilities.map { it.first })
        case["probabilities"].asList().zip(probabilities).forEach { (wanted, token) ->
            assertEquals((wanted as Number).toDouble(), token.second, 1e-12)
        }
    }

    @Test
    fun toolCalls() = each("tool_calls", 20) { case ->
        val calls = try {
            ToolCalls.parse(case["text"] as String).map { mapOf("name" to it.name, "arguments" to it.arguments) }
        } catch (_: ToolCallException) {
            null
        }
        assertEquals(case["calls"], calls)
    }

    @Test
    fun guards() = each("guard", 15) { case ->
        val verdict = GuardVerdict.parse(case["text"] as String)
        assertEquals(case["verdict"] == "safe", verdict.safe)
        assertEquals(case["categories"], verdict.categories)
    }

    @Test
    fun utf8() = each("utf8", 10) { case ->
        val stream = Utf8Stream()
        val chunks = case["chunks"].asList().map { hex -> (hex as String).chunked(2).map { it.toInt(16).toByte() }.toByteArray() }
        assertEquals(case["pieces"], chunks.map { stream.push(it) })
        assertEquals(case["rest"], stream.flush())
    }

    @Test
    fun stops() = each("stop", 8) { case ->
        val filter = StopFilter(case["stops"].asList().map { it as String })
        assertEquals(case["expected"], case["pieces"].asList().map { filter.push(it as String) })
        assertEquals(case["stopped"], filter.stopped)
        assertEquals(case["rest"], filter.flush())
    }

    @Test
    fun trimming() = each("trim", 8) { case ->
        val dialog = messages(case)
        val kept = try {
            trimDialog(dialog, case["limit"].asInt()) { part ->
                part.sumOf { message -> (message["content"] as String).let { 4 + it.codePointCount(0, it.length) } }
            }
        } catch (_: TooLong) {
            null
        }
        assertEquals(case["kept"]?.asInts()?.map { dialog[it] }, kept)
    }
}
