import Foundation
import XCTest

@testable import BundleCore

/// Templates that try to end the app, or to keep it busy. Each has to end as any wrong template does: with a `TextError`, on
/// the stack of a background thread. A trap would end the tests.
final class HostileTemplateTests: XCTestCase {
    private func render(_ source: String, _ messages: [JSONValue] = []) throws -> String {
        try onSmallStack { try ChatTemplate(source).render(messages) }
    }

    private func assertRefused(_ source: String, _ words: String, file: StaticString = #filePath, line: UInt = #line) {
        XCTAssertThrowsError(try render(source), "\(source.prefix(200))", file: file, line: line) { error in
            XCTAssertTrue(error is TextError, "\(source.prefix(200)): \(error)", file: file, line: line)
            XCTAssertTrue(words.isEmpty || "\(error)".contains(words), "\(source.prefix(200)): \(error)", file: file, line: line)
        }
    }

    /// What is done again and again to a variable.
    private func repeated(_ change: String, from start: String, times: Int = 100) -> String {
        "{% set n = namespace(v=\(start)) %}{% for i in range(\(times)) %}{% set n.v = \(change) %}{% endfor %}{{ n.v | length }}"
    }

    func testChainsAreLimited() throws {
        let chains = [
            ("a", ".a", ""), ("a", "[0]", ""), ("a", "()", ""), ("a", "[1:]", ""), ("'a'", " | trim", ""), ("1", " is defined", ""),
            ("1", " is not defined", ""), ("1", " + 1", ""), ("1", " * 1", ""), ("'a'", " ~ 'a'", ""), ("1", " and 1", ""),
            ("1", " or 1", ""), ("", "not ", "1"), ("", "1 if 1 else ", "1"), ("", "(", "1"), ("", "[", "1"), ("", "{1: ", "1"),
            ("", "f(", "1"), ("", "a[", "1"), ("", "-(", "1"), ("1", " | default(1", ""),
        ]
        for (start, link, end) in chains {
            for count in [50, 1_000, 120_000 / link.utf8.count] {
                let chain = "{{ " + start + String(repeating: link, count: count) + end
                let brackets = link.unicodeScalars.compactMap { ["(": ")", "[": "]", "{": "}"][$0] }.first
                let isOpen = !link.unicodeScalars.contains { ")]}".unicodeScalars.contains($0) }
                assertRefused(chain + (isOpen ? String(repeating: brackets ?? "", count: count) : "") + " }}", "")
            }
        }
        // Comparisons and lists are not nested by being long.
        XCTAssertEqual(try render("{{ 1" + String(repeating: " < 2 != 1", count: 5_000) + " }}"), "True")
        XCTAssertEqual(try render("{{ [" + String(repeating: "1,", count: 20_000) + "] | length }}"), "20000")
        XCTAssertEqual(try render("{{ ''" + String(repeating: " 'a'", count: 20_000) + " | length }}"), "20000")
        XCTAssertEqual(try render("{{ 1" + String(repeating: " + 1", count: 46) + " }}"), "47")
    }

    func testBlocksAreLimited() throws {
        let blocks = [
            ("{% if 1 %}", "{% endif %}"), ("{% for x in [1] %}", "{% endfor %}"), ("{% set x %}", "{% endset %}"),
            ("{% if 0 %}{% else %}", "{% endif %}"),
        ]
        for (open, close) in blocks {
            for count in [25, 3_000] {
                assertRefused(String(repeating: open, count: count) + String(repeating: close, count: count), "nests more than")
            }
        }
        XCTAssertEqual(try render("{% if 0 %}" + String(repeating: "{% elif 0 %}", count: 5_000) + "{% else %}a{% endif %}"), "a")
    }

    func testTheDeepestThatIsAcceptedFitsTheStack() throws {
        let blocks = [("{% if 1 %}", "{% endif %}"), ("{% for x in [1] if 1 %}", "{% endfor %}"), ("{% set x %}", "{% endset %}")]
        let links = [
            ("1", " + 1", ""), ("'a'", " ~ 'a'", ""), ("1", " and 1", ""), ("", "not ", "1"), ("'a'", " | trim", ""), ("1", " is defined", ""),
            ("'a'", "[0]", ""), ("'a'", "[0:]", ""), ("'a'", ".strip()", ""), ("a", ".a", ""), ("1", " | default(1)", ""),
        ]
        for (open, close) in blocks {
            func nested(_ text: String) -> String {
                String(repeating: open, count: 23) + text + String(repeating: close, count: 23)
            }
            for (start, link, end) in links {
                let count = link.hasSuffix("()") ? 23 : 46
                do {
                    _ = try render(nested("{{ \(start)\(String(repeating: link, count: count))\(end) }}"))
                } catch let error as TextError where link == ".a" {
                    XCTAssertTrue(error.description.contains("not defined"), "\(error)")
                }
            }
            for (before, after) in [("[", "]"), ("('a' ~ ", ")"), ("not (", ")"), ("'a' if 0 else ", ""), ("[1].count(", ")"), ("{1: ", "}")] {
                let chain = String(repeating: before, count: 18) + "1" + String(repeating: after, count: 18)
                do {
                    _ = try render(nested("{{ (\(chain)) is defined }}"))
                } catch let error as TextError where before.contains("count") {
                    XCTAssertTrue(error.description.contains("method"), "\(error)")
                }
            }
        }
    }

    func testGrowingTextsAreMeasured() {
        let growth = [
            ("n.v + n.v", "'a'"), ("n.v ~ n.v", "'a'"), ("n.v * 2", "'a'"), ("2 * n.v", "'a'"), ("[n.v, n.v] | join('x')", "'a'"),
            ("['', ''] | join(n.v) ~ n.v", "'a'"), ("n.v.replace('a', 'aa')", "'a'"), ("n.v | replace('a', 'aaa')", "'a'"),
            ("n.v.split('a') | join('aaa')", "'a'"), ("[n.v, n.v] | tojson", "'a'"), ("{n.v: n.v} | tojson(indent=7)", "'a'"),
            ("(n.v ~ '\u{390}') | upper ~ n.v", "'a'"), ("n.v + n.v", "[1]"), ("((n.v | join) ~ (n.v | join)) | list", "'a'"),
            ("n.v ~ n.v | trim", "'a'"),
            ("n.v ~ n.v[0:]", "'a'"),
        ]
        for (change, start) in growth { assertRefused(repeated(change, from: start), "mak") }
        let captured =
            "{% set a = 'a' %}{% for i in [1] %}"
            + String(repeating: "{% set a %}{{ a }}{{ a }}{% endset %}", count: 40) + "{% endfor %}"
        assertRefused(captured, "4194304")
        assertRefused("{% set a = 'a' * 4000000 %}{% for i in range(10) %}{{ a }}{% endfor %}", "writes over")
        // In captures that are in each other the text is counted once more each time.
        let nested = String(repeating: "{% set x %}", count: 20) + String(repeating: "{{ 'a' * 1000000 }}{% endset %}", count: 20)
        assertRefused(nested, "writes over")
        assertRefused("{{ 'a' * 4194305 }}", "4194304")
        assertRefused("{{ strftime_now('%B' * 1000000) }}", "makes a value")
        for count in ["9223372036854775807", "4611686018427387905", "-9223372036854775807 * 'ab' * 1"] {
            do { _ = try render("{{ 'ab' * \(count) }}") } catch { XCTAssertTrue(error is TextError) }
        }
        assertRefused("{{ 'ab' * 9223372036854775807 }}", "makes a value")
    }

    func testManyValuesAreMeasuredTogether() {
        assertRefused("{% set n = namespace(l=[]) %}{% for i in range(50000) %}{% set n.l = n.l + ['a' * 1000000] %}{% endfor %}", "work")
        assertRefused("{% for i in range(50000) %}{% set a = 'a' * 4000000 %}{% endfor %}", "work")
        assertRefused("{% set a = ('a' * 100000) %}{% for i in range(5000) %}{% set b = a | list %}{% endfor %}", "makes a value")
        assertRefused("{% set a = ('a' * 60000) %}{% for i in range(5000) %}{% set b = a | list %}{% endfor %}", "work")
    }

    func testNestedValuesAreLimited() {
        for change in ["[n.v]", "{'a': n.v}", "[1, n.v, 2]", "[n.v, n.v]", "{'a': n.v, 'b': n.v}", "{'a': n.v}.items()", "[[n.v]] | list"] {
            assertRefused(repeated(change, from: "[]", times: 50_000), "nests values more than")
        }
        // Each level holds the one below twice: 2 to the power of 40 values in a small memory.
        let doubled = "{% set n = namespace(v=[1]) %}{% for i in range(40) %}{% set n.v = [n.v, n.v] %}{% endfor %}"
        assertRefused(doubled + "{{ n.v == n.v }}", "work")
        assertRefused(doubled + "{{ n.v in [n.v] }}", "work")
        assertRefused(doubled + "{{ n.v | tojson }}", "work")
        assertRefused(doubled + "{{ n.v | tojson(indent=1000000) }}", "work")
        for hidden in ["[n]", "{'a': n}", "namespace(a=n)"] { assertRefused("{% set n = namespace(a=1) %}{% set m = \(hidden) %}", "namespace") }
        assertRefused("{% set n = namespace(a=1) %}{% set n.a = n %}", "namespace")
        assertRefused(repeated("namespace(v=n)", from: "1"), "namespace")
    }

    func testWorkIsCounted() {
        let long = "{% set a = 'a' * 4000000 %}{% set b = 'a' * 3999999 ~ 'b' %}"
        for part in [
            "{{ a | length }}", "{{ a == b }}", "{{ a < b }}", "{{ 'ab' in a }}", "{{ a[-1] }}", "{{ a.startswith(b) }}",
            "{{ a.strip('b') | length }}", "{{ a | upper | length }}",
            "{{ a.split('b') | length }}", "{{ a[1:] | length }}",
        ] {
            assertRefused("\(long){% for i in range(50000) %}\(part){% endfor %}", "")
        }
        // The naive search would take 400,000 times 200,000 comparisons, all within the limit of work.
        XCTAssertEqual(try render("{% set a = 'a' * 400000 %}{{ ('a' * 200000 ~ 'b') in a }}"), "False")
        assertRefused("{% for i in range(50000) %}{% for j in range(50000) %}{% endfor %}{% endfor %}", "steps")
        assertRefused("{% for i in range(50000) %}{% for j in [] %}{% else %}{% endfor %}{% endfor %}{% for i in [1] %}{% endfor %}", "steps")
        let heavy = String(repeating: "{% if 1 %}{% endif %}", count: 5_000)
        assertRefused("{% for i in range(50000) %}\(heavy){% endfor %}", "work")
        assertRefused("{% for i in 'a' * 60000 %}{% endfor %}", "steps")
        assertRefused("{% for i in 'a' * 4000000 %}{% endfor %}", "makes a value")
        assertRefused("{% for i in range(40000) if range(40000) %}{% endfor %}", "work")
    }

    func testNumbersDoNotOverflow() throws {
        let least = "(-9223372036854775807 - 1)"
        for source in [
            "\(least) - 1", "9223372036854775807 + 1", "-\(least)", "\(least) // -1", "\(least) % -1", "9223372036854775807 * 2", "\(least) * -1",
            "range(\(least), 9223372036854775807)", "range(9223372036854775807)", "range(50001)", "range(\(least), 50000)", "1 // 0", "1 % 0",
            "1.0 / 0", "(4611686018427387904 * 4.0) | int", "'1e300' | int", "(9223372036854775807 * 1.0) | int", "('9' * 300) | int",
            "range(0, 10, 1)", "range(1.0)", "range()", "range(n=1)",
        ] {
            assertRefused("{{ \(source) }}", "the chat template")
        }
        XCTAssertEqual(try render("{{ range(9223372036854775807, \(least)) | length }}"), "0")
        XCTAssertEqual(try render("{{ 'abc'[9223372036854775807] }}{{ 'abc'[\(least)] }}{{ [1][\(least)] }}"), "")
        XCTAssertEqual(try render("{{ 'abc'[\(least):9223372036854775807] }}{{ 'abc'[9223372036854775807:\(least)] }}"), "abc")
        XCTAssertEqual(try render("{{ \(least) }}"), "-9223372036854775808")
        XCTAssertEqual(try render("{{ '' * 9223372036854775807 }}{{ \(least) * 'a' }}{{ ('9' * 4000 ~ 'a') | int }}"), "0")
        let infinite = "{% set n = namespace(v=2.5) %}{% for i in range(2000) %}{% set n.v = n.v * n.v %}{% endfor %}"
        assertRefused(infinite + "{{ n.v | int }}", "64 bits")
        XCTAssertEqual(try render(infinite + "{{ (n.v - n.v) | int }}{{ n.v > 1 }}{{ (n.v - n.v) // 1 }}"), "0TrueNaN")
        assertRefused("{{ " + String(repeating: "9", count: 400) + " }}", "64 bits")
        assertRefused("{{ " + String(repeating: "9", count: 400) + ".0 }}", "double")
    }

    func testWrongArgumentsAreRefused() {
        for source in [
            "'a'.strip(1)", "'a'.lstrip(1)", "'a'.rstrip([])", "'a' | trim(1)", "'a'.strip('a', 'b')", "'a'.split(1)", "'a'.split('')",
            "'a b'.split(none, 1)", "'a'.replace(1, 'b')", "'a'.replace('', 'b')", "'a'.replace('a')", "'a'.startswith(1)", "'a'.endswith()",
            "'a' | upper(1)", "'a' | int(0, 16)", "[1] | join(attribute='a')", "1 | tojson(ensure_ascii=true)", "1 | tojson(indent='a')",
            "1 | tojson(separators=[1, 2])", "1 | tojson(separators=',')", "1 | tojson(other=1)", "{}.get(1)", "{}.get()", "{}.pop('a')",
            "1 | length", "1 | items", "1 | list", "1[0]", "nothing[0]", "nothing.a", "1 in 1", "1 in 'a'", "strftime_now(1)",
            "strftime_now('%c')", "namespace(1)", "[1](0)", "'a'.upper.lower()", "'a'['upper']()", "raise_exception(1)", "{[1]: 1}",
        ] {
            assertRefused("{{ \(source) }}", "the chat template")
        }
        // What grows elsewhere is not there.
        for source in [
            "'a'.center(100000000)", "'a' | center(100000000)", "'a' | indent(100000000)", "lipsum(n=100000000)", "'a' | wordwrap(1)",
            "'a'.ljust(100000000)", "'a'.zfill(100000000)", "'%99999999s' % 'a'", "'a'.format(1)", "'{:>99999999}'.format('a')", "10 ** 1000000",
            "'a'.join(['b'])", "'a'.expandtabs(100000000)", "'a' | slice(1000000)", "[1] | batch(1000000)", "cycler('a')", "dict(a=1)", "self",
            "[1] * 1000000000",
        ] where source != "self" {
            assertRefused("{{ \(source) }}", "the chat template")
        }
    }

    func testTheIndentOfJSONIsMeasured() throws {
        for indent in ["9223372036854775807", "4611686018427387904", "5000000"] {
            assertRefused("{{ [[1]] | tojson(indent=\(indent)) }}", "makes a value")
        }
        XCTAssertEqual(try render("{{ [1] | tojson(indent=-9223372036854775807) }}"), "[\n1\n]")
        XCTAssertEqual(try render("{{ [] | tojson(indent=9223372036854775807) }}"), "[]")
        assertRefused("{{ ('\\u0001' * 1000000) | tojson }}", "makes a value")
    }

    func testDeepMessagesAreRefused() throws {
        var value = JSONValue.string("a")
        for _ in 0..<60 { value = .array([value]) }
        let message = JSONValue.object(JSONObject([("content", value)]))
        XCTAssertEqual(try render("{{ messages[0].content | length }}", [message]), "1")
        for _ in 0..<5 { value = .object(JSONObject([("a", value)])) }
        XCTAssertThrowsError(try render("", [.object(JSONObject([("content", value)]))])) { XCTAssertTrue($0 is TextError) }
    }

    func testAMonthThatIsNone() {
        let template = try? ChatTemplate("{{ strftime_now('%B') }}")
        XCTAssertThrowsError(try template?.render([], today: TemplateDate(year: 2024, month: 13, day: 1))) { XCTAssertTrue($0 is TextError) }
    }

    func testUnfinishedTemplatesAreRefused() throws {
        let source = try Fixtures.text("templates/tools.jinja")
        let scalars = Array(source.unicodeScalars)
        var refused = 0
        for end in stride(from: 1, to: scalars.count, by: 7) {
            do {
                _ = try render(String(String.UnicodeScalarView(scalars[..<end])))
            } catch {
                XCTAssertTrue(error is TextError)
                refused += 1
            }
        }
        XCTAssertGreaterThan(refused, 10)
    }

    /// Expressions put together by chance: wrong ones are refused, right ones have a value, none traps.
    func testRandomTemplates() throws {
        var random = SeededGenerator(seed: 5)
        let rounds = Int(ProcessInfo.processInfo.environment["TEMPLATE_ROUNDS"] ?? "") ?? 2_000
        var rendered = 0
        for _ in 0..<rounds {
            let source = "{% set n = namespace(a=1, b='x') %}{% for m in messages %}{{ \(expression(4, &random)) }}{% endfor %}"
            do {
                _ = try render(source, [try JSONValue(parsing: #"{"role": "user", "content": "é\u0000<|x|>", "n": [1, {"a": -1.5e300}]}"#)])
                rendered += 1
            } catch {
                XCTAssertTrue(error is TextError, "\(source): \(error)")
            }
        }
        XCTAssertGreaterThan(rendered, rounds / 50)
    }

    private func expression(_ depth: Int, _ random: inout SeededGenerator) -> String {
        let leaves = [
            "1", "0", "-1", "9223372036854775807", "1.5", "''", "'aé😀'", "' a,b '", "none", "true", "m", "m.content", "m['n']", "messages", "n.a",
            "n.b",
            "nothing", "[]", "{}", "loop.index", "tools", "'1e300'", "'-5 '", "loop", "n",
        ]
        func pick(_ choices: [String]) -> String { choices.randomElement(using: &random) ?? "" }
        guard depth > 0, Int.random(in: 0..<6, using: &random) > 0 else { return pick(leaves) }
        func part() -> String { expression(depth - 1, &random) }
        switch Int.random(in: 0..<9, using: &random) {
        case 0: return "(\(part()) \(pick(["+", "-", "*", "/", "//", "%", "~", "and", "or", "==", "<", ">=", "in", "not in"])) \(part()))"
        case 1: return "(\(part()) | \(pick(TemplateFilters.names.sorted())))"
        case 2: return "(\(part()) | \(pick(TemplateFilters.names.sorted()))(\(part()), \(part())))"
        case 3: return "\(part())[\(part())]"
        case 4: return "\(part())[\(part()):\(part())]"
        case 5: return "(\(part()) is \(pick(TemplateFilters.tests.sorted())))"
        case 6:
            let method = pick(["strip", "lstrip", "rstrip", "split", "replace", "startswith", "endswith", "upper", "items", "keys", "values", "get"])
            return "\(part()).\(method)(\(pick(["", part(), "\(part()), \(part())"])))"
        case 7: return "\(pick(["range", "strftime_now", "namespace"]))(\(part()))"
        default:
            return pick([
                "[\(part()), \(part())]", "{\(part()): \(part())}", "(\(part()) if \(part()) else \(part()))", "not \(part())", "-\(part())",
            ])
        }
    }
}
