package org.llamaedge.core

import kotlin.random.Random

/** How the next token is chosen; temperature 0 takes the most probable one. Throws [IllegalArgumentException] out of range. */
data class Sampling(val temperature: Double = 0.0, val topP: Double = 1.0, val topK: Int = 0, val seed: Int = 0) {
    init {
        require(temperature >= 0 && !temperature.isInfinite()) { "temperature is $temperature; it must be 0 (greedy) or above" }
        require(topP > 0 && topP <= 1) { "top_p is $topP; it must be above 0 and at most 1" }
        require(topK >= 0) { "top_k is $topK; it must be 0 (keep all) or above" }
    }

    companion object {
        /** The model's own defaults, which the manifest carries. */
        fun of(defaults: Map<String, Any?>, seed: Int): Sampling {
            fun number(key: String) = (defaults[key] as? Number)?.toDouble()
            if (defaults["do_sample"] == false) return Sampling()
            return Sampling(number("temperature") ?: 0.0, number("top_p") ?: 1.0, number("top_k")?.toInt() ?: 0, seed)
        }
    }
}

/** Temperature, then top-k, then top-p, as `llama_edge/text/generate.py` does it. The buffers are kept from token to token. */
class Sampler(private val sampling: Sampling) {
    private val random = Random(sampling.seed)
    private val ranking = Ranking()
    private var tokens = IntArray(0)
    private var weights = DoubleArray(0)

    fun choose(logits: FloatArray): Int {
        if (sampling.temperature == 0.0) return mostProbable(logits)
        val candidates = candidates(logits)
        var left = random.nextDouble() * sum(candidates.weights, candidates.count)
        for (index in 0 until candidates.count) {
            left -= candidates.weights[index]
            if (left < 0) return candidates.tokens[index]
        }
        return candidates.tokens[candidates.count - 1]
    }

    /** The first [count] of [tokens] may be chosen; their [weights] need not sum to one. Valid until the next call. */
    internal class Candidates(val tokens: IntArray, val weights: DoubleArray, val count: Int)

    /**
     * With neither top-k nor top-p all tokens in the order of the vocabulary, otherwise the most probable first. The vocabulary is
     * not sorted: the ranking gives one token after the other until there are enough.
     */
    internal fun candidates(logits: FloatArray): Candidates {
        val size = logits.size
        if (tokens.size < size) {
            tokens = IntArray(size)
            weights = DoubleArray(size)
        }
        val highest = logits[mostProbable(logits)].toDouble()
        fun weight(token: Int) = Math.exp((logits[token] - highest) / sampling.temperature)
        val cut = sampling.topK in 1 until size
        if (!cut && sampling.topP == 1.0) {
            for (token in 0 until size) tokens[token] = token
            for (token in 0 until size) weights[token] = weight(token)
            return Candidates(tokens, weights, size)
        }
        ranking.start(logits)
        var ranked = 0
        fun rank() {
            tokens[ranked] = ranking.next()
            weights[ranked] = weight(tokens[ranked])
            ranked++
        }
        // Top-p is a part of what top-k keeps.
        var total = 0.0
        if (cut) {
            repeat(sampling.topK) { rank() }
            total = sum(weights, ranked)
        } else {
            for (token in 0 until size) total += weight(token)
        }
        val most = if (cut) ranked else size
        var count = 0
        var sum = 0.0
        while (count < most && (count == 0 || sum < sampling.topP * total)) {
            if (count == ranked) rank()
            sum += weights[count++]
        }
        return Candidates(tokens, weights, count)
    }

    private fun sum(weights: DoubleArray, count: Int): Double {
        var sum = 0.0
        for (index in 0 until count) sum += weights[index]
        return sum
    }

    /** Of equal ones the first, as in NumPy. */
    private fun mostProbable(logits: FloatArray): Int {
        var best = 0
        for (token in 1 until logits.size) if (logits[token] > logits[best]) best = token
        return best
    }
}

/** Gives tokens by falling logit, of equal ones the first: a heap, so n tokens of V cost V + n log2(V) comparisons. */
private class Ranking {
    private var logits = FloatArray(0)
    private var heap = IntArray(0)
    private var size = 0

    fun start(logits: FloatArray) {
        this.logits = logits
        if (heap.size < logits.size) heap = IntArray(logits.size)
        size = logits.size
        for (token in 0 until size) heap[token] = token
        for (index in size / 2 - 1 downTo 0) sink(index)
    }

    fun next(): Int {
        val first = heap[0]
        heap[0] = heap[--size]
        sink(0)
        return first
    }

    private fun sink(start: Int) {
        val token = heap[start]
        var index = start
        while (2 * index + 1 < size) {
            var child = 2 * index + 1
            if (child + 1 < size && before(heap[child + 1], heap[child])) child++
            if (!before(heap[child], token)) break
            heap[index] = heap[child]
            index = child
        }
        heap[index] = token
    }

    private fun before(one: Int, other: Int): Boolean =
        logits[one] > logits[other] || (logits[one] == logits[other] && one < other)
}
