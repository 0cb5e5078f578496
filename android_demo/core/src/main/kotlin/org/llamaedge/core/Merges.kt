package org.llamaedge.core

import java.util.Arrays
import java.util.PriorityQueue

/** What two neighbouring tokens become, and in which order pairs are merged. */
internal fun interface Merges {
    /** Rank and new id as one number, see [packed]; [NONE] where the two are not merged. */
    fun find(left: Int, right: Int): Long

    companion object {
        const val NONE = -1L

        fun packed(rank: Int, id: Int): Long = rank.toLong() shl 32 or id.toLong()

        fun rankOf(merge: Long): Int = (merge ushr 32).toInt()

        fun idOf(merge: Long): Int = merge.toInt()
    }
}

/** All merges of a vocabulary, sorted by their pair: a search takes log2(merges) steps whatever ids a stranger has chosen. */
internal class MergeTable private constructor(private val pairs: LongArray, private val merges: LongArray) : Merges {
    override fun find(left: Int, right: Int): Long {
        val index = Arrays.binarySearch(pairs, pair(left, right))
        return if (index < 0) Merges.NONE else merges[index]
    }

    companion object {
        /** One merge for each rank: the tokens at its left and right, and what they become. A pair's last merge counts. */
        fun of(left: IntArray, right: IntArray, merged: IntArray): MergeTable {
            val order = left.indices.sortedBy { pair(left[it], right[it]) }
            val last = order.filterIndexed { index, rank ->
                val next = order.getOrNull(index + 1)
                next == null || left[next] != left[rank] || right[next] != right[rank]
            }
            return MergeTable(
                LongArray(last.size) { pair(left[last[it]], right[last[it]]) },
                LongArray(last.size) { Merges.packed(last[it], merged[last[it]]) },
            )
        }

        private fun pair(left: Int, right: Int): Long = left.toLong() shl 32 or right.toLong()
    }
}

/**
 * Merges the tokens of one word until no pair can be merged: always the pair with the lowest rank, and of equal ones the leftmost,
 * as `Word::merge_all` of Hugging Face's `tokenizers` does.
 *
 * A list of n tokens, linked both ways, and a queue of what may be merged: at most 6 n searches of [merges].
 */
internal fun mergeTokens(tokens: IntArray, merges: Merges): IntArray {
    val end = tokens.size
    val ids = tokens.copyOf()
    val next = IntArray(end) { it + 1 }
    val previous = IntArray(end) { it - 1 }
    // Rank in the upper half, the left token's index in the lower: the order of the numbers is the order of the merges.
    val queue = PriorityQueue<Long>()

    fun offer(left: Int) {
        if (left < 0 || next[left] == end) return
        val merge = merges.find(ids[left], ids[next[left]])
        if (merge != Merges.NONE) queue.add(Merges.packed(Merges.rankOf(merge), left))
    }
    for (left in 0 until end) offer(left)
    while (true) {
        val first = queue.poll() ?: break
        val left = Merges.idOf(first)
        if (ids[left] == GONE || next[left] == end) continue
        val right = next[left]
        val merge = merges.find(ids[left], ids[right])
        // One of the two has been merged since it was queued.
        if (merge == Merges.NONE || Merges.rankOf(merge) != Merges.rankOf(first)) continue
        ids[left] = Merges.idOf(merge)
        ids[right] = GONE
        next[left] = next[right]
        if (next[left] < end) previous[next[left]] = left
        offer(previous[left])
        offer(left)
    }
    val kept = IntList(end)
    for (id in ids) if (id != GONE) kept.add(id)
    return kept.toIntArray()
}

private const val GONE = -1
