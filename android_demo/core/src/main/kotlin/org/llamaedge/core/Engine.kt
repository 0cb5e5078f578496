package org.llamaedge.core

enum class StopReason { END_TOKEN, MAX_NEW_TOKENS, CONTEXT_FULL, CANCELLED }

/** What turns prompt tokens into new ones: ExecuTorch on the phone, `llama-edge serve --stdio` on a desktop, a fake in tests. */
interface Engine : AutoCloseable {
    val maxContext: Int

    /**
     * Generates after [prompt], the whole dialog so far; what is in the cache already is not computed again.
     *
     * @param onToken each new token, without the end token; false stops
     */
    fun generate(prompt: List<Int>, ends: Set<Int>, maxNewTokens: Int, sampling: Sampling, onToken: (Int) -> Boolean): StopReason

    /** Forgets the sequence. */
    fun reset()
}

/** A model as the runtimes see it: tokens at a position, logits after the last of them. */
interface LogitsModel : AutoCloseable {
    val maxContext: Int
    val maxPrefill: Int

    fun forward(tokens: List<Int>, position: Int): FloatArray
}

/** An engine over logits: prefill in pieces, reuse of what the cache holds, sampling. */
class LogitsEngine(private val model: LogitsModel) : Engine {
    private val cached = ArrayList<Int>()

    override val maxContext: Int get() = model.maxContext

    override fun generate(
        prompt: List<Int>, ends: Set<Int>, maxNewTokens: Int, sampling: Sampling, onToken: (Int) -> Boolean,
    ): StopReason {
        require(prompt.isNotEmpty()) { "the prompt has no token" }
        if (prompt.size > maxContext) throw TooLong(prompt.size, maxContext)
        val sampler = Sampler(sampling)
        var logits = prefill(prompt)
        repeat(maxNewTokens) { count ->
            val token = sampler.choose(logits)
            if (token in ends) return StopReason.END_TOKEN
            if (!onToken(token)) return StopReason.CANCELLED
            if (count == maxNewTokens - 1) return StopReason.MAX_NEW_TOKENS
            if (cached.size >= maxContext) return StopReason.CONTEXT_FULL
            logits = append(listOf(token))
        }
        return StopReason.MAX_NEW_TOKENS
    }

    private fun prefill(prompt: List<Int>): FloatArray {
        // The last token runs again even if it is known: its logits are needed.
        val shared = prompt.zip(cached).takeWhile { (new, old) -> new == old }.size.coerceAtMost(prompt.size - 1)
        while (cached.size > shared) cached.removeAt(cached.size - 1)
        return prompt.drop(shared).chunked(model.maxPrefill).map { append(it) }.last()
    }

    private fun append(tokens: List<Int>): FloatArray {
        val logits = model.forward(tokens, cached.size)
        cached += tokens
        return logits
    }

    override fun reset() = cached.clear()

    override fun close() = model.close()
}
