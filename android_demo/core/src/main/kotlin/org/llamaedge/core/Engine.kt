package org.llamaedge.core

import kotlin.random.Random

/** How the next token is chosen; temperature 0 takes the most probable one. */
data class Sampling(val temperature: Double = 0.0, val topP: Double = 1.0, val topK: Int = 0, val seed: Int = 0) {
    companion object {
        /** The model's own defaults, which the manifest carries. */
        fun of(defaults: Map<String, Any?>, seed: Int): Sampling {
            fun number(key: String) = (defaults[key] as? Number)?.toDouble()
            if (defaults["do_sample"] == false) return Sampling()
            return Sampling(number("temperature") ?: 0.0, number("top_p") ?: 1.0, number("top_k")?.toInt() ?: 0, seed)
        }
    }
}

enum class StopReason { END_TOKEN, MAX_NEW_TOKENS, CONTEXT_FULL, CANCELLED }

/** What turns prompt tokens into new ones: ExecuTorch on the phone, `llama-edge serve` on a desktop, a fake in tests. */
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

/** Temperature, then top-k, then top-p, as `llama_edge/text/generate.py` does it. */
class Sampler(private val sampling: Sampling) {
    private val random = Random(sampling.seed)

    fun choose(logits: FloatArray): Int {
        if (sampling.temperature == 0.0) return logits.indices.maxByOrNull { logits[it] }!!
        val (tokens, weights) = candidates(logits)
        var left = random.nextDouble() * weights.sum()
        for (index in tokens.indices) {
            left -= weights[index]
            if (left < 0) return tokens[index]
        }
        return tokens.last()
    }

    /** Tokens that may be chosen, the most probable first, with weights that need not sum to one. */
    internal fun candidates(logits: FloatArray): Pair<List<Int>, List<Double>> {
        var order = logits.indices.sortedByDescending { logits[it] }
        if (sampling.topK > 0) order = order.take(sampling.topK)
        val highest = logits[order[0]].toDouble()
        val weights = order.map { Math.exp((logits[it] - highest) / sampling.temperature) }
        val wanted = sampling.topP * weights.sum()
        var sum = 0.0
        val count = weights.takeWhile { weight -> (sum < wanted).also { sum += weight } }.size
        return order.take(maxOf(count, 1)) to weights.take(maxOf(count, 1))
    }
}
