package org.llamaedge.core

/**
 * What Jinja's operators, filters, tests and methods make of values: texts, whole numbers, lists, mappings. What chat templates
 * never use is an error; so is a value that is nested deeper than JSON may be.
 */
internal class TemplateValues(private val budget: TemplateBudget) {
    private val strings = TemplateStrings(budget)

    private fun fail(what: String): Nothing = throw TemplateException(what)

    fun textMethod(receiver: String, name: String, arguments: Arguments): Any? = when (name) {
        "strip" -> strings.strip(receiver, arguments.atMost(1).textOrNull())
        "lstrip" -> strings.strip(receiver, arguments.atMost(1).textOrNull(), right = false)
        "rstrip" -> strings.strip(receiver, arguments.atMost(1).textOrNull(), left = false)
        "startswith" -> strings.startsWith(receiver, arguments.exactly(1).text(0))
        "endswith" -> strings.endsWith(receiver, arguments.exactly(1).text(0))
        "upper" -> strings.upper(receiver).also { arguments.exactly(0) }
        "lower" -> strings.lower(receiver).also { arguments.exactly(0) }
        "split" -> strings.split(receiver, arguments.exactly(1).text(0))
        "replace" -> arguments.exactly(2).let { strings.replace(receiver, it.text(0), it.text(1)) }
        else -> fail("the method $name of a text is not supported")
    }

    fun mapMethod(receiver: Map<*, *>, name: String, arguments: Arguments): Any? = when (name) {
        "items" -> pairs(receiver).also { arguments.exactly(0) }
        "keys" -> keys(receiver).also { arguments.exactly(0) }
        "values" -> {
            arguments.exactly(0)
            budget.list(receiver.size.toLong())
            receiver.values.toList()
        }
        "get" -> {
            if (arguments.atMost(2).list.isEmpty()) fail("get needs a name")
            member(receiver, arguments.list[0], arguments.list.getOrNull(1))
        }
        else -> fail("the method $name of a mapping is not supported")
    }

    fun member(mapping: Map<*, *>, key: Any?, otherwise: Any?): Any? {
        val name = name(mapping, key) ?: return otherwise
        return mapping[name]
    }

    /**
     * The name, as the mapping has it; one that was typed may have marks. Names are texts; another key is none, and is not asked
     * for its hash, which would walk through all of it.
     */
    private fun name(mapping: Map<*, *>, key: Any?): String? {
        if (key !is String || mapping.containsKey(key)) return key as? String
        return mapping.keys.firstOrNull { it is String && strings.same(it, key) } as String?
    }

    private fun pairs(mapping: Map<*, *>): List<List<Any?>> {
        budget.list(3L * mapping.size)
        return mapping.entries.map { listOf(it.key, it.value) }
    }

    private fun keys(mapping: Map<*, *>): List<Any?> {
        budget.list(mapping.size.toLong())
        return mapping.keys.toList()
    }

    fun filter(value: Any?, name: String, arguments: Arguments): Any? = when (name) {
        "trim" -> strings.strip(text(value), arguments.atMost(1).textOrNull())
        "length", "count" -> length(value).also { arguments.exactly(0) }
        "tojson" -> tojson(value, arguments.atMost(0, "indent", "ensure_ascii", "sort_keys").named)
        "upper" -> strings.upper(text(value)).also { arguments.exactly(0) }
        "lower" -> strings.lower(text(value)).also { arguments.exactly(0) }
        "string" -> text(value).also { arguments.exactly(0) }
        "list" -> iterable(value).also { arguments.exactly(0) }
        "first" -> end(value, first = true).also { arguments.exactly(0) }
        "last" -> end(value, first = false).also { arguments.exactly(0) }
        "join" -> join(value, arguments.atMost(1, "d"))
        "default" -> default(value, arguments.atMost(2, "default_value", "boolean"))
        "items" -> pairs(value as? Map<*, *> ?: fail("items of no mapping")).also { arguments.exactly(0) }
        "replace" -> arguments.exactly(2).let { strings.replace(text(value), text(it.list[0]), text(it.list[1])) }
        else -> fail("the filter $name is not supported")
    }

    private fun end(value: Any?, first: Boolean): Any? {
        if (value !is String) return iterable(value).let { if (first) it.firstOrNull() else it.lastOrNull() } ?: Undefined
        return strings.slice(value) { count -> if (count == 0) 0 to 0 else if (first) 0 to 1 else count - 1 to count }.ifEmpty { Undefined }
    }

    private fun join(value: Any?, arguments: Arguments): String {
        val separator = text(arguments.list.firstOrNull() ?: arguments.named["d"] ?: "")
        val items = iterable(value)
        budget.list(items.size.toLong())
        return strings.join(items.map { text(it) }, separator)
    }

    private fun default(value: Any?, arguments: Arguments): Any? {
        val otherwise = arguments.list.getOrElse(0) { arguments.named["default_value"] ?: "" }
        val falseToo = truth(arguments.list.getOrElse(1) { arguments.named["boolean"] })
        return if (value == Undefined || (falseToo && !truth(value))) otherwise else value
    }

    private fun tojson(value: Any?, named: Map<String, Any?>): String {
        if (value == Undefined) fail("nothing is no JSON")
        if (truth(named["ensure_ascii"]) || truth(named["sort_keys"])) fail("tojson with ensure_ascii or sort_keys is not supported")
        val indent = named["indent"]?.let { it as? Long ?: fail("tojson needs a whole number as indent") }
        return try {
            val text = Json.write(value, indent?.coerceIn(-1, Int.MAX_VALUE.toLong())?.toInt(), budget.room)
            text.also { budget.text(it.length.toLong()) }
        } catch (error: IllegalArgumentException) {
            fail("tojson: ${error.message}")
        }
    }

    fun test(value: Any?, name: String): Boolean = when (name) {
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

    fun plus(left: Any?, right: Any?): Any = when {
        left is String && right is String -> strings.concat(left, right)
        left is List<*> && right is List<*> -> {
            budget.list(left.size.toLong() + right.size)
            left + right
        }
        else -> arithmetic("+", left, right)
    }

    /** Whole numbers, which Python has without a limit: of operands below [MAX_NUMBER] no result leaves 64 bits. */
    fun arithmetic(operator: String, left: Any?, right: Any?): Any {
        if (left !is Long || right !is Long) fail("'$operator' between ${kind(left)} and ${kind(right)} is not supported")
        for (number in listOf(left, right)) {
            if (number !in -MAX_NUMBER..MAX_NUMBER) fail("'$operator' of $number: at most $MAX_NUMBER is accepted")
        }
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

    fun same(left: Any?, right: Any?): Boolean = same(left, right, 0)

    private fun same(left: Any?, right: Any?, depth: Int): Boolean {
        if (depth > Json.MAX_DEPTH) fail("a comparison of values that are nested more than ${Json.MAX_DEPTH} deep")
        budget.charge(1)
        return when {
            left is String && right is String -> strings.same(left, right)
            left is Long && right is Long -> left == right
            left is Number && right is Number -> left.toDouble() == right.toDouble()
            left is List<*> && right is List<*> ->
                left.size == right.size && left.indices.all { same(left[it], right[it], depth + 1) }
            left is Map<*, *> && right is Map<*, *> ->
                left.size == right.size && left.all { (key, value) -> name(right, key)?.let { same(value, right[it], depth + 1) } ?: false }
            left is List<*> || left is Map<*, *> -> false
            else -> left == right
        }
    }

    fun ordered(operator: String, left: Any?, right: Any?): Boolean {
        val order = when {
            left is Number && right is Number -> left.toDouble().compareTo(right.toDouble())
            left is String && right is String -> strings.compare(left, right)
            else -> fail("${kind(left)} $operator ${kind(right)}")
        }
        return when (operator) {
            "<" -> order < 0
            ">" -> order > 0
            "<=" -> order <= 0
            else -> order >= 0
        }
    }

    fun contains(container: Any?, item: Any?): Boolean = when (container) {
        is String -> strings.contains(container, text(item))
        is List<*> -> container.any { same(it, item) }
        is Map<*, *> -> name(container, item) != null
        Undefined -> false
        else -> fail("'in' ${kind(container)}")
    }

    private fun length(value: Any?): Long = when (value) {
        is String -> strings.length(value)
        is List<*> -> value.size.toLong()
        is Map<*, *> -> value.size.toLong()
        Undefined -> 0
        else -> fail("${kind(value)} has no length")
    }

    fun iterable(value: Any?): List<Any?> = when (value) {
        is List<*> -> value
        is Map<*, *> -> keys(value)
        is String -> strings.characters(value)
        Undefined -> emptyList()
        else -> fail("${kind(value)} is no list")
    }

    fun truth(value: Any?): Boolean = when (value) {
        null, Undefined, false -> false
        is String -> value.isNotEmpty()
        is List<*> -> value.isNotEmpty()
        is Map<*, *> -> value.isNotEmpty()
        is Long -> value != 0L
        is Double -> value != 0.0
        else -> true
    }

    /** As Python's `str`; a container would come out with quotes of its own kind, so it is refused. */
    fun text(value: Any?): String = when (value) {
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
        const val MAX_NUMBER = 1L shl 31
    }
}
