package org.llamaedge.core

/** The tokenizer file is damaged, or of a kind that this reader does not know. */
class TokenizerException(message: String) : Exception(shown(message))

/**
 * A byte-level BPE out of `tokenizer.json`, as Llama 3 and SmolLM2 have it. A normalizer, a prefix space or a pre-tokenizer of
 * another kind is refused: half a port would give tokens that are nearly right.
 */
class Tokenizer(tokenizerJson: ByteArray) {
    private val ids: Map<String, Int>
    private val merges: Merges
    private val ignoreMerges: Boolean
    private val preTokenizer: PreTokenizer
    private val addedByText: Map<String, AddedToken>
    private val byId: Map<Int, String>
    private val alphabet = ByteLevel.letters()
    private val bytesOfLetters = alphabet.withIndex().associate { (byte, letter) -> letter to byte.toByte() }

    /** Of each byte; [NO_TOKEN] where the vocabulary lacks it. */
    private val idsOfBytes: IntArray

    /** For bytes without a token; [NO_TOKEN] leaves them out. */
    private val unknown: Int
    private val fuseUnknown: Boolean

    /** Those that are found in the text as it is, then those that are found in what is left. */
    private val finders: List<TokenFinder>
    private val cache = object : LinkedHashMap<String, IntArray>(512, 0.75f, true) {
        override fun removeEldestEntry(eldest: Map.Entry<String, IntArray>) = size > CACHED_WORDS
    }

    init {
        val root = objectOf(parsed(tokenizerJson), "tokenizer.json")
        if (root["normalizer"] != null) throw TokenizerException("a normalizer is not supported")
        val model = objectOf(root["model"], "model")
        checkModel(model)
        ignoreMerges = model["ignore_merges"] == true
        ids = objectOf(model["vocab"], "vocab").mapValues { (_, id) -> idOf(id) }
        merges = mergeTable(listOf(model["merges"], "merges"), ids)
        idsOfBytes = IntArray(256) { ids[alphabet[it].toString()] ?: NO_TOKEN }
        unknown = model["unk_token"]?.let { ids[it] ?: throw TokenizerException("the unknown token $it is no token") } ?: NO_TOKEN
        fuseUnknown = model["fuse_unk"] == true
        preTokenizer = PreTokenizer.of(root["pre_tokenizer"])
        addedByText = listOf(root["added_tokens"] ?: emptyList<Any?>(), "added_tokens").map { addedToken(it) }.associateBy { it.text }
        byId = ids.entries.associate { (token, id) -> id to token } + addedByText.values.associate { it.id to it.text }
        finders = addedByText.values.partition { !it.normalized }.toList().map { tokens -> TokenFinder(tokens.map { it.text }) }
    }

    val added: Collection<AddedToken> get() = addedByText.values

    /** How many rows a model needs for it: the largest id and one. */
    val vocabSize: Int get() = (byId.keys.maxOrNull() ?: -1) + 1

    fun idOf(token: String): Int? = addedByText[token]?.id ?: ids[token]

    fun tokenOf(id: Int): String? = byId[id]

    /** Ids of the special tokens by their text. */
    val specialIds: Map<String, Int> get() = addedByText.filterValues { it.special }.mapValues { (_, token) -> token.id }

    /** Ids without BOS. Added tokens of [asText] that [text] spells stay text; see [controlTokens]. Throws [TokenizerException]. */
    fun encode(text: String, asText: Set<String> = emptySet()): List<Int> =
        IntList().also { encode(text, asText, it) }.toList()

    internal fun encode(text: String, asText: Set<String>, out: IntList) {
        if (text.length > MAX_TEXT) throw TokenizerException("a text of ${text.length} characters; at most $MAX_TEXT are accepted")
        encode(text, 0, asText, out)
    }

    private fun encode(text: String, finder: Int, asText: Set<String>, out: IntList) {
        if (finder == finders.size) {
            if (text.isNotEmpty()) preTokenizer.split(text) { out.addAll(word(it)) }
            return
        }
        var start = 0
        finders[finder].each(text) { index, token ->
            if (token !in asText) {
                encode(text.substring(start, index), finder + 1, asText, out)
                out.add(addedByText.getValue(token).id)
                start = index + token.length
            }
        }
        encode(text.substring(start), finder + 1, asText, out)
    }

    /** Bytes of one token; none for a special one. */
    fun bytes(id: Int): ByteArray {
        val token = byId[id] ?: return ByteArray(0)
        val entry = addedByText[token]
        if (entry != null && entry.id == id) return if (entry.special) ByteArray(0) else token.toByteArray()
        return ByteArray(token.length) { bytesOfLetters[token[it]] ?: return token.toByteArray() }
    }

    /** The text of [ids], special tokens left out. */
    fun decode(ids: List<Int>): String = Utf8Stream().run { ids.joinToString("") { push(bytes(it)) } + flush() }

    private fun word(word: String): IntArray {
        if (word.length > MAX_CACHED_WORD) return bpe(word)
        return cache.getOrPut(word) { bpe(word) }
    }

    private fun bpe(word: String): IntArray {
        val bytes = word.toByteArray()
        if (bytes.size > MAX_WORD_BYTES) {
            throw TokenizerException("a word of ${bytes.size} bytes without a break; at most $MAX_WORD_BYTES are accepted")
        }
        if (ignoreMerges) {
            val letters = String(CharArray(bytes.size) { alphabet[bytes[it].toInt() and 0xff] })
            ids[letters]?.let { return intArrayOf(it) }
        }
        val tokens = IntList(bytes.size)
        var wasUnknown = false
        for (byte in bytes) {
            val id = idsOfBytes[byte.toInt() and 0xff]
            if (id != NO_TOKEN) tokens.add(id)
            if (id == NO_TOKEN && unknown != NO_TOKEN && !(fuseUnknown && wasUnknown)) tokens.add(unknown)
            wasUnknown = id == NO_TOKEN
        }
        return mergeTokens(tokens.toIntArray(), merges)
    }

    private companion object {
        const val NO_TOKEN = -1
        const val CACHED_WORDS = 8192

        const val MAX_CACHED_WORD = 256

        /** Each needs up to 100 bytes of memory while the word is merged. */
        const val MAX_WORD_BYTES = 1 shl 18
        const val MAX_TEXT = 1 shl 22
        const val MAX_ID = 1 shl 24
        const val MAX_ADDED_CHARACTERS = 256

        fun parsed(bytes: ByteArray): Any? = try {
            Json.parse(bytes)
        } catch (error: Json.ParseException) {
            throw TokenizerException("tokenizer.json: ${error.message}")
        }

        @Suppress("UNCHECKED_CAST")
        fun objectOf(value: Any?, what: String): Map<String, Any?> =
            value as? Map<String, Any?> ?: throw TokenizerException("$what is missing or no object")

        fun listOf(value: Any?, what: String): List<Any?> = value as? List<Any?> ?: throw TokenizerException("$what is missing or no list")

        fun idOf(value: Any?): Int = (value as? Long)?.takeIf { it in 0..MAX_ID }?.toInt()
            ?: throw TokenizerException("$value is no token id; 0 to $MAX_ID are")

        fun checkModel(model: Map<String, Any?>) {
            if (model["type"] != null && model["type"] != "BPE") throw TokenizerException("the model is a ${model["type"]}")
            if (model["byte_fallback"] == true) throw TokenizerException("byte fallback is not supported")
            for (key in listOf("continuing_subword_prefix", "end_of_word_suffix", "dropout")) {
                if (model[key] !in listOf(null, "", 0.0)) throw TokenizerException("the model's $key is not supported")
            }
        }

        fun mergeTable(merges: List<Any?>, ids: Map<String, Int>): MergeTable {
            val (left, right, merged) = List(3) { IntArray(merges.size) }
            merges.forEachIndexed { rank, merge ->
                val (first, second) = pairOf(merge)
                fun id(token: String) = ids[token] ?: throw TokenizerException("the merge $first $second makes no token")
                left[rank] = id(first)
                right[rank] = id(second)
                merged[rank] = id(first + second)
            }
            return MergeTable.of(left, right, merged)
        }

        /** `["a", "b"]`, or `"a b"` in older files. */
        fun pairOf(merge: Any?): Pair<String, String> {
            val parts = if (merge is String) merge.split(' ') else listOf(merge, "a merge").map { it as? String ?: "" }
            if (parts.size != 2) throw TokenizerException("the merge $merge has not two parts")
            return parts[0] to parts[1]
        }

        fun addedToken(value: Any?): AddedToken {
            val token = objectOf(value, "an added token")
            val text = token["content"] as? String ?: ""
            if (text.length !in 1..MAX_ADDED_CHARACTERS) {
                throw TokenizerException("an added token has ${text.length} characters; 1 to $MAX_ADDED_CHARACTERS are accepted")
            }
            if (listOf("single_word", "lstrip", "rstrip").any { token[it] == true }) {
                throw TokenizerException("the added token $text takes neighbouring spaces, which is not supported")
            }
            val special = token["special"] == true
            return AddedToken(text, idOf(token["id"]), special, token["normalized"] as? Boolean ?: !special)
        }
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
