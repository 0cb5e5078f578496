package org.llamaedge.core

import kotlin.random.Random
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class TokenizerTest {
    /** Counts searches: the clock of a machine says nothing about a phone's. */
    private class Counted(private val merges: Merges) : Merges {
        var searches = 0L

        override fun find(left: Int, right: Int): Long {
            searches++
            return merges.find(left, right)
        }
    }

    private fun table(vararg merges: Triple<Int, Int, Int>) = MergeTable.of(
        IntArray(merges.size) { merges[it].first }, IntArray(merges.size) { merges[it].second }, IntArray(merges.size) { merges[it].third },
    )

    /** Merges of a vocabulary of this size over four letters; a token is two earlier ones. */
    private fun largeTable(size: Int): MergeTable {
        val random = Random(3)
        val merges = HashMap<Pair<Int, Int>, Int>()
        for (id in 4 until size) {
            // Near ones, so that words reach long tokens.
            var pair = 0 to 0
            while (pair in merges || (id > 4 && pair == 0 to 0)) pair = random.nextInt(minOf(id, 4 + id / 8)) to random.nextInt(minOf(id, 4 + id / 8))
            merges[pair] = id
        }
        return table(*merges.entries.sortedBy { it.value }.map { Triple(it.key.first, it.key.second, it.value) }.toTypedArray())
    }

    @Test
    fun searchesGrowWithTheWordAndNotWithItsSquare() {
        val random = Random(1)
        for (merges in listOf(table(Triple(0, 0, 1), Triple(1, 1, 2), Triple(2, 2, 3)), largeTable(20_000))) {
            for (length in listOf(16, 256, 4096, 65_536)) {
                for (letters in 1..3) {
                    val counted = Counted(merges)
                    mergeTokens(IntArray(length) { random.nextInt(letters) }, counted)
                    assertTrue("${counted.searches} searches for $length letters", counted.searches in length - 1L..6L * length)
                }
            }
        }
    }

    @Test
    fun takesTheLowestRankAndThenTheLeftmost() {
        // 0 0 0: the left pair goes first, though the right one has the same rank.
        assertArrayEquals(intArrayOf(1, 0), mergeTokens(intArrayOf(0, 0, 0), table(Triple(0, 0, 1))))
        // A pair that a merge makes may have a lower rank than those that were there: 5 goes before the second 3.
        val merges = table(Triple(3, 2, 5), Triple(0, 1, 3))
        assertArrayEquals(intArrayOf(5, 3), mergeTokens(intArrayOf(0, 1, 2, 0, 1), merges))
        // The last of equal pairs counts, as in the library's own table.
        assertArrayEquals(intArrayOf(7), mergeTokens(intArrayOf(0, 1), table(Triple(0, 1, 6), Triple(0, 1, 7))))
        assertArrayEquals(IntArray(0), mergeTokens(IntArray(0), merges))
    }

    private fun json(
        vocab: String = "\"a\": 0, \"b\": 1, \"ab\": 2, \"aa\": 3", merges: String = "[\"a\", \"b\"], [\"a\", \"a\"]", added: String = "",
        model: String = "", split: String = "",
    ): ByteArray = (
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {$vocab}, \"merges\": [$merges]$model}, \"added_tokens\": [$added], " +
            "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [$split{\"type\": \"ByteLevel\"}]}}"
        ).toByteArray()

    private fun splitBy(pattern: String) =
        "{\"type\": \"Split\", \"pattern\": {\"Regex\": ${Json.write(pattern)}}, \"behavior\": \"Isolated\"}, "

    @Test
    fun aByteWithoutATokenIsLeftOutOrUnknown() {
        assertEquals(listOf(2), Tokenizer(json()).encode("aéb"))
        val unknown = ", \"unk_token\": \"b\""
        assertEquals(listOf(2, 1, 1), Tokenizer(json(model = unknown)).encode("aéb"))
        assertEquals(listOf(2, 1), Tokenizer(json(model = "$unknown, \"fuse_unk\": true")).encode("aéb"))
    }

    @Test
    fun addedTokensAreFoundLongestFirstAndNormalizedOnesLast() {
        fun token(text: String, id: Int, normalized: Boolean) =
            "{\"id\": $id, \"content\": \"$text\", \"special\": false, \"normalized\": $normalized}"
        val added = listOf(token("<b>", 4, false), token("<b>a", 5, false), token("a<b", 6, true), token("b", 7, true)).joinToString()
        val tokenizer = Tokenizer(json(added = added))
        assertEquals(listOf(0, 5, 7), tokenizer.encode("a<b>ab"))
        assertEquals("what stays text hides what is inside of it", listOf(3, 1, 3), tokenizer.encode("aa<b>aa", setOf("<b>a", "a<b")))
    }

    @Test
    fun longWordsAndTextsAreMeasured() {
        val tokenizer = Tokenizer(json())
        assertEquals(100_000, tokenizer.encode("a".repeat(200_000)).size)
        assertThrows(TokenizerException::class.java) { tokenizer.encode("a".repeat(300_000)) }
        assertThrows(TokenizerException::class.java) { tokenizer.encode("a b ".repeat(2_000_000)) }
    }

    @Test
    fun publishedSplitPatternsAreRead() {
        val patterns = listOf(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
            "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*",
        )
        for (pattern in patterns) assertEquals(listOf(2, 2), Tokenizer(json(split = splitBy(pattern))).encode("abab").take(2))
    }

    @Test
    fun aSplitPatternThatCouldRunForEverOrFillTheStackIsRefused() {
        val patterns = listOf(
            "(a+)+$", "(?:a|b)*c", "(a|aa){2,}", "(a)\\1", "(?<n>a)\\k<n>", "\\Q[\\E(a+)+", "(?x)[#\n](a+)+", "(", "a{2", "x".repeat(5000),
        )
        for (pattern in patterns) {
            assertThrows(pattern, TokenizerException::class.java) { Tokenizer(json(split = splitBy(pattern))) }
        }
    }

    @Test
    fun aDamagedFileIsRefused() {
        val wrong = listOf(
            json(vocab = "\"a\": 0, \"b\": 4294967296"), json(vocab = "\"a\": -1"), json(vocab = "\"a\": 0.5"), json(vocab = "\"a\": 0, \"a\": 1"),
            json(merges = "[\"a\", \"c\"]"), json(merges = "[\"a\"]"), json(merges = "7"), json(merges = "\"a b c\""),
            json(added = "{\"id\": 4, \"content\": \"\"}"), json(added = "{\"id\": 4, \"content\": \"${"x".repeat(300)}\"}"), json(added = "7"),
            json(added = "{\"id\": 4, \"content\": \"x\", \"lstrip\": true}"), json(model = ", \"dropout\": 0.1"),
            json(model = ", \"end_of_word_suffix\": \"</w>\""), json(model = ", \"unk_token\": \"none\""),
            json(model = ", \"byte_fallback\": true"), json(split = splitBy("a").repeat(20)), "[]".toByteArray(), "{}".toByteArray(),
            "{\"model\": {\"vocab\": ".toByteArray(),
        )
        for (file in wrong) assertThrows(String(file).take(300), TokenizerException::class.java) { Tokenizer(file) }
        Tokenizer(json())
    }
}
