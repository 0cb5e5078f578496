package org.llamaedge.core

/**
 * Holds a value against the part of JSON Schema that `manifest.schema.json` uses. The schema is the very file that Python
 * applies; a keyword that is not known here is an error, so that the two never differ in silence.
 */
class Schema(private val root: Map<String, Any?>) {
    /** Where and how [value] first breaks the schema; null when it holds. */
    fun breach(value: Any?): Breach? = check(root, value, "")

    data class Breach(val field: String, val message: String)

    private fun check(schema: Map<String, Any?>, value: Any?, place: String): Breach? {
        for ((keyword, rule) in schema) {
            val found = apply(keyword, rule, schema, value, place)
            if (found != null) return found
        }
        return null
    }

    private fun apply(keyword: String, rule: Any?, schema: Map<String, Any?>, value: Any?, place: String): Breach? =
        when (keyword) {
            "\$schema", "\$defs", "title", "description" -> null
            "\$ref" -> check(resolve(rule as String), value, place)
            "type" -> breachUnless(types(rule).any { isType(value, it) }, place) { "is not of type $rule" }
            "const" -> breachUnless(same(value, rule), place) { "is not $rule" }
            "enum" -> breachUnless(rule.asList().any { same(value, it) }, place) { "is none of $rule" }
            "anyOf" -> anyOf(rule.asList(), value, place)
            in NUMBERS -> if (isType(value, "number")) numberRule(keyword, rule as Number, value as Number, place) else null
            in STRINGS -> if (value is String) stringRule(keyword, rule, value, place) else null
            in ARRAYS -> if (value is List<*>) arrayRule(keyword, rule, value, place) else null
            in OBJECTS -> if (value is Map<*, *>) objectRule(keyword, rule, schema, value.asObject(), place) else null
            else -> throw IllegalStateException("manifest.schema.json uses '$keyword', which this reader does not know")
        }

    private fun resolve(reference: String): Map<String, Any?> {
        check(reference.startsWith("#/")) { "the schema refers to $reference" }
        return reference.drop(2).split('/').fold(root as Any?) { at, step -> at.asObject().getValue(step) }.asObject()
    }

    private fun anyOf(choices: List<Any?>, value: Any?, place: String): Breach? {
        val breaches = choices.map { check(it.asObject(), value, place) ?: return null }
        // The deepest says most: the others did not even match the type.
        return breaches.maxByOrNull { it.field.length }
    }

    private fun numberRule(keyword: String, rule: Number, value: Number, place: String): Breach? {
        val (limit, number) = rule.toDouble() to value.toDouble()
        val holds = when (keyword) {
            "minimum" -> number >= limit
            "maximum" -> number <= limit
            "exclusiveMinimum" -> number > limit
            else -> number < limit
        }
        return breachUnless(holds, place) { "is $value; $keyword is $rule" }
    }

    private fun stringRule(keyword: String, rule: Any?, value: String, place: String): Breach? = when (keyword) {
        "minLength" -> breachUnless(value.codePointCount(0, value.length) >= rule.asInt(), place) { "is too short" }
        else -> breachUnless(Regex(rule as String).containsMatchIn(value), place) { "does not match $rule" }
    }

    private fun arrayRule(keyword: String, rule: Any?, value: List<*>, place: String): Breach? = when (keyword) {
        "minItems" -> breachUnless(value.size >= rule.asInt(), place) { "has ${value.size} items; at least $rule are needed" }
        "maxItems" -> breachUnless(value.size <= rule.asInt(), place) { "has ${value.size} items; at most $rule are allowed" }
        "uniqueItems" -> breachUnless(rule != true || value.toSet().size == value.size, place) { "has an item twice" }
        else -> value.withIndex().firstNotNullOfOrNull { (index, item) -> check(rule.asObject(), item, "$place[$index]") }
    }

    private fun objectRule(
        keyword: String, rule: Any?, schema: Map<String, Any?>, value: Map<String, Any?>, place: String,
    ): Breach? = when (keyword) {
        "required" -> rule.asList().firstOrNull { it !in value }?.let { Breach(place, "lacks $it") }
        "minProperties" -> breachUnless(value.size >= rule.asInt(), place) { "is empty" }
        "properties" -> rule.asObject().entries.firstNotNullOfOrNull { (name, inner) ->
            if (name in value) check(inner.asObject(), value[name], join(place, name)) else null
        }
        else -> {
            val known = (schema["properties"] ?: emptyMap<String, Any?>()).asObject().keys
            (value.keys - known).firstNotNullOfOrNull { name ->
                if (rule is Boolean) {
                    if (rule) null else Breach(join(place, name), "is not a field of the schema")
                } else {
                    check(rule.asObject(), value[name], join(place, name))
                }
            }
        }
    }

    private fun join(place: String, name: String) = if (place.isEmpty()) name else "$place.$name"

    private fun types(rule: Any?): List<Any?> = if (rule is List<*>) rule else listOf(rule)

    private fun isType(value: Any?, type: Any?): Boolean = when (type) {
        "null" -> value == null
        "boolean" -> value is Boolean
        "string" -> value is String
        "array" -> value is List<*>
        "object" -> value is Map<*, *>
        "integer" -> value is Long || (value is Double && value % 1.0 == 0.0)
        "number" -> value is Long || value is Double
        else -> throw IllegalStateException("the schema has the type $type")
    }

    private fun same(value: Any?, rule: Any?): Boolean =
        if (value is Number && rule is Number) value.toDouble() == rule.toDouble() else value == rule

    private fun breachUnless(holds: Boolean, place: String, message: () -> String): Breach? =
        if (holds) null else Breach(place, message())

    private companion object {
        val NUMBERS = setOf("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        val STRINGS = setOf("minLength", "pattern")
        val ARRAYS = setOf("minItems", "maxItems", "uniqueItems", "items")
        val OBJECTS = setOf("required", "properties", "additionalProperties", "minProperties")
    }
}
