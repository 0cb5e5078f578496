package org.llamaedge.core

/** The template is not the part of Jinja that chat templates use, or it fails. */
class TemplateException(message: String) : Exception(shown(message))

/** A tree no deeper than [MAX_DEPTH], so that a walk over it needs no more of the stack than that. */
internal sealed class Expr(val parts: List<Expr?> = emptyList()) {
    private val depth: Int = 1 + (parts.maxOfOrNull { it?.depth ?: 0 } ?: 0)

    init {
        if (depth > MAX_DEPTH) throw TemplateException("an expression of more than $MAX_DEPTH operations, each of the last one's result")
    }

    private companion object {
        const val MAX_DEPTH = 128
    }
}

internal open class Literal(val value: Any?) : Expr()

/** A name after a dot, which a template cannot write. */
internal class MemberName(name: String) : Literal(name)

internal class ListExpr(val items: List<Expr>) : Expr(items)

internal class DictExpr(val items: List<Pair<Expr, Expr>>) : Expr(items.flatMap { it.toList() })

internal class Name(val name: String) : Expr()

internal class Attribute(val target: Expr, val key: Expr) : Expr(listOf(target, key))

internal class Slice(val target: Expr, val from: Expr?, val to: Expr?) : Expr(listOf(target, from, to))

internal class CallExpr(val target: Expr, val arguments: List<Expr>, val named: Map<String, Expr>) : Expr(arguments + named.values + target)

internal class Filter(val target: Expr, val name: String, val arguments: List<Expr>, val named: Map<String, Expr>) :
    Expr(arguments + named.values + target)

internal class Test(val target: Expr, val name: String) : Expr(listOf(target))

internal class Unary(val operator: String, val operand: Expr) : Expr(listOf(operand))

internal class Binary(val operator: String, val left: Expr, val right: Expr) : Expr(listOf(left, right))

internal class Conditional(val condition: Expr, val then: Expr, val otherwise: Expr?) : Expr(listOf(condition, then, otherwise))

internal sealed interface Node

internal class Text(val text: String) : Node

internal class Output(val expression: Expr) : Node

internal class SetNode(val name: String, val attribute: String?, val value: Expr) : Node

internal class SetBlock(val name: String, val body: List<Node>) : Node

internal class If(val branches: List<Pair<Expr, List<Node>>>, val otherwise: List<Node>) : Node

internal class For(
    val names: List<String>, val items: Expr, val condition: Expr?, val body: List<Node>, val otherwise: List<Node>,
) : Node

/** Statements in a scope of their own. */
internal class Scope(val body: List<Node>) : Node

internal class Jump(val isBreak: Boolean) : Node

/** Everything that a template can write of its own: its text and its string constants. */
internal fun literals(nodes: List<Node>): Set<String> {
    val found = LinkedHashSet<String>()
    fun add(expression: Expr?) {
        if (expression is Literal && expression !is MemberName && expression.value is String) found += expression.value
        expression?.parts?.forEach { add(it) }
    }
    fun add(body: List<Node>) {
        for (node in body) {
            when (node) {
                is Text -> found += node.text
                is Output -> add(node.expression)
                is SetNode -> add(node.value)
                is SetBlock -> add(node.body)
                is Scope -> add(node.body)
                is If -> node.branches.forEach { (condition, then) -> add(condition); add(then) }.also { add(node.otherwise) }
                is For -> listOf(node.items, node.condition).forEach { add(it) }.also { add(node.body) }.also { add(node.otherwise) }
                is Jump -> Unit
            }
        }
    }
    add(nodes)
    return found
}

internal class Token(val kind: Kind, val text: String) {
    enum class Kind { TEXT, OUTPUT, STATEMENT }
}

/**
 * Cuts a template into text, `{{ }}` and `{% %}`; `trim_blocks` and `lstrip_blocks` are on, as in transformers. Jinja has one
 * kind of line end, and drops one at the end.
 */
internal fun tokenize(template: String): List<Token> {
    val source = template.replace("\r\n", "\n").replace('\r', '\n').removeSuffix("\n")
    val out = ArrayList<Token>()
    var place = 0
    var stripNext = false
    while (place < source.length) {
        val open = OPENING.find(source, place)
        var text = source.substring(place, open?.range?.first ?: source.length)
        if (stripNext) text = text.trimStart()
        if (open == null) {
            out += Token(Token.Kind.TEXT, text)
            break
        }
        val kind = open.groupValues[1]
        when {
            open.groupValues[2] == "-" -> text = text.trimEnd()
            open.groupValues[2] != "+" && kind != "{{" -> text = withoutIndent(text, source, open.range.first)
        }
        if (text.isNotEmpty()) out += Token(Token.Kind.TEXT, text)
        val close = closing(source, kind, open.range.last + 1)
        val body = source.substring(open.range.last + 1, close.first)
        stripNext = body.endsWith("-")
        place = close.second
        if (kind != "{{" && !stripNext && !body.endsWith("+") && source.startsWith("\n", place)) place++
        val content = body.removeSuffix("-").removeSuffix("+").trim()
        if (kind == "{{") out += Token(Token.Kind.OUTPUT, content)
        if (kind == "{%") out += Token(Token.Kind.STATEMENT, content)
    }
    return out
}

private val OPENING = Regex("(\\{\\{|\\{%|\\{#)([-+]?)")

/** White space before a block that stands first on its line goes. */
private fun withoutIndent(text: String, source: String, place: Int): String {
    val line = text.trimEnd(' ', '\t')
    val startsLine = line.endsWith("\n") || (line.isEmpty() && (place == text.length || source[place - text.length - 1] == '\n'))
    return if (startsLine) line else text
}

/** Where the body ends and where the text goes on; quotes may hide the closing sign. */
private fun closing(source: String, kind: String, start: Int): Pair<Int, Int> {
    val sign = if (kind == "{{") "}}" else if (kind == "{%") "%}" else "#}"
    var place = start
    var quote: Char? = null
    var braces = 0
    while (place < source.length) {
        val c = source[place]
        when {
            quote != null -> if (c == '\\') place++ else if (c == quote) quote = null
            kind != "{#" && (c == '"' || c == '\'') -> quote = c
            braces == 0 && source.startsWith(sign, place) -> return place to place + 2
            kind == "{{" && c == '{' -> braces++
            kind == "{{" && c == '}' -> braces--
        }
        place++
    }
    throw TemplateException("$kind is not closed")
}

/** One expression; the grammar is Jinja's without what chat templates never use. */
internal class ExpressionParser(private val source: String) {
    private val words: List<String>
    private var place = 0
    private var depth = 0

    init {
        val found = ArrayList<String>()
        var at = 0
        while (at < source.length) {
            if (source[at].isWhitespace()) {
                at++
                continue
            }
            val end = if (source[at] == '"' || source[at] == '\'') endOfText(at) else WORD.matchAt(source, at)?.let { it.range.last + 1 }
            val word = source.substring(at, end ?: throw TemplateException("${source[at]} is not understood in: $source"))
            if (word[0].isDigit() && word.length > MAX_DIGITS) throw TemplateException("a number of ${word.length} digits")
            found += word
            at = end
        }
        words = found
    }

    /** By hand: for a pattern of repeated groups Java's matcher recurses once for each character. */
    private fun endOfText(start: Int): Int? {
        var at = start + 1
        while (at < source.length) {
            when (source[at]) {
                source[start] -> return at + 1
                '\\' -> at += 2
                else -> at++
            }
        }
        return null
    }

    val atEnd: Boolean get() = place >= words.size

    fun fail(what: String): Nothing = throw TemplateException("$what in: $source")

    fun peek(): String? = words.getOrNull(place)

    fun next(): String = words.getOrNull(place++) ?: fail("the end comes too early")

    fun take(word: String): Boolean = (peek() == word).also { if (it) place++ }

    fun expect(word: String) {
        if (!take(word)) fail("'$word' is missing")
    }

    fun name(): String = next().also { if (!NAME.matches(it)) fail("$it is no name") }

    fun finish() {
        if (!atEnd) fail("${peek()} is not expected")
    }

    fun expression(withConditional: Boolean = true): Expr = nested {
        val value = or()
        if (withConditional && take("if")) {
            val condition = or()
            Conditional(condition, value, if (take("else")) expression() else null)
        } else {
            value
        }
    }

    /** Wherever the parser calls itself. */
    private inline fun nested(parse: () -> Expr): Expr {
        if (++depth > MAX_DEPTH) fail("nested more than $MAX_DEPTH deep")
        return parse().also { depth-- }
    }

    private fun or(): Expr = left(::and, "or")

    private fun and(): Expr = left(::not, "and")

    private fun not(): Expr = if (take("not")) Unary("not", nested { not() }) else comparison()

    private fun left(operand: () -> Expr, vararg operators: String): Expr {
        var value = operand()
        while (peek() in operators) value = Binary(next(), value, operand())
        return value
    }

    private fun comparison(): Expr {
        var value = sum()
        while (true) {
            value = when {
                peek() in COMPARISONS -> Binary(next(), value, sum())
                take("in") -> Binary("in", value, sum())
                peek() == "not" && words.getOrNull(place + 1) == "in" -> {
                    place += 2
                    Unary("not", Binary("in", value, sum()))
                }
                else -> return value
            }
        }
    }

    private fun sum(): Expr = left(::concat, "+", "-")

    private fun concat(): Expr = left(::product, "~")

    private fun product(): Expr = left(::unary, "*", "/", "//", "%")

    private fun unary(): Expr = if (take("-")) Unary("-", nested { unary() }) else postfix(primary())

    private fun postfix(start: Expr): Expr {
        var value = start
        while (true) {
            value = when {
                take(".") -> Attribute(value, MemberName(next()))
                take("[") -> subscript(value)
                take("(") -> arguments().let { (list, named) -> CallExpr(value, list, named) }
                take("|") -> {
                    val name = name()
                    val (list, named) = if (take("(")) arguments() else emptyList<Expr>() to emptyMap()
                    Filter(value, name, list, named)
                }
                take("is") -> if (take("not")) Unary("not", Test(value, name())) else Test(value, name())
                else -> return value
            }
        }
    }

    private fun subscript(target: Expr): Expr {
        val from = if (peek() == ":") null else expression()
        if (take("]")) return Attribute(target, from ?: fail("an index is missing"))
        expect(":")
        val to = if (peek() == "]") null else expression()
        expect("]")
        return Slice(target, from, to)
    }

    private fun arguments(): Pair<List<Expr>, Map<String, Expr>> {
        val list = ArrayList<Expr>()
        val named = LinkedHashMap<String, Expr>()
        while (!take(")")) {
            if (words.getOrNull(place + 1) == "=") {
                val name = name()
                place++
                named[name] = expression()
            } else {
                list += expression()
            }
            if (!take(",") && peek() != ")") fail("')' is missing")
        }
        return list to named
    }

    private fun primary(): Expr {
        val word = next()
        return when {
            word == "(" -> parenthesis()
            word == "[" -> ListExpr(items("]") { expression() })
            word == "{" -> DictExpr(items("}") { expression().also { expect(":") } to expression() })
            word[0] == '"' || word[0] == '\'' -> Literal(unquoted(word))
            word[0].isDigit() -> Literal(if ('.' in word) word.toDouble() else word.toLongOrNull() ?: fail("$word is too large"))
            word in CONSTANTS -> Literal(CONSTANTS[word])
            NAME.matches(word) && word !in KEYWORDS -> Name(word)
            else -> fail("$word is not expected")
        }
    }

    /** A value in brackets, or a tuple. */
    private fun parenthesis(): Expr {
        if (take(")")) return ListExpr(emptyList())
        val first = expression()
        if (take(")")) return first
        expect(",")
        return ListExpr(listOf(first) + items(")") { expression() })
    }

    private fun <T> items(close: String, item: () -> T): List<T> {
        val out = ArrayList<T>()
        while (!take(close)) {
            out += item()
            if (!take(",") && peek() != close) fail("'$close' is missing")
        }
        return out
    }

    private fun unquoted(word: String): String {
        val out = StringBuilder()
        var at = 1
        while (at < word.length - 1) {
            val c = word[at++]
            if (c != '\\') {
                out.append(c)
                continue
            }
            when (val escaped = word[at++]) {
                'n' -> out.append('\n')
                't' -> out.append('\t')
                'r' -> out.append('\r')
                '\\', '\'', '"' -> out.append(escaped)
                else -> fail("the escape \\$escaped is not supported")
            }
        }
        return out.toString()
    }

    private companion object {
        const val MAX_DEPTH = 64
        const val MAX_DIGITS = 30
        val WORD = Regex("[0-9]+(?:\\.[0-9]+)?|[A-Za-z_][A-Za-z0-9_]*|==|!=|<=|>=|//|[-+*/%~<>=(){}\\[\\],:.|]")
        val NAME = Regex("[A-Za-z_][A-Za-z0-9_]*")
        val COMPARISONS = setOf("==", "!=", "<", ">", "<=", ">=")
        val KEYWORDS = setOf("and", "or", "not", "in", "is", "if", "else")
        val CONSTANTS = mapOf("true" to true, "True" to true, "false" to false, "False" to false, "none" to null, "None" to null)
    }
}

/** The tree of a template. */
internal class TemplateParser(source: String) {
    private val tokens = tokenize(source)
    private var place = 0
    private var depth = 0

    fun parse(): List<Node> {
        val nodes = body()
        if (place < tokens.size) throw TemplateException("{% ${tokens[place].text} %} closes nothing")
        return nodes
    }

    /** Up to a statement that begins with one of [ends], which is left for the caller. */
    private fun body(vararg ends: String): List<Node> {
        if (++depth > 32) throw TemplateException("blocks are nested more than 32 deep")
        val out = ArrayList<Node>()
        while (place < tokens.size) {
            val token = tokens[place]
            if (token.kind == Token.Kind.STATEMENT && keyword(token) in CLOSING) break
            place++
            when (token.kind) {
                Token.Kind.TEXT -> out += Text(token.text)
                Token.Kind.OUTPUT -> out += Output(ExpressionParser(token.text).run { expression().also { finish() } })
                Token.Kind.STATEMENT -> out += statement(token)
            }
        }
        if (ends.isNotEmpty() && (place >= tokens.size || keyword(tokens[place]) !in ends)) {
            throw TemplateException("{% ${ends.last()} %} is missing")
        }
        depth--
        return out
    }

    private fun keyword(token: Token) = token.text.takeWhile { it.isLetter() }

    private fun rest(token: Token) = ExpressionParser(token.text.drop(keyword(token).length))

    private fun statement(token: Token): Node = when (keyword(token)) {
        "if" -> ifNode(token)
        "for" -> forNode(token)
        "set" -> setNode(token)
        // Marks what the assistant says, for training; it changes no text.
        "generation" -> rest(token).finish().let { Scope(body("endgeneration").also { place++ }) }
        "break" -> Jump(isBreak = true)
        "continue" -> Jump(isBreak = false)
        else -> throw TemplateException("{% ${token.text} %} is not supported")
    }

    private fun ifNode(first: Token): Node {
        val branches = ArrayList<Pair<Expr, List<Node>>>()
        var token = first
        while (true) {
            val condition = rest(token).run { expression().also { finish() } }
            branches += condition to body("elif", "else", "endif")
            token = tokens[place++]
            if (keyword(token) != "elif") break
        }
        val otherwise = if (keyword(token) == "else") body("endif").also { place++ } else emptyList()
        return If(branches, otherwise)
    }

    private fun forNode(token: Token): Node {
        val parser = rest(token)
        val names = arrayListOf(parser.name())
        while (parser.take(",")) names += parser.name()
        parser.expect("in")
        val items = parser.expression(withConditional = false)
        val condition = if (parser.take("if")) parser.expression() else null
        parser.finish()
        val body = body("else", "endfor")
        val otherwise = if (keyword(tokens[place++]) == "else") body("endfor").also { place++ } else emptyList()
        return For(names, items, condition, body, otherwise)
    }

    private fun setNode(token: Token): Node {
        val parser = rest(token)
        val name = parser.name()
        val attribute = if (parser.take(".")) parser.name() else null
        if (parser.take("=")) return SetNode(name, attribute, parser.expression().also { parser.finish() })
        parser.finish()
        if (attribute != null) throw TemplateException("{% ${token.text} %} is not supported")
        return SetBlock(name, body("endset").also { place++ })
    }

    private companion object {
        val CLOSING = setOf("elif", "else", "endif", "endfor", "endset", "endgeneration")
    }
}
