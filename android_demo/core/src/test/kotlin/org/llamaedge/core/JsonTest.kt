package org.llamaedge.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class JsonTest {
    private fun refused(text: String): String =
        assertThrows(text.take(80), Json.ParseException::class.java) { Json.parse(text) }.message.orEmpty()

    @Test
    fun whatIsNoJsonIsRefused() {
        val wrong = listOf(
            "", "{", "[1,]", "{\"a\":1,}", "1 2", "nul", "'a'", "\"\u0001\"", "\"\\x\"", "\"\\u12\"", "\"\\u+123\"", "NaN", "Infinity",
            "01", "-", "-a", "+1", ".5", "1.", "1.e3", "1e", "1e+", "0x10", "١",
        )
        for (text in wrong) refused(text)
    }

    @Test
    fun depthAndValuesAreBounded() {
        val deepest = Json.MAX_DEPTH
        Json.parse("[".repeat(deepest) + "]".repeat(deepest))
        for (depth in listOf(deepest + 2, 1_000_000)) {
            assertTrue("deep" in refused("[".repeat(depth) + "]".repeat(depth)))
            assertTrue("deep" in refused("{\"a\":".repeat(depth)))
        }
        val three = "{\"a\": [1, 2]}"
        assertEquals(mapOf("a" to listOf(1L, 2L)), Json.parse(three, maxValues = 3))
        assertThrows(Json.TooManyValues::class.java) { Json.parse(three, maxValues = 2) }
        assertThrows(Json.TooManyValues::class.java) { Json.parse("[" + "0,".repeat(Json.MAX_VALUES) + "0]") }
    }

    @Test
    fun aNameTwiceIsRefused() {
        assertTrue("\"a\"" in refused("{\"a\": 1, \"b\": 2, \"a\": 1}"))
        assertTrue("\"a\"" in refused("[{\"b\": {\"a\": null, \"\\u0061\": null}}]"))
        assertTrue(refused("{\"${"x".repeat(100_000)}\": 1, \"${"x".repeat(100_000)}\": 1}").length < 200)
        Json.parse("{\"a\": {\"a\": 1}, \"A\": 1}")
    }

    @Test
    fun halfOfASurrogatePairIsRefused() {
        for (half in listOf("\\ud83d", "\\udc4d", "\\udc4d\\ud83d", "\\ud83dx", "x\\ud83d\\ud83d\\udc4d", "\ud83d", "\udc4d\ud83d")) {
            refused("\"$half\"")
            refused("{\"$half\": 1}")
        }
        assertThrows(Json.ParseException::class.java) { Json.parse(byteArrayOf('"'.code.toByte(), -19, -96, -67, '"'.code.toByte())) }
        assertEquals("x👍", Json.parse("\"x\\ud83d\\udc4d\""))
        assertEquals("x👍", Json.parse("\"x👍\""))
    }

    @Test
    fun longNumbersAreRefused() {
        assertEquals(1e30, Json.parse("1000000000000000019884624838656"))
        for (number in listOf("1".repeat(65), "0." + "1".repeat(1_000_000), "1e" + "0".repeat(80) + "1", "1e999", "-1e999")) refused(number)
        assertEquals(Long.MAX_VALUE, Json.parse("9223372036854775807"))
        assertEquals(listOf(-2.5, 0L, 0.0, 1000.0), Json.parse("[-2.5, 0, 0.0, 1E3]"))
    }

    @Test
    fun writesAsPythonDoes() {
        val value = Json.parse("{\"a\": [1, -2.5, true, null, \"\\ud83d\\udc4d\\n\"], \"b\": {}}")
        assertEquals("{\"a\": [1, -2.5, true, null, \"👍\\n\"], \"b\": {}}", Json.write(value))
        assertEquals("{\n  \"a\": [\n    1,\n    [\n      \"\\u0001\"\n    ]\n  ]\n}", Json.write(mapOf("a" to listOf(1L, listOf("\u0001"))), 2))
        assertEquals(listOf("1e-05", "1e+16", "0.0001", "100000.0"), listOf(1e-5, 1e16, 1e-4, 1e5).map { Json.write(it) })
    }

    @Test
    fun whatIsWrittenIsMeasured() {
        assertEquals("[\"abc\"]", Json.write(listOf("abc"), maxCharacters = 7))
        val deep = (0..Json.MAX_DEPTH).fold<Int, Any>(1L) { inner, _ -> listOf(inner) }
        // 2 to the 60 values, each list twice in the next.
        val wide = (0..59).fold<Int, Any>("x") { inner, _ -> listOf(inner, inner) }
        val refused = listOf(
            { Json.write(listOf("abc"), maxCharacters = 6) }, { Json.write(listOf(deep)) }, { Json.write(wide, maxCharacters = 1000) },
            { Json.write("\u0001".repeat(100), maxCharacters = 500) }, { Json.write(listOf(1L), indent = -1) },
            { Json.write(listOf(1L), indent = Int.MAX_VALUE) }, { Json.write(Double.NaN) }, { Json.write(Double.POSITIVE_INFINITY) },
            { Json.write(listOf(Any())) },
        )
        for (write in refused) assertThrows(IllegalArgumentException::class.java) { write() }
    }

    @Test
    fun callsOfToolsAreBoundedAsWell() {
        assertEquals("a.b.c", ToolCalls.parse("[a.b.c()]").single().name)
        val half = "[f(a='\\ud83d')]"
        val twice = "{\"name\": \"f\", \"name\": \"g\", \"parameters\": {}}"
        for (text in listOf("[f" + ".a".repeat(30_000) + "(]", "[f(a=" + "[".repeat(1000) + ")]", half, twice)) {
            assertThrows(text.take(80), ToolCallException::class.java) { ToolCalls.parse(text) }
        }
        assertEquals(1, ToolCalls.parse("[f" + ".a".repeat(30_000) + "()]").size)
    }
}
