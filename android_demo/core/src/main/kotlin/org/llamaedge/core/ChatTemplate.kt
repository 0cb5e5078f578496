package org.llamaedge.core

import java.util.Calendar
import java.util.GregorianCalendar

/**
 * The subset of Jinja that chat templates in Llama's style use. What is not known is an error and never a guess. A template is
 * a program from a stranger: steps, output and nesting are bounded, and nothing outside of its variables can be reached.
 */
class ChatTemplate(source: String, private val bosToken: String, private val eosToken: String) {
    private val nodes: List<Node>

    init {
        if (source.length > MAX_CHARACTERS) throw TemplateException("the chat template has more than $MAX_CHARACTERS characters")
        nodes = TemplateParser(source).parse()
    }

    /** A dialog as one string, control tokens and BOS included; throws [TemplateException]. */
    fun render(
        messages: List<Message>,
        tools: List<Map<String, Any?>>? = null,
        addGenerationPrompt: Boolean = true,
        today: Day = Day.REFERENCE,
    ): String {
        val variables = mapOf(
            "bos_token" to bosToken, "eos_token" to eosToken, "messages" to messages,
            "add_generation_prompt" to addGenerationPrompt, "tools" to tools,
        )
        return TemplateRun(variables, today).render(nodes)
    }

    companion object {
        const val MAX_CHARACTERS = 1 shl 17
    }
}

/** A day as templates print it, in English whatever the phone's language: that is what models were trained on. */
data class Day(val year: Int, val month: Int, val dayOfMonth: Int) {
    fun format(pattern: String): String = buildString {
        var place = 0
        while (place < pattern.length) {
            if (pattern[place] != '%') {
                append(pattern[place++])
                continue
            }
            append(
                when (pattern.getOrNull(place + 1)) {
                    'd' -> dayOfMonth.toString().padStart(2, '0')
                    'm' -> month.toString().padStart(2, '0')
                    'Y' -> year.toString().padStart(4, '0')
                    'y' -> (year % 100).toString().padStart(2, '0')
                    'b' -> MONTHS[month - 1].take(3)
                    'B' -> MONTHS[month - 1]
                    'a' -> weekday().take(3)
                    'A' -> weekday()
                    '%' -> "%"
                    else -> throw TemplateException("strftime_now('$pattern') is not supported")
                },
            )
            place += 2
        }
    }

    private fun weekday() = WEEKDAYS[GregorianCalendar(year, month - 1, dayOfMonth).get(Calendar.DAY_OF_WEEK) - 1]

    companion object {
        /** The day that Llama 3.2's own template falls back to; golden dialogs are rendered with it. */
        val REFERENCE = Day(2024, 7, 26)
        private val MONTHS = listOf(
            "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
            "December",
        )
        private val WEEKDAYS = listOf("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
    }
}

private object Undefined

private class Namespace(val values: MutableMap<String, Any?>)

private class Function(val name: String)

private class Jumped(val isBreak: Boolean) : Exception()

private class TemplateRun(globals: Map<String, Any?>, private val today: Day) {
    private val scopes = arrayListOf(HashMap(globals))
    private val out = StringBuilder()
    private var steps = 0

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
            when (node) {
                is Text -> write(node.text)
                is Output -> write(text(eval(node.expression)))
                is If -> run(node.branches.firstOrNull { truth(eval(it.first)) }?.second ?: node.otherwise)
                is For -> loop(node)
                is SetNode -> set(node)
                is SetBlock -> scopes.last()[node.name] = captured(node.body)
                is Jump -> throw Jumped(node.isBreak)
            }
        }
    }

    private fun write(text: String) {
        out.append(text)
        if (out.length > MAX_OUTPUT) fail("it writes over $MAX_OUTPUT characters")
    }

    private fun captured(body: List<Node>): String {
        val start = out.length
        run(body)
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

    private fun loop(node: For) {
        var items = iterable(eval(node.items))
        scopes += HashMap<String, Any?>()
        try {
            if (node.condition != null) items = items.filter { bind(node.names, it); truth(eval(node.condition)) }
            if (items.isEmpty()) run(node.otherwise)
            for ((index, item) in items.withIndex()) {
                if (++steps > MAX_STEPS) fail("it takes more than $MAX_STEPS steps")
                scopes[scopes.size - 1] = HashMap<String, Any?>()
                bind(node.names, item)
                scopes.last()["loop"] = mapOf(
                    "index" to index + 1L, "index0" to index.toLong(), "first" to (index == 0), "last" to (index == items.size - 1),
                    "length" to items.size.toLong(), "revindex" to (items.size - index).toLong(),
                    "revindex0" to (items.size - index - 1L), "previtem" to items.getOrElse(index - 1) { Undefined },
                    "nextitem" to items.getOrElse(index + 1) { Undefined },
                )
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

    private fun eval(expression: Expr): Any? = when (expression) {
        is Literal -> expression.value
        is ListExpr -> expression.items.map { eval(it) }
        is DictExpr -> expression.items.associate { (key, value) -> text(eval(key)) to eval(value) }
        is Name -> lookup(expression.name)
        is Attribute -> attribute(eval(expression.target), eval(expression.key))
        is Slice -> slice(expression)
        is CallExpr -> call(expression)
        is Filter -> filter(expression)
        is Test -> test(eval(expression.target), expression.name)
        is Unary -> if (expression.operator == "not") !truth(eval(expression.operand)) else negative(eval(expression.operand))
        is Binary -> binary(expression)
        is Conditional -> when {
            truth(eval(expression.condition)) -> eval(expression.then)
            expression.otherwise == null -> Undefined
            else -> eval(expression.otherwise)
        }
    }

    private fun attribute(target: Any?, key: Any?): Any? = when (target) {
        Undefined, null -> fail("'${text(key)}' of nothing")
        is Map<*, *> -> if (target.containsKey(key)) target[key] else Undefined
        is Namespace -> if (key in target.values) target.values[key] else Undefined
        is List<*> -> (key as? Long)?.let { target.getOrElse(place(it, target.size)) { Undefined } } ?: Undefined
        is String -> (key as? Long)?.let { target.getOrNull(place(it, target.length))?.toString() ?: Undefined } ?: Undefined
        else -> Undefined
    }

    private fun place(index: Long, size: Int): Int = (if (index < 0) index + size else index).coerceIn(-1L, Int.MAX_VALUE.toLong()).toInt()

    private fun slice(expression: Slice): Any {
        val target = eval(expression.target)
        val size = (target as? List<*>)?.size ?: (target as? String)?.length ?: fail("only lists and texts can be cut")
        fun bound(part: Expr?, default: Int): Int {
            val number = (if (part == null) return default else eval(part)) as? Long ?: fail("a slice needs whole numbers")
            return (if (number < 0) number + size else number).coerceIn(0L, size.toLong()).toInt()
        }
        val from = bound(expression.from, 0)
        val to = maxOf(from, bound(expression.to, size))
        return if (target is String) target.substring(from, to) else (target as List<*>).subList(from, to)
    }

    private fun call(expression: CallExpr): Any? {
        val target = expression.target
        val arguments = expression.arguments.map { eval(it) }
        if (target is Attribute && target.key is Literal) {
            val receiver = eval(target.target)
            if (receiver is String) return textMethod(receiver, target.key.value as String, arguments)
            if (receiver is Map<*, *>) return mapMethod(receiver, target.key.value as String, arguments)
        }
        val function = eval(target) as? Function ?: fail("what is called is no function")
        return when (function.name) {
            "raise_exception" -> fail(text(arguments.firstOrNull()))
            "strftime_now" -> today.format(text(arguments.firstOrNull()))
            "namespace" -> Namespace(expression.named.mapValues { eval(it.value) }.toMutableMap())
            else -> range(arguments.map { it as? Long ?: fail("range needs whole numbers") })
        }
    }

    private fun range(arguments: List<Long>): List<Long> {
        val (from, to) = if (arguments.size == 1) 0L to arguments[0] else arguments.getOrElse(0) { 0L } to arguments.getOrElse(1) { 0L }
        if (to - from > 2L * MAX_STEPS) fail("a range of ${to - from}")
        return if (arguments.size > 2) fail("range with a step is not supported") else (from until to).toList()
    }

    private fun textMethod(receiver: String, name: String, arguments: List<Any?>): Any? {
        val first = arguments.firstOrNull()
        return when (name) {
            "strip" -> strip(receiver, first as String?, left = true, right = true)
            "lstrip" -> strip(receiver, first as String?, left = true, right = false)
            "rstrip" -> strip(receiver, first as String?, left = false, right = true)
            "startswith" -> receiver.startsWith(text(first))
            "endswith" -> receiver.endsWith(text(first))
            "upper" -> receiver.uppercase()
            "lower" -> receiver.lowercase()
            "split" -> if (first == null) fail("split without a separator is not supported") else receiver.split(text(first))
            "replace" -> receiver.replace(text(first), text(arguments.getOrNull(1)))
            else -> fail("the method $name of a text is not supported")
        }
    }

    private fun strip(text: String, characters: String?, left: Boolean, right: Boolean): String {
        val gone = { c: Char -> if (characters == null) isSpace(c) else c in characters }
        return text.let { if (left) it.trimStart(gone) else it }.let { if (right) it.trimEnd(gone) else it }
    }

    private fun mapMethod(receiver: Map<*, *>, name: String, arguments: List<Any?>): Any? = when (name) {
        "items" -> receiver.entries.map { listOf(it.key, it.value) }
        "keys" -> receiver.keys.toList()
        "values" -> receiver.values.toList()
        "get" -> if (receiver.containsKey(arguments.firstOrNull())) receiver[arguments[0]] else arguments.getOrNull(1)
        else -> fail("the method $name of a mapping is not supported")
    }

    private fun filter(expression: Filter): Any? {
        val value = eval(expression.target)
        val arguments = expression.arguments.map { eval(it) }
        return when (expression.name) {
            "trim" -> strip(text(value), null, left = true, right = true)
            "length", "count" -> length(value)
            "tojson" -> tojson(value, eval(expression.named["indent"] ?: expression.arguments.firstOrNull() ?: Literal(null)))
            "upper" -> text(value).uppercase()
            "lower" -> text(value).lowercase()
            "string" -> text(value)
            "list" -> iterable(value)
            "first" -> iterable(value).firstOrNull() ?: Undefined
            "last" -> iterable(value).lastOrNull() ?: Undefined
            "join" -> iterable(value).joinToString(text(arguments.firstOrNull() ?: "")) { text(it) }
            "default" -> if (value == Undefined) arguments.firstOrNull() ?: "" else value
            "items" -> mapMethod(value as? Map<*, *> ?: fail("items of no mapping"), "items", emptyList())
            "replace" -> text(value).replace(text(arguments.getOrNull(0)), text(arguments.getOrNull(1)))
            else -> fail("the filter ${expression.name} is not supported")
        }
    }

    private fun tojson(value: Any?, indent: Any?): String {
        if (value == Undefined) fail("nothing is no JSON")
        return Json.write(value, (indent as Long?)?.toInt())
    }

    private fun test(value: Any?, name: String): Boolean = when (name) {
        "defined" -> value != Undefined
        "undefined" -> value == Undefined
        "none" -> value == null
        "string" -> value is String
        "mapping" -> value is Map<*, *>
        "iterable" -> value is String || value is List<*> || value is Map<*, *> || value == Undefined
        "sequence" -> value is String || value is List<*> || value is Map<*, *>
        "number" -> value is Long || value is Double || value is Boolean
        "boolean" -> value is Boolean
        "true" -> value == true
        "false" -> value == false
        else -> fail("the test $name is not supported")
    }

    private fun binary(expression: Binary): Any? {
        val left = eval(expression.left)
        if (expression.operator == "and") return if (truth(left)) eval(expression.right) else left
        if (expression.operator == "or") return if (truth(left)) left else eval(expression.right)
        val right = eval(expression.right)
        return when (expression.operator) {
            "==" -> same(left, right)
            "!=" -> !same(left, right)
            "<", ">", "<=", ">=" -> ordered(expression.operator, left, right)
            "in" -> contains(right, left)
            "~" -> text(left) + text(right)
            "+" -> plus(left, right)
            else -> arithmetic(expression.operator, left, right)
        }
    }

    private fun plus(left: Any?, right: Any?): Any = when {
        left is String && right is String -> left + right
        left is List<*> && right is List<*> -> left + right
        else -> arithmetic("+", left, right)
    }

    private fun arithmetic(operator: String, left: Any?, right: Any?): Any {
        if (left !is Long || right !is Long) fail("'$operator' between ${kind(left)} and ${kind(right)} is not supported")
        if (operator in setOf("/", "//", "%") && right == 0L) fail("a division by zero")
        return when (operator) {
            "+" -> left + right
            "-" -> left - right
            "*" -> left * right
            "//" -> left.floorDiv(right)
            "%" -> left.mod(right)
            else -> left.toDouble() / right
        }
    }

    private fun kind(value: Any?) = if (value == Undefined) "nothing" else value?.let { it::class.simpleName } ?: "none"

    private fun negative(value: Any?): Any = (value as? Long)?.let { -it } ?: fail("'-' of ${kind(value)}")

    private fun same(left: Any?, right: Any?) =
        if (left is Number && right is Number) left.toDouble() == right.toDouble() else left == right

    private fun ordered(operator: String, left: Any?, right: Any?): Boolean {
        val order = when {
            left is Number && right is Number -> left.toDouble().compareTo(right.toDouble())
            left is String && right is String -> left.compareTo(right)
            else -> fail("${kind(left)} $operator ${kind(right)}")
        }
        return when (operator) {
            "<" -> order < 0
            ">" -> order > 0
            "<=" -> order <= 0
            else -> order >= 0
        }
    }

    private fun contains(container: Any?, item: Any?): Boolean = when (container) {
        is String -> text(item) in container
        is List<*> -> container.any { same(it, item) }
        is Map<*, *> -> container.containsKey(item)
        Undefined -> false
        else -> fail("'in' ${kind(container)}")
    }

    private fun length(value: Any?): Long = when (value) {
        is String -> value.codePointCount(0, value.length).toLong()
        is List<*> -> value.size.toLong()
        is Map<*, *> -> value.size.toLong()
        Undefined -> 0
        else -> fail("${kind(value)} has no length")
    }

    private fun iterable(value: Any?): List<Any?> = when (value) {
        is List<*> -> value
        is Map<*, *> -> value.keys.toList()
        is String -> characters(value)
        Undefined -> emptyList()
        else -> fail("${kind(value)} is no list")
    }

    private fun characters(text: String): List<String> = buildList {
        var place = 0
        while (place < text.length) {
            val next = text.offsetByCodePoints(place, 1)
            add(text.substring(place, next))
            place = next
        }
    }

    private fun truth(value: Any?): Boolean = when (value) {
        null, Undefined, false -> false
        is String -> value.isNotEmpty()
        is List<*> -> value.isNotEmpty()
        is Map<*, *> -> value.isNotEmpty()
        is Long -> value != 0L
        is Double -> value != 0.0
        else -> true
    }

    /** As Python's `str`; a container would come out with quotes of its own kind, so it is refused. */
    private fun text(value: Any?): String = when (value) {
        is String -> value
        null -> "None"
        true -> "True"
        false -> "False"
        Undefined -> ""
        is Long -> value.toString()
        is Double -> Json.write(value)
        else -> fail("a ${kind(value)} is written without tojson, which is not supported")
    }

    private companion object {
        const val MAX_STEPS = 50_000
        const val MAX_OUTPUT = 1 shl 24
        val FUNCTIONS = setOf("raise_exception", "strftime_now", "namespace", "range")

        /** What Python's `str.strip` takes away. */
        fun isSpace(c: Char) = c in '\t'..'\r' || c in '\u001c'..' ' || c == '\u0085' || Character.isSpaceChar(c)
    }
}
