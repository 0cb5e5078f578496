package org.llamaedge.core

/**
 * The special tokens that a bundle's files name, under the names by which a template writes them: the rules of transformers, as
 * `llama_edge/text/special_tokens.py` has them. A name that no file gives is none.
 */
internal object NamedTokens {
    const val CONFIG = "tokenizer_config.json"
    const val SPECIAL_TOKENS = "special_tokens_map.json"
    private val STANDARD = setOf("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

    /** Where the config has `added_tokens_decoder`, special_tokens_map.json does not count. Throws [TokenizerException]. */
    fun of(config: Map<String, Any?>, specialTokens: Map<String, Any?>): Map<String, String> {
        val found = LinkedHashMap<String, String>()
        fun add(name: String, value: Any?) {
            val content = content(name, value)
            if (content == null) found.remove(name) else found[name] = content
        }
        for (source in if ("added_tokens_decoder" in config) listOf(config) else listOf(config, specialTokens)) {
            source.forEach { (name, value) -> if (name in STANDARD || isModelSpecific(name, value)) add(name, value) }
            (source["extra_special_tokens"] as? Map<*, *>)?.forEach { (name, value) -> add(name as String, value) }
        }
        return found
    }

    /** A name of the model's own, such as `image_token`; `add_bos_token` is a setting. */
    private fun isModelSpecific(name: String, value: Any?) =
        name.endsWith("_token") && (value is String || (value is Map<*, *> && "content" in value))

    /** A token as text or as an object; an empty one is none. */
    private fun content(name: String, value: Any?): String? {
        val content = if (value is Map<*, *>) value["content"] else value
        if (value != null && content !is String) {
            throw TokenizerException("$CONFIG: $name is no token; a text, or an object with its content, is needed")
        }
        return (content as String?)?.ifEmpty { null }
    }
}
