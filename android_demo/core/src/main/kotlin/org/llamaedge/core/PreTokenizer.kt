package org.llamaedge.core

import java.util.regex.Pattern
import java.util.regex.PatternSyntaxException

/** Cuts text into the words that BPE works within; no character is lost. */
internal class PreTokenizer private constructor(private val steps: List<Step>) {
    private fun interface Step {
        fun split(text: String, onWord: (String) -> Unit)
    }

    fun split(text: String, onWord: (String) -> Unit) = split(text, 0, onWord)

    private fun split(text: String, step: Int, onWord: (String) -> Unit) {
        if (step == steps.size) onWord(text) else steps[step].split(text) { split(it, step + 1, onWord) }
    }

    companion object {
        private const val GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

        /** Published sequences have five at most. */
        private const val MAX_STEPS = 16

        fun of(value: Any?): PreTokenizer {
            val node = value as? Map<*, *> ?: throw TokenizerException("there is no pre-tokenizer")
            val nodes = if (node["type"] == "Sequence") node["pretokenizers"] as? List<*> ?: emptyList<Any?>() else listOf(node)
            if (nodes.size > MAX_STEPS) throw TokenizerException("${nodes.size} pre-tokenizers; at most $MAX_STEPS are accepted")
            val steps = nodes.map { step(it as? Map<*, *> ?: throw TokenizerException("a pre-tokenizer is no object")) }
            if (nodes.none { (it as Map<*, *>)["type"] == "ByteLevel" }) throw TokenizerException("the pre-tokenizer is not byte-level")
            return PreTokenizer(steps)
        }

        private fun step(node: Map<*, *>): Step = when (node["type"]) {
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
                if (node["use_regex"] == false) Step { text, onWord -> onWord(text) } else isolated(GPT2)
            }
            else -> throw TokenizerException("the pre-tokenizer ${node["type"]} is not supported")
        }

        /** Each match is a word, and so is what lies between two. */
        private fun isolated(source: String): Step {
            SplitPattern.check(source)
            val pattern = try {
                Pattern.compile(SplitPattern.withUnicodeSpaces(source))
            } catch (error: PatternSyntaxException) {
                throw TokenizerException("the split pattern is not readable: ${error.description}")
            }
            return Step { text, onWord ->
                // One matcher: Kotlin's findAll makes one for each match, and on Android each copies the text.
                val matcher = pattern.matcher(text)
                var start = 0
                while (matcher.find()) {
                    if (matcher.end() == matcher.start()) continue
                    if (matcher.start() > start) onWord(text.substring(start, matcher.start()))
                    onWord(matcher.group())
                    start = matcher.end()
                }
                if (start < text.length) onWord(text.substring(start))
            }
        }
    }
}

/** A split pattern of a tokenizer, which is a stranger's. */
private object SplitPattern {
    /** Unicode's White_Space, spelled out: what `\s` means differs between regex engines, Android's among them. */
    private const val SPACES = "\\u0009-\\u000d\\u0020\\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"

    /** The longest published ones have some 500. */
    private const val MAX_CHARACTERS = 4096

    /** References back and quotations. */
    private val FORBIDDEN = (listOf('k', 'Q', 'E') + ('1'..'9')).map { "\\$it" }.toSet()

    /** What may follow `(?`: no capture, without case, one match for good, looking ahead and back. */
    private val GROUP = Regex(":|i[:)]|>|<?[!=]")

    /**
     * Refuses a repeated group and a reference back: with these a matcher takes exponential time, or recurses once for each
     * repetition until the stack is full. Published patterns repeat single characters and classes only. Refuses as well what
     * would hide one from this check: a quotation, a comment.
     */
    fun check(pattern: String) {
        if (pattern.length > MAX_CHARACTERS) throw TokenizerException("the split pattern has more than $MAX_CHARACTERS characters")
        var inClass = 0
        var previous = ""
        eachSign(pattern) { sign, index ->
            val fault = when {
                sign in FORBIDDEN -> sign
                inClass > 0 -> null
                previous == ")" && sign[0] in "*+{" -> "a repeated group"
                previous == "(" && sign == "?" && GROUP.matchAt(pattern, index + 1) == null -> "a group of this kind"
                else -> null
            }
            if (fault != null) throw TokenizerException("$fault in the split pattern, at character $index, is not supported")
            if (sign == "[") inClass++
            if (sign == "]") inClass--
            previous = if (inClass > 0) "" else sign
        }
    }

    fun withUnicodeSpaces(pattern: String): String = buildString {
        var inClass = 0
        eachSign(pattern) { sign, _ ->
            when (sign) {
                "\\s" -> append(if (inClass > 0) SPACES else "[$SPACES]")
                "\\S" -> if (inClass > 0) throw TokenizerException("\\S within a class is not supported") else append("[^$SPACES]")
                else -> append(sign)
            }
            if (sign == "[") inClass++
            if (sign == "]") inClass--
        }
    }

    /** A character, or two where the first is a backslash. */
    private inline fun eachSign(pattern: String, onSign: (String, Int) -> Unit) {
        var index = 0
        while (index < pattern.length) {
            val end = minOf(index + if (pattern[index] == '\\') 2 else 1, pattern.length)
            onSign(pattern.substring(index, end), index)
            index = end
        }
    }
}
