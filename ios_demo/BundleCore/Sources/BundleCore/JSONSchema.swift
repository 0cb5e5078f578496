import Foundation

/// A JSON Schema of the kind that `manifest.schema.json` is. A keyword that is not known here is an error, never ignored.
public struct JSONSchema: Sendable {
    private let root: JSONValue

    /// How a value breaks the schema, and where.
    public struct Violation: Error, CustomStringConvertible, Sendable {
        public let path: String
        public let message: String

        public var description: String { "\(path) \(message)" }
    }

    public init(_ root: JSONValue) {
        self.root = root
    }

    /// The first way in which `value` breaks the schema.
    public func validate(_ value: JSONValue) throws {
        try check(value, against: root, at: "$")
    }

    private func check(_ value: JSONValue, against schema: JSONValue, at path: String) throws {
        guard let keywords = schema.objectValue else {
            if schema.boolValue == false { throw Violation(path: path, message: "may not be there") }
            return
        }
        for (keyword, rule) in keywords.members {
            try check(value, keyword, rule, in: keywords, at: path)
        }
    }

    private func check(
        _ value: JSONValue, _ keyword: String, _ rule: JSONValue, in schema: JSONObject, at path: String
    ) throws {
        switch keyword {
        case "$schema", "$id", "title", "description", "$defs", "$comment", "default", "examples": break
        case "type": try checkType(value, rule, path)
        case "const": try require(value == rule, path, "is not \(rule.compact)")
        case "enum":
            try require(rule.arrayValue?.contains(value) ?? false, path, "is not one of \(rule.compact)")
        case "anyOf": try checkAnyOf(value, rule, path)
        case "$ref": try check(value, against: resolve(rule), at: path)
        case "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum": try checkRange(value, keyword, rule, path)
        case "minLength", "maxLength", "pattern": try checkString(value, keyword, rule, path)
        case "items", "minItems", "maxItems", "uniqueItems": try checkArray(value, keyword, rule, path)
        case "properties", "required", "additionalProperties", "minProperties", "patternProperties", "propertyNames":
            try checkObject(value, keyword, rule, schema, path)
        default: throw Violation(path: path, message: "the schema's keyword \(keyword) is not known here")
        }
    }

    private func require(_ holds: Bool, _ path: String, _ message: String) throws {
        if !holds { throw Violation(path: path, message: message) }
    }

    private func resolve(_ reference: JSONValue) throws -> JSONValue {
        let prefix = "#/$defs/"
        guard let name = reference.stringValue, name.hasPrefix(prefix),
            let target = root["$defs"]?[String(name.dropFirst(prefix.count))]
        else { throw Violation(path: "$", message: "the schema refers to \(reference.compact), which it lacks") }
        return target
    }

    private func checkType(_ value: JSONValue, _ rule: JSONValue, _ path: String) throws {
        let names = rule.arrayValue?.compactMap(\.stringValue) ?? [rule.stringValue ?? ""]
        let fits = names.contains { name in
            switch name {
            case "integer": value.intValue != nil
            case "number": value.doubleValue != nil
            default: value.typeName == name
            }
        }
        try require(fits, path, "is \(value.typeName), not \(names.joined(separator: " or "))")
    }

    private func checkAnyOf(_ value: JSONValue, _ rule: JSONValue, _ path: String) throws {
        var first: Violation?
        for choice in rule.arrayValue ?? [] {
            do {
                return try check(value, against: choice, at: path)
            } catch let violation as Violation {
                // The choice that looked deepest says most about what was meant.
                if first.map({ violation.path.count > $0.path.count }) ?? true { first = violation }
            }
        }
        throw first ?? Violation(path: path, message: "fits none of the choices")
    }

    private func checkRange(_ value: JSONValue, _ keyword: String, _ rule: JSONValue, _ path: String) throws {
        guard let number = value.doubleValue, let limit = rule.doubleValue else { return }
        let holds =
            switch keyword {
            case "minimum": number >= limit
            case "maximum": number <= limit
            case "exclusiveMinimum": number > limit
            default: number < limit
            }
        try require(holds, path, "is \(value.compact); \(keyword) is \(rule.compact)")
    }

    private func checkString(_ value: JSONValue, _ keyword: String, _ rule: JSONValue, _ path: String) throws {
        guard let text = value.stringValue else { return }
        switch keyword {
        case "minLength": try require(text.unicodeScalars.count >= rule.intValue ?? 0, path, "is too short")
        case "maxLength": try require(text.unicodeScalars.count <= rule.intValue ?? .max, path, "is too long")
        default:
            let expression = try NSRegularExpression(pattern: rule.stringValue ?? "")
            let range = NSRange(text.startIndex..., in: text)
            try require(
                expression.firstMatch(in: text, range: range) != nil, path, "does not match \(rule.compact)")
        }
    }

    private func checkArray(_ value: JSONValue, _ keyword: String, _ rule: JSONValue, _ path: String) throws {
        guard let items = value.arrayValue else { return }
        switch keyword {
        case "items":
            for (place, item) in items.enumerated() { try check(item, against: rule, at: "\(path)[\(place)]") }
        case "minItems": try require(items.count >= rule.intValue ?? 0, path, "has too few entries")
        case "maxItems": try require(items.count <= rule.intValue ?? .max, path, "has too many entries")
        default:
            try require(rule.boolValue != true || Set(items).count == items.count, path, "has an entry twice")
        }
    }

    private func checkObject(
        _ value: JSONValue, _ keyword: String, _ rule: JSONValue, _ schema: JSONObject, _ path: String
    ) throws {
        guard let object = value.objectValue else { return }
        switch keyword {
        case "properties":
            for (name, property) in rule.objectValue?.members ?? [] {
                if let member = object[name] { try check(member, against: property, at: "\(path).\(name)") }
            }
        case "required":
            for name in rule.arrayValue?.compactMap(\.stringValue) ?? [] {
                try require(object[name] != nil, path, "lacks \(name)")
            }
        case "additionalProperties":
            for (name, member) in object.members where schema["properties"]?[name] == nil {
                try check(member, against: rule, at: "\(path).\(name)")
            }
        case "minProperties": try require(object.count >= rule.intValue ?? 0, path, "has too few members")
        default: throw Violation(path: path, message: "the schema's keyword \(keyword) is not known here")
        }
    }
}
