package org.llamaedge.core

/** The tokenizer file is damaged, or of a kind that this reader does not know. */
class TokenizerException(message: String) : Exception(message)

/**
 * A byte-level BPE out of `tokenizer.json`, as Llama 3 and SmolLM2 have it. A normalizer, a prefix space or a pre-tokenizer of
 * another kind is refused: half a port would give tokens that are nearly right.
 */
class Tokenizer(tokenizerJson: ByteArray) {
    private val ids: Map<String, Int>
    private val ranks: Map<Pair<String, String>, Int>
    private val ignoreMerges: Boolean
    private val preTokenizer: PreTokenizer
    private val added: Map<String, AddedToken>
    private val byId: Map<Int, String>
    private val alphabet = ByteLevel.letters()
    private val bytesOfLetters = alphabet.withIndex().associate { (byte, letter) -> letter to byte.toByte() }
    private val cache = object : LinkedHashMap<String, IntArray>(512, 0.75f, true) {
        override fun removeEldestEntry(eldest: Map.Entry<String, IntArray>) = size > 8192
    }

    private class AddedToken(val id: Int, val special: Boolean)

    init {
        val root = objectOf(parsed(tokenizerJson), "tokenizer.json")
        if (root["normalizer"] != null) throw TokenizerException("a normalizer is not supported")
        val model = objectOf(root["model"], "model")
        if (model["type"] != null && model["type"] != "BPE") throw TokenizerException("the model is a ${model["type"]}")
        if (model["byte_fallback"] == true || !model["continuing_subword_prefix"].let { it == null || it == "" }) {
            throw TokenizerException("byte fallback and subword prefixes are not supported")
        }
        ignoreMerges = model["ignore_merges"] == true
        ids = objectOf(model["vocab"], "vocab").mapValues { (_, id) -> intOf(id) }
        ranks = listOf(model["merges"], "merges").withIndex().associate { (rank, merge) -> pairOf(merge) to rank }
        for ((left, right) in ranks.keys) {
            if (left !in ids || right !in ids || left + right !in ids) throw TokenizerException("the merge $left $right makes no token")
        }
        preTokenizer = PreTokenizer.of(root["pre_tokenizer"])
        added = listOf(root["added_tokens"] ?: emptyList<Any?>(), "added_tokens").associate { addedToken(it) }
        byId = ids.entries.associate { (token, id) -> id to token } + added.entries.associate { (token, entry) -> entry.id to token }
    }

    val vocabSize: Int get() = ids.keys.union(added.keys).size

    fun idOf(token: String): Int? = added[token]?.id ?: ids[token]

    fun tokenOf(id: Int): String? = byId[id]

    /** Ids of the special tokens by their text. */
    val specialIds: Map<String, Int> get() = added.filterValues { it.special }.mapValues { (_, entry) -> entry.id }

    /** Matches each special token, the longest first; null where there is none. */
    val specialPattern: Regex? by lazy { patternOf(added.filterValues { it.special }.keys) }

    private val plainPattern: Regex? by lazy { patternOf(added.filterValues { !it.special }.keys) }
    private val everyPattern: Regex? by lazy { patternOf(added.keys) }

    /** Ids without BOS. Control tokens that [text] spells are parsed only with [controlTokens]. */
    fun encode(text: String, controlTokens: Boolean): List<Int> {
        val pattern = if (controlTokens) everyPattern else plainPattern
        val out = ArrayList<Int>()
        var place = 0
        for (match in pattern?.findAll(text) ?: emptySequence()) {
            encodePlain(text.substring(place, match.range.first), out)
            out += added.getValue(match.value).id
            place = match.range.last + 1
        }
        encodePlain(text.substring(place), out)
        return out
    }

    /** Bytes of one token; none for a special one. */
    fun bytes(id: Int): ByteArray {
        val token = byId[id] ?: return ByteArray(0)
        val entry = added[token]
        if (entry != null && entry.id == id) return if (entry.special) ByteArray(0) else token.toByteArray()
        return ByteArray(token.length) { bytesOfLetters[token[it]] ?: return token.toByteArray() }
    }

    /** The text of [ids], special tokens left out. */
    fun decode(ids: List<Int>): String = Utf8Stream().run { ids.joinToString("") { push(bytes(it)) } + flush() }

    private fun encodePlain(text: String, out: MutableList<Int>) {
        if (text.isEmpty()) return
        for (word in preTokenizer.split(text)) cache.getOrPut(word) { bpe(word) }.forEach { out += it }
    }

    private fun bpe(word: String): IntArray {
        val letters = buildString { for (byte in word.toByteArray()) append(alphabet[byte.toInt() and 0xff]) }
        if (ignoreMerges) ids[letters]?.let { return intArrayOf(it) }
        var parts = letters.map { it.toString() }
        while (parts.size > 1) {
            val best = parts.zipWithNext().filter { it in ranks }.minByOrNull { ranks.getValue(it) } ?: break
            parts = merged(parts, best)
        }
        // A byte without a token is left out, as the `tokenizers` library does without an unknown token.
        return parts.mapNotNull { ids[it] }.toIntArray()
    }

    private fun merged(parts: List<String>, pair: Pair<String, String>): List<String> {
        val out = ArrayList<String>(parts.size)
        var place = 0
        while (place < parts.size) {
            if (place + 1 < parts.size && parts[place] == pair.first && parts[place + 1] == pair.second) {
                out += pair.first + pair.second
                place += 2
            } else {
                out += parts[place++]
            }
        }
        return out
    }

    private companion object {
        fun parsed(bytes: ByteArray): Any? = try {
            Json.parse(bytes)
        } catch (error: Json.ParseException) {
            throw TokenizerException("tokenizer.json: ${error.message}")
        }

        @Suppress("UNCHECKED_CAST")
        fun objectOf(value: Any?, what: String): Map<String, Any?> =
            value as? Map<String, Any?> ?: throw TokenizerException("$what is missing or no object")

        fun listOf(value: Any?, what: String): List<Any?> = value as? List<Any?> ?: throw TokenizerException("$what is missing or no list")

        fun intOf(value: Any?): Int = (value as? Long)?.toInt() ?: throw TokenizerException("$value is no token id")

        /** `["a", "b"]`, or `"a b"` in older files. */
        fun pairOf(merge: Any?): Pair<String, String> {
            val parts = if (merge is String) merge.split(' ') else listOf(merge, "a merge").map { it as? String ?: "" }
            if (parts.size != 2) throw TokenizerException("the merge $merge has not two parts")
            return parts[0] to parts[1]
        }

        fun addedToken(value: Any?): Pair<String, AddedToken> {
            val token = objectOf(value, "an added token")
            val content = token["content"] as? String ?: throw TokenizerException("an added token has no text")
            if (listOf("single_word", "lstrip", "rstrip").any { token[it] == true }) {
                throw TokenizerException("the added token $content takes neighbouring spaces, which is not supported")
            }
            return content to AddedToken(intOf(token["id"]), token["special"] == true)
        }

        fun patternOf(tokens: Collection<String>): Regex? =
            if (tokens.isEmpty()) null else Regex(tokens.sortedByDescending { it.length }.joinToString("|") { Regex.escape(it) })
    }
}

/** GPT-2's printable letter for each byte. */
internal object ByteLevel {
    fun letters(): CharArray {
        val printable = (0x21..0x7e) + (0xa1..0xac) + (0xae..0xff)
        var next = 0x100
        return CharArray(256) { byte -> if (byte in printable) byte.toChar() else (next++).toChar() }
    }
}

/** Cuts text into the words that BPE works within; no character is lost. */
internal class PreTokenizer private constructor(private val steps: List<(String) -> List<String>>) {
    fun split(text: String): List<String> = steps.fold(listOf(text)) { words, step -> words.flatMap(step) }

    companion object {
        private const val GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

        /** Unicode's White_Space, spelled out: what `\s` means differs between regex engines, Android's among them. */
        private const val SPACES = "\\u0009-\\u000d\\u0020\\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"

        fun of(value: Any?): PreTokenizer {
            val node = value as? Map<*, *> ?: throw TokenizerException("there is no pre-tokenizer")
            val nodes = if (node["type"] == "Sequence") node["pretokenizers"] as? List<*> ?: emptyList<Any?>() else listOf(node)
            val steps = nodes.map { step(it as? Map<*, *> ?: throw TokenizerException("a pre-tokenizer is no object")) }
            if (nodes.none { (it as Map<*, *>)["type"] == "ByteLevel" }) throw TokenizerException("the pre-tokenizer is not byte-level")
            return PreTokenizer(steps)
        }

        private fun step(node: Map<*, *>): (String) -> List<String> = when (node["type"]) {
            "Digits" -> isolated(if (node["individual_digits"] == true) "\\p{N}" else "\\p{N}+")
            "Split" -> {
                val pattern = (node["pattern"] as? Map<*, *>)?.get("Regex") as? String
                if (pattern == null || node["behavior"] != "Isolated" || node["invert"] == true) {
                    throw TokenizerException("the split ${node["behavior"]} is not supported")
                }
                isolated(pattern)
            }
            "ByteLevel" -> {
                if (node["add_prefix_space"] == true) throw TokenizerException("a prefix space is not supported")
                if (node["use_regex"] == false) { text -> listOf(text) } else isolated(GPT2)
            }
            else -> throw TokenizerException("the pre-tokenizer ${node["type"]} is not supported")
        }

        /** Each match is a word, and so is what lies between two. */
        private fun isolated(pattern: String): (String) -> List<String> {
            val regex = try {
                Regex(withUnicodeSpaces(pattern))
            } catch (error: java.util.regex.PatternSyntaxException) {
                throw TokenizerException("the split pattern is not readable: ${error.description}")
            }
            return { text ->
                val words = ArrayList<String>()
                var place = 0
                for (match in regex.findAll(text)) {
                    if (match.value.isEmpty()) continue
                    if (match.range.first > place) words += text.substring(place, match.range.first)
                    words += match.value
                    place = match.range.last + 1
                }
                if (place < text.length) words += text.substring(place)
                words
            }
        }

        private fun withUnicodeSpaces(pattern: String): String = buildString {
            var inClass = false
            var place = 0
            while (place < pattern.length) {
                val two = pattern.substring(place, minOf(place + 2, pattern.length))
                when {
                    two == "\\s" -> append(if (inClass) SPACES else "[$SPACES]")
                    two == "\\S" && !inClass -> append("[^$SPACES]")
                    two == "\\S" -> throw TokenizerException("\\S within a class is not supported")
                    two[0] == '\\' -> append(two)
                    else -> {
                        if (two[0] == '[') inClass = true
                        if (two[0] == ']') inClass = false
                        append(two[0])
                        place -= 1
                    }
                }
                place += 2
            }
        }
    }
}
