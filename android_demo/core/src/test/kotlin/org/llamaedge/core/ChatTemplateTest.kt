package org.llamaedge.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class ChatTemplateTest {
    private val dialog = listOf(message("user", "x,y"), message("assistant", "👍z"))

    private fun rendered(source: String): String = ChatTemplate(source, mapOf("bos_token" to "<s>", "eos_token" to "</s>")).render(dialog)

    /** On a stack that is half as large as that of a thread on Android: how it ended, `null` for a rendering. */
    private fun end(source: String): Throwable? {
        var end: Throwable? = null
        val work = Runnable {
            @Suppress("TooGenericExceptionCaught") // What must not happen are errors of the machine.
            try {
                rendered(source)
            } catch (error: Throwable) {
                end = error
            }
        }
        Thread(null, work, "small stack", 512L shl 10).run {
            start()
            join()
        }
        return end
    }

    private fun assertRefused(sources: List<String>) {
        val crashed = sources.associateWith { end(it) }.filterValues { it !is TemplateException }
        assertEquals(emptyMap<String, Throwable?>(), crashed.mapKeys { (source, _) -> source.take(120) })
    }

    /** [body] so many times over `ns.v`, which begins as [start]. */
    private fun repeated(start: String, body: String, times: Int, last: String = "") =
        "{% set ns = namespace(v=$start) %}{% for i in range($times) %}{% set ns.v = $body %}{% endfor %}{{ $last }}"

    @Test
    fun agreesWithJinja() {
        // Each was rendered by Jinja 3.1.
        val cases = mapOf(
            "{{ 'a👍b'[1] ~ 'a👍b'[1:] ~ 'a👍b'[-1] ~ 'a👍b' | length }}" to "👍👍bb3",
            "{% for c in 'a👍' %}[{{ c }}{{ loop.index }}{{ loop.last }}]{% endfor %}" to "[a1False][👍2True]",
            "{{ messages[0].content.split(',') | join('-') }}{{ 'aXbXc'.replace('X', '--') }}" to "x-ya--b--c",
            "{{ ' \\n a '.strip() ~ '|' ~ 'xxaxx'.lstrip('x') ~ '|' ~ 'xyax'.rstrip('xy') ~ '|' ~ '--a' | trim('-') }}" to "a|axx|xya|a",
            "{{ nothing | default('d') ~ '' | default('e', true) ~ 0 | default('f', boolean=true) }}" to "def",
            "{{ [1, [2]] == [1, [2]] }}{{ {'a': 1} == {'a': 2} }}{{ [1] == 1 }}{{ 1 == 1.0 }}" to "TrueFalseFalseTrue",
            "{{ 'ß' | upper }}{{ 'ÀB'.lower() }}{{ 7 // -2 }}{{ 7 % -2 }}{{ 7 / 2 }}{{ -3 - -2 }}" to "SSàb-4-13.5-1",
            "{{ 'a' < 'b' }}{{ 'ab' < 'a' }}{{ '\uffee' < '👍' }}{{ 'b' in 'abc' }}{{ 2 in [1, 2] }}" to "TrueFalseTrueTrueTrue",
            "{{ {'a': [1, none]} | tojson }}{{ [] | tojson(indent=2) }}{{ 'é\\n' | tojson(ensure_ascii=false) }}" to "{\"a\": [1, null]}[]\"é\\n\"",
            "{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.get('a') }}{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}" to "21a1",
            "{{ 'a,b,,c'.split(',') | length }}{{ 'abc' | first }}{{ 'a👍' | last }}{{ [1, 2][:1] | length }}" to "4a👍1",
            "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.nextitem is defined }}{% endfor %}" to "1False",
        )
        for ((source, text) in cases) assertEquals(source, text, rendered(source))
    }

    @Test
    fun valuesThatGrowAreMeasuredBeforeTheyAreMade() = assertRefused(
        listOf(
            repeated("'xx'", "ns.v ~ ns.v", 60), repeated("'xx'", "ns.v + ns.v", 60), repeated("'xx'", "ns.v.replace('x', 'xx')", 60),
            repeated("'xx'", "ns.v | replace('x', ns.v)", 6), repeated("'xx'", "[ns.v, ns.v, ns.v] | join(ns.v)", 60),
            repeated("[1, 2]", "ns.v + ns.v", 60), repeated("['x']", "ns.v | tojson", 400),
            repeated("'\\n'", "ns.v ~ ns.v", 21, "ns.v | tojson | tojson | tojson | tojson"),
            repeated("'ß'", "ns.v ~ ns.v", 21, "ns.v | upper"), repeated("'%B'", "ns.v ~ ns.v", 20, "strftime_now(ns.v)"),
            repeated("','", "ns.v ~ ns.v", 20, "ns.v.split(',')"), repeated("','", "ns.v ~ ns.v", 20, "ns.v | list"),
            "{% set x %}xx{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60),
            repeated("'xx'", "ns.v ~ ns.v", 19, "'x'") + "{{ ns.v }}".repeat(50),
            repeated("'xx'", "ns.v ~ ns.v", 19) + (0 until 3000).joinToString("") { "{% set v$it = ns.v ~ $it %}" },
            repeated("[]", "ns.v + [range(100000)]", 40_000), repeated("[]", "ns.v + [loop]", 40_000),
            "{{ messages | tojson(indent=999999999) }}", "{{ messages | tojson(indent=9223372036854775807) }}",
            "{{ range(9999999) | list | length }}", "{% for a in range(-9223372036854775807, 9223372036854775807) %}{% endfor %}",
            "{% for a in range(-9223372036854775807, 1) %}{% endfor %}",
            "{{ 'x'.center(999999999) }}", "{{ 'x' | center(999999999) }}", "{{ 'x' | indent(999999999) }}", "{{ lipsum(n=9999999) }}",
            "{{ 'x' * 999999999 }}", "{{ 999999999 * 'x' }}", "{{ [0] * 999999999 }}", "{{ 'x'.zfill(999999999) }}", "{{ '%999999999d' % 1 }}",
            "{{ 'x'.ljust(999999999) }}", "{{ messages | slice(999999999) }}", "{{ messages | batch(999999999) }}", "{{ '{:999999999}'.format(1) }}",
            "{{ 9 ** 999999999 }}",
        ),
    )

    @Test
    fun everythingTogetherIsBounded() = assertRefused(
        listOf(
            "{% for a in range(60000) %}{% endfor %}", "{% for a in range(300) %}{% for b in range(300) %}{% endfor %}{% endfor %}",
            "{% for a in range(300) %}{% for b in range(300) if false %}{% endfor %}{% endfor %}",
            "{% for a in range(50000) %}${"{% if a %}{% endif %}".repeat(5000)}{% endfor %}",
            "{% for a in range(50000) %}{{ ${"1 + ".repeat(100)}1 }}{% endfor %}".let { it + it },
            repeated("'aa'", "ns.v ~ ns.v", 19, "[(ns.v ~ 'b') in (ns.v ~ ns.v)] | length"),
            repeated("'aa'", "ns.v ~ ns.v", 18) + "{% for a in range(50000) %}{% if ns.v == ns.v ~ 'b' %}{% endif %}{% endfor %}",
            repeated("'aa'", "ns.v ~ ns.v", 18) + "{% for a in range(50000) %}{{ ns.v | length }}{% endfor %}",
        ),
    )

    @Test
    fun deepTemplatesAreRefused() {
        val expressions = listOf(
            "a" + " + a".repeat(20_000), "a" + " ~ a".repeat(20_000), "a" + " or a".repeat(20_000), "a" + " == a".repeat(20_000),
            "a" + "|trim".repeat(20_000), "a" + ".b".repeat(20_000), "a" + "[0]".repeat(20_000), "a" + "[0:1]".repeat(10_000),
            "a" + "()".repeat(20_000), "a" + ".b()".repeat(20_000), "a" + " is defined".repeat(10_000), "a" + " not in a".repeat(10_000),
            "not ".repeat(20_000) + "a", "-".repeat(60_000) + "1", "a if a else ".repeat(9_000) + "a", "a if ".repeat(9_000) + "a",
            "(".repeat(60_000), "[".repeat(60_000), "{'a':".repeat(20_000), "a[".repeat(60_000), "a(".repeat(60_000), "a(b=".repeat(30_000),
            "a|b(".repeat(30_000), "(".repeat(200) + "1" + ")".repeat(200),
        )
        assertRefused(expressions.map { "{{ $it }}" } + expressions.map { "{% if $it %}{% endif %}" })
        val blocks = listOf("{% if a %}", "{% for a in b %}", "{% set a %}", "{% if a %}{% for a in b %}{% set a %}")
        assertRefused(blocks.map { it.repeat(100_000 / it.length) })
        assertRefused(listOf("{% if a %}".repeat(100) + "{% endif %}".repeat(100)))
    }

    @Test
    fun deepValuesAreRefused() {
        // A list in a list, and one that holds the last one twice: 2 to the 300 values in 300 lists.
        val uses = listOf("ns.v | tojson", "ns.v == ns.v", "[ns.v] == [ns.v]", "ns.v in [ns.v]", "{'a': ns.v} == {'a': ns.v}", "{'a': ns.v} | tojson")
        for (body in listOf("[ns.v]", "{'a': ns.v}", "[ns.v, ns.v]", "{'a': ns.v, 'b': ns.v}")) {
            assertRefused(uses.map { repeated("1", body, 300, it) })
            assertRefused(listOf(repeated("1", body, 30, "ns.v | tojson")).filter { "b" in body || "," in body })
        }
        // What looks a key up must not walk through it.
        for (use in listOf("{'a': 1}[ns.v] is defined", "ns.v in {'a': 1}", "{'a': 1}.get(ns.v)", "ns[ns.v] is defined", "ns.v is defined")) {
            assertEquals(use, null, end(repeated("1", "[ns.v, ns.v]", 20_000, use)))
        }
        assertEquals("a slice of a slice", null, end(repeated("[1]", "ns.v[0:]", 40_000, "ns.v[0]")))
    }

    @Test
    fun valuesOfAnotherKindAreErrors() = assertRefused(
        listOf(
            "{{ 'a'.strip(1) }}", "{{ 'a'.strip([1]) }}", "{{ 'a'.split(1) }}", "{{ 'a'.split('') }}", "{{ 'a'.split() }}", "{{ 'a'.split('a', 1) }}",
            "{{ 'a'.replace('', 'b') }}", "{{ 'a'.replace('a') }}", "{{ 'a'.startswith(1) }}", "{{ 'a'[0](1) }}", "{{ messages[0](1) }}",
            "{{ messages | tojson(indent='x') }}", "{{ messages | tojson(indent=-1) }}", "{{ messages | tojson(separators=(',', ':')) }}",
            "{{ [range] | tojson }}", "{{ [nothing] | tojson }}", "{{ nothing | tojson }}", "{{ [namespace()] | tojson }}",
            "{% for a in messages %}{{ [loop] | tojson }}{% endfor %}", "{{ [1.5, 2] | join }}{{ [[1]] | join }}", "{{ messages }}",
            "{{ range() }}", "{{ range(1, 2, 3) }}", "{{ range('x') }}", "{{ messages() }}", "{{ nothing() }}", "{{ strftime_now(1) }}",
            "{{ strftime_now('%Q') }}", "{{ strftime_now('%') }}", "{{ raise_exception() }}", "{{ namespace(1) }}", "{{ none.x }}", "{{ nothing.x }}",
            "{{ 9223372036854775807 + 1 }}", "{{ 4294967296 * 4294967296 }}", "{{ -9223372036854775807 - 9 }}", "{{ 1 // 0 }}", "{{ 1 / 0 }}",
            "{{ 99999999999999999999 }}", "{{ ${"9".repeat(400)}.0 }}", "{{ 1 < 'a' }}", "{{ 'a' - 1 }}", "{{ 1 | length }}", "{{ 1[0:1] }}",
            "{{ 'a'['b':] }}", "{% for a in 7 %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}",
            "{% set x.y = 1 %}", "{% break %}", "{% continue %}", "{{ messages | map('x') }}", "{{ messages | join(attribute='role') }}",
            "{{ 'a' | trim(chars='a') }}", "{% macro m() %}{% endmacro %}", "{{ a is divisibleby(2) }}",
        ),
    )

    @Test
    fun damagedTemplatesAreErrors() = assertRefused(
        listOf(
            "{{", "{%", "{#", "{{ '", "{{ '\\", "{{ '\\'", "{{ '\\u0041' }}", "{{ \"a' }}", "{{ }}", "{% %}", "{% if %}{% endif %}", "{% set %}",
            "{% set = 1 %}", "{% for %}{% endfor %}", "{% for a in %}{% endfor %}", "{% endif %}", "{% else %}", "{{ 1 2 }}", "{{ a. }}", "{{ a[ }}",
            "{{ a[] }}", "{{ a( }}", "{{ a| }}", "{{ a is }}", "{{ ( }}", "{{ {1 2} }}", "{{ ? }}", "x".repeat(ChatTemplate.MAX_CHARACTERS + 1),
        ),
    )

    @Test
    fun whatAStrangerSaysIsCutShort() {
        val message = end(repeated("'xx'", "ns.v ~ ns.v", 20, "raise_exception(ns.v)"))!!.message!!
        assertTrue("${message.length} characters", message.length < 400)
    }

    @Test
    fun aLongTemplateWithinTheLimitsRenders() {
        val text = "\\n'\\\"\\\\".repeat(15_000)
        assertEquals(60_000, rendered("{{ \"$text\" }}").length)
        val terms = "{% if ${(0 until 100).joinToString(" or ") { "messages[0].role == 'r$it'" }} %}a{% else %}b{% endif %}"
        assertEquals("b".repeat(20), rendered(terms.repeat(20)))
        assertEquals(64, rendered("{% if true %}".repeat(31) + "x".repeat(64) + "{% endif %}".repeat(31)).length)
        val long = (0 until 400).map { message(if (it % 2 == 0) "user" else "assistant", "👍 <|im_end|> ".repeat(200)) }
        val turns = "{% for m in messages %}{% if '</t>' in m.content %}{{ m.content.split('</t>')[-1] | trim }}{% else %}" +
            "{{ m.role ~ m.content | trim ~ '</s>' }}{% endif %}{% endfor %}"
        assertTrue(ChatTemplate(turns, emptyMap()).render(long).length > 1_000_000)
    }
}
