package org.llamaedge.core

import kotlin.random.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class SamplerTest {
    private fun tokens(logits: FloatArray, sampling: Sampling) = Sampler(sampling).candidates(logits).let { it.tokens.take(it.count) }

    /** All tokens sorted, then cut: what the sampler must find without sorting. */
    private fun sorted(logits: FloatArray, sampling: Sampling): List<Int> {
        var order = logits.indices.sortedWith(compareByDescending<Int> { logits[it] }.thenBy { it })
        if (sampling.topK > 0) order = order.take(sampling.topK)
        val weights = order.map { Math.exp((logits[it] - logits[order[0]].toDouble()) / sampling.temperature) }
        val wanted = sampling.topP * weights.sum()
        var sum = 0.0
        return order.take(maxOf(1, weights.takeWhile { weight -> (sum < wanted).also { sum += weight } }.size))
    }

    @Test
    fun findsWhatSortingFinds() {
        val random = Random(5)
        repeat(40) { round ->
            // A few different values only, so that many are equal.
            val logits = FloatArray(1 + random.nextInt(3000)) { random.nextInt(if (round % 2 == 0) 12 else 100_000) / 16f }
            for (topK in listOf(0, 1, 40, logits.size, logits.size + 7)) {
                for (topP in listOf(1.0, 0.95, 0.5, 1e-9)) {
                    if (topP == 1.0 && topK !in 1 until logits.size) continue
                    val sampling = Sampling(temperature = 0.8 + round, topP = topP, topK = topK)
                    assertEquals("$sampling", sorted(logits, sampling), tokens(logits, sampling))
                }
            }
        }
    }

    @Test
    fun keepsEveryTokenWhereNothingCuts() {
        assertEquals(listOf(0, 1, 2), tokens(floatArrayOf(1f, 3f, 2f), Sampling(temperature = 1.0)))
        assertEquals(listOf(0, 1, 2), tokens(floatArrayOf(1f, 3f, 2f), Sampling(temperature = 1.0, topK = 3)))
    }

    @Test
    fun greedyTakesTheFirstOfEqualOnes() = assertEquals(1, Sampler(Sampling()).choose(floatArrayOf(0f, 4f, 4f)))

    @Test
    fun drawsAsOftenAsTheProbabilitiesSay() {
        val logits = floatArrayOf(1f, 3f, 2f, 0f)
        val sampler = Sampler(Sampling(temperature = 1.0, seed = 7))
        val drawn = List(4000) { sampler.choose(logits) }
        assertEquals(0.644, drawn.count { it == 1 } / 4000.0, 0.03)
        assertEquals(0.032, drawn.count { it == 3 } / 4000.0, 0.01)
        val kept = Sampler(Sampling(temperature = 1.0, topK = 2, seed = 7)).let { cut -> List(400) { cut.choose(logits) } }
        assertEquals(setOf(1, 2), kept.toSet())
    }

    @Test
    fun aVerySmallTemperatureIsGreedy() {
        val sampler = Sampler(Sampling(temperature = 1e-310))
        assertTrue(List(50) { sampler.choose(floatArrayOf(1f, 3f, 2f)) }.all { it == 1 })
    }

    @Test
    fun whatIsOutOfRangeIsRefused() {
        val wrong = listOf(
            { Sampling(temperature = -1.0) }, { Sampling(temperature = Double.NaN) },
            { Sampling(temperature = Double.POSITIVE_INFINITY) },
            { Sampling(topP = 0.0) }, { Sampling(topP = 1.1) }, { Sampling(topP = Double.NaN) }, { Sampling(topK = -1) },
        )
        for (make in wrong) assertThrows(IllegalArgumentException::class.java) { make() }
        assertThrows(IllegalArgumentException::class.java) { Sampling.of(mapOf("temperature" to -0.5), 0) }
    }
}
