package org.llamaedge.core

internal object Undefined

private class Namespace(val values: MutableMap<String, Any?>)

private class Function(val name: String)

private class Jumped(val isBreak: Boolean) : Exception()

/** `loop`: one for all turns, as in Jinja. */
private class Loop(private val items: List<Any?>) {
    var index = 0

    fun attribute(name: Any?): Any? = when (name) {
        "index" -> index + 1L
        "index0" -> index.toLong()
        "first" -> index == 0
        "last" -> index == items.size - 1
        "length" -> items.size.toLong()
        "revindex" -> items.size.toLong() - index
        "revindex0" -> items.size - index - 1L
        "previtem" -> items.getOrElse(index - 1) { Undefined }
        "nextitem" -> items.getOrElse(index + 1) { Undefined }
        else -> Undefined
    }
}

/** What a function, method or filter is called with. */
internal class Arguments(private val what: String, val list: List<Any?>, val named: Map<String, Any?>) {
    /** Refuses more of them than are known: they would change the result. */
    fun atMost(count: Int, vararg names: String): Arguments {
        val unknown = named.keys.firstOrNull { it !in names }
        if (list.size > count || unknown != null) {
            throw TemplateException("$what with ${unknown ?: "${list.size} arguments"} is not supported")
        }
        return this
    }

    fun exactly(count: Int): Arguments {
        if (list.size < count) throw TemplateException("$what needs $count arguments; it has ${list.size}")
        return atMost(count)
    }

    fun text(index: Int): String = list[index] as? String ?: throw TemplateException("$what needs a text")

    fun textOrNull(): String? = if (list.isEmpty() || list[0] == null) null else text(0)
}

/** One rendering: a walk over the tree. */
internal class TemplateRun(globals: Map<String, Any?>, private val today: Day) {
    private val scopes = arrayListOf(HashMap(globals))
    private val out = StringBuilder()
    private val budget = TemplateBudget()
    private val values = TemplateValues(budget)
    private val strings = TemplateStrings(budget)

    fun render(nodes: List<Node>): String {
        try {
            run(nodes)
        } catch (_: Jumped) {
            throw TemplateException("break or continue outside of a loop")
        }
        return out.toString()
    }

    private fun fail(what: String): Nothing = throw TemplateException(what)

    private fun run(nodes: List<Node>) {
        for (node in nodes) {
            budget.charge(1)
            when (node) {
                is Text -> write(node.text)
                is Output -> write(values.text(eval(node.expression)))
                is If -> run(node.branches.firstOrNull { values.truth(eval(it.first)) }?.second ?: node.otherwise)
                is For -> loop(node)
                is Scope -> scoped(node)
                is SetNode -> set(node)
                is SetBlock -> scopes.last()[node.name] = captured(node.body)
                is Jump -> throw Jumped(node.isBreak)
            }
        }
    }

    private fun write(text: String) {
        val length = out.length.toLong() + text.length
        if (length > TemplateBudget.MAX_TEXT) fail("it writes $length characters; at most ${TemplateBudget.MAX_TEXT} are accepted")
        budget.charge(text.length.toLong())
        out.append(text)
    }

    private fun captured(body: List<Node>): String {
        val start = out.length
        run(body)
        budget.text(out.length.toLong() - start)
        return out.substring(start).also { out.setLength(start) }
    }

    private fun set(node: SetNode) {
        val value = eval(node.value)
        if (node.attribute == null) {
            scopes.last()[node.name] = value
        } else {
            val target = lookup(node.name) as? Namespace ?: fail("${node.name} is no namespace")
            target.values[node.attribute] = value
        }
    }

    private fun scoped(node: Scope) {
        scopes += HashMap<String, Any?>()
        try {
            run(node.body)
        } finally {
            scopes.removeAt(scopes.size - 1)
        }
    }

    private fun loop(node: For) {
        var items = values.iterable(eval(node.items))
        scopes += HashMap<String, Any?>()
        try {
            if (node.condition != null) {
                budget.list(items.size.toLong())
                items = items.filter { item ->
                    budget.step()
                    bind(node.names, item)
                    values.truth(eval(node.condition))
                }
            }
            if (items.isEmpty()) run(node.otherwise)
            val loop = Loop(items)
            for ((index, item) in items.withIndex()) {
                budget.step()
                loop.index = index
                scopes[scopes.size - 1] = hashMapOf("loop" to loop)
                bind(node.names, item)
                try {
                    run(node.body)
                } catch (jump: Jumped) {
                    if (jump.isBreak) break
                }
            }
        } finally {
            scopes.removeAt(scopes.size - 1)
        }
    }

    private fun bind(names: List<String>, item: Any?) {
        if (names.size == 1) {
            scopes.last()[names[0]] = item
            return
        }
        val parts = item as? List<*> ?: fail("${names.size} names for one value")
        if (parts.size != names.size) fail("${names.size} names for ${parts.size} values")
        names.forEachIndexed { index, name -> scopes.last()[name] = parts[index] }
    }

    private fun lookup(name: String): Any? {
        for (scope in scopes.asReversed()) if (name in scope) return scope[name]
        return if (name in FUNCTIONS) Function(name) else Undefined
    }

    /** As deep as the tree is, which [Expr] limits. */
    private fun eval(expression: Expr): Any? {
        budget.charge(1)
        return when (expression) {
            is Literal -> expression.value
            is ListExpr -> list(expression)
            is DictExpr -> mapping(expression)
            is Name -> lookup(expression.name)
            is Attribute -> attribute(eval(expression.target), eval(expression.key))
            is Slice -> slice(expression)
            is CallExpr -> call(expression)
            is Filter -> filter(expression)
            is Test -> values.test(eval(expression.target), expression.name)
            is Unary -> unary(expression)
            is Binary -> binary(expression)
            is Conditional -> when {
                values.truth(eval(expression.condition)) -> eval(expression.then)
                expression.otherwise == null -> Undefined
                else -> eval(expression.otherwise)
            }
        }
    }

    private fun list(expression: ListExpr): List<Any?> {
        budget.list(expression.items.size.toLong())
        return expression.items.map { eval(it) }
    }

    private fun mapping(expression: DictExpr): Map<String, Any?> {
        budget.list(expression.items.size.toLong())
        return expression.items.associate { (key, value) -> values.text(eval(key)) to eval(value) }
    }

    private fun attribute(target: Any?, key: Any?): Any? = when (target) {
        Undefined, null -> fail("'${values.text(key)}' of nothing")
        is Map<*, *> -> values.member(target, key, Undefined)
        is Namespace -> values.member(target.values, key, Undefined)
        is Loop -> target.attribute(key)
        is List<*> -> (key as? Long)?.let { target.getOrElse(place(it, target.size)) { Undefined } } ?: Undefined
        is String -> (key as? Long)?.let { character(target, it) } ?: Undefined
        else -> Undefined
    }

    private fun character(text: String, index: Long): Any {
        val found = strings.slice(text) { count -> place(index, count).let { if (it in 0 until count) it to it + 1 else 0 to 0 } }
        return found.ifEmpty { Undefined }
    }

    private fun place(index: Long, size: Int): Int = (if (index < 0) index + size else index).coerceIn(-1L, Int.MAX_VALUE.toLong()).toInt()

    private fun slice(expression: Slice): Any {
        val target = eval(expression.target)
        val (from, to) = listOf(expression.from, expression.to).map { part ->
            part?.let { eval(it) as? Long ?: fail("a slice needs whole numbers") }
        }
        fun bounds(size: Int): Pair<Int, Int> {
            fun bound(number: Long) = (if (number < 0) number + size else number).coerceIn(0L, size.toLong()).toInt()
            val start = if (from == null) 0 else bound(from)
            return start to maxOf(start, if (to == null) size else bound(to))
        }
        return when (target) {
            is String -> strings.slice(target, ::bounds)
            is List<*> -> {
                val (start, end) = bounds(target.size)
                budget.list(end.toLong() - start)
                // A copy: views of views would nest as deep as a loop turns.
                ArrayList(target.subList(start, end))
            }
            else -> fail("only lists and texts can be cut")
        }
    }

    private fun arguments(what: String, list: List<Expr>, named: Map<String, Expr>): Arguments {
        budget.list(list.size.toLong() + named.size)
        return Arguments(what, list.map { eval(it) }, named.mapValues { (_, value) -> eval(value) })
    }

    private fun call(expression: CallExpr): Any? {
        val target = expression.target
        if (target is Attribute && target.key is Literal && target.key.value is String) {
            val receiver = eval(target.target)
            val method = target.key.value
            val arguments = arguments("the method $method", expression.arguments, expression.named)
            if (receiver is String) return values.textMethod(receiver, method, arguments)
            if (receiver is Map<*, *>) return values.mapMethod(receiver, method, arguments)
            fail("the method $method is not supported")
        }
        val function = eval(target) as? Function ?: fail("what is called is no function")
        val arguments = arguments(function.name, expression.arguments, expression.named)
        return when (function.name) {
            "raise_exception" -> fail(values.text(arguments.exactly(1).list[0]))
            "strftime_now" -> formatted(arguments.exactly(1).text(0))
            "namespace" -> Namespace(arguments.atMost(0, *arguments.named.keys.toTypedArray()).named.toMutableMap())
            else -> range(arguments.atMost(2).list.map { it as? Long ?: fail("range needs whole numbers") })
        }
    }

    private fun formatted(pattern: String): String {
        // No sign writes more than `%A`'s and `%B`'s nine letters.
        budget.text(9L * pattern.length)
        return today.format(pattern)
    }

    private fun range(bounds: List<Long>): List<Long> {
        if (bounds.isEmpty()) fail("range needs an end")
        val (from, to) = if (bounds.size == 1) 0L to bounds[0] else bounds[0] to bounds[1]
        if (to <= from) return emptyList()
        // The difference of two numbers of 64 bits may not fit into one.
        val size = to - from
        if (size < 0) fail("a range from $from to $to")
        budget.list(size)
        return (from until to).toList()
    }

    private fun filter(expression: Filter): Any? {
        val value = eval(expression.target)
        return values.filter(value, expression.name, arguments("the filter ${expression.name}", expression.arguments, expression.named))
    }

    private fun unary(expression: Unary): Any? {
        val operand = eval(expression.operand)
        return if (expression.operator == "not") !values.truth(operand) else values.arithmetic("-", 0L, operand)
    }

    private fun binary(expression: Binary): Any? {
        val left = eval(expression.left)
        if (expression.operator == "and") return if (values.truth(left)) eval(expression.right) else left
        if (expression.operator == "or") return if (values.truth(left)) left else eval(expression.right)
        val right = eval(expression.right)
        return when (expression.operator) {
            "==" -> values.same(left, right)
            "!=" -> !values.same(left, right)
            "<", ">", "<=", ">=" -> values.ordered(expression.operator, left, right)
            "in" -> values.contains(right, left)
            "~" -> strings.concat(values.text(left), values.text(right))
            "+" -> values.plus(left, right)
            else -> values.arithmetic(expression.operator, left, right)
        }
    }

    private companion object {
        val FUNCTIONS = setOf("raise_exception", "strftime_now", "namespace", "range")
    }
}
