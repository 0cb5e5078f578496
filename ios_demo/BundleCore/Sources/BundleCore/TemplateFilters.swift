import Foundation

/// What a filter, a method or a function is called with.
struct TemplateArguments {
    let positional: [TemplateValue]
    let named: [String: TemplateValue]

    func value(_ place: Int, _ name: String) -> TemplateValue? {
        place < positional.count ? positional[place] : named[name]
    }

    func text(_ place: Int, _ name: String) throws -> String {
        guard let text = try optionalText(place, name) else { throw TextError("the chat template gives no \(name)") }
        return text
    }

    /// nil where it is absent or none.
    func optionalText(_ place: Int, _ name: String) throws -> String? {
        guard let value = value(place, name), !value.isNone else { return nil }
        guard let text = value.string else { throw TextError("the chat template gives a \(name) that is no text") }
        return text
    }

    /// nil where it is absent or none.
    func optionalInteger(_ place: Int, _ name: String) throws -> Int? {
        guard let value = value(place, name), !value.isNone else { return nil }
        guard let integer = value.integer else { throw TextError("the chat template gives a \(name) that is no whole number") }
        return integer
    }

    /// No others than these, in their order.
    func check(_ callee: String, takes names: String...) throws {
        guard positional.count <= names.count, named.keys.allSatisfy(names.contains) else {
            throw TextError("the chat template calls \(callee) with an argument that is not supported here")
        }
    }
}

/// Filters, tests and methods, as Jinja and Python define them.
enum TemplateFilters {
    static let names: Set<String> = [
        "capitalize", "count", "d", "default", "first", "int", "items", "join", "last", "length", "list", "lower", "replace", "string",
        "tojson", "trim", "upper",
    ]
    static let tests: Set<String> = [
        "boolean", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number", "sequence", "string", "true",
        "undefined",
    ]

    static func apply(
        _ name: String, to value: TemplateValue, _ arguments: TemplateArguments, _ budget: TemplateBudget
    ) throws -> TemplateValue {
        switch name {
        case "trim":
            try arguments.check(name, takes: "chars")
            return .string(try TextFilters(budget).strip(value.text(), arguments.optionalText(0, "chars")))
        case "upper", "lower", "capitalize", "replace":
            return .string(try TextFilters(budget).apply(name, to: value.text(), arguments))
        case "tojson": return .string(try json(value, arguments, budget))
        case "default", "d":
            try arguments.check(name, takes: "default_value", "boolean")
            let isMissing = value.isUndefined || (arguments.value(1, "boolean")?.isTrue == true && !value.isTrue)
            return isMissing ? arguments.value(0, "default_value") ?? .string("") : value
        case "int":
            try arguments.check(name, takes: "default")
            return try integer(value, budget) ?? arguments.value(0, "default") ?? .int(0)
        case "join":
            try arguments.check(name, takes: "d")
            return .string(try joined(value.items(budget), arguments.value(0, "d")?.text() ?? "", budget))
        default:
            try arguments.check(name)
            return try plain(name, value, budget)
        }
    }

    /// Filters without arguments.
    private static func plain(_ name: String, _ value: TemplateValue, _ budget: TemplateBudget) throws -> TemplateValue {
        switch name {
        case "string": return .string(try value.text())
        case "length", "count":
            guard let count = try value.count(budget) else { throw TextError("the chat template asks for the length of what has none") }
            return .int(count)
        case "first":
            return try value.string == nil ? value.items(budget).first ?? .undefined : value.character(0, budget)
        case "last":
            return try value.string == nil ? value.items(budget).last ?? .undefined : value.character(-1, budget)
        case "list": return .list(try TemplateList(value.items(budget)))
        case "items": return try pairs(value, budget)
        default: throw TextError("the chat template has the filter \(name), which is not supported here")
        }
    }

    /// nil for what is no number, where Jinja takes the default.
    private static func integer(_ value: TemplateValue, _ budget: TemplateBudget) throws -> TemplateValue? {
        if let integer = value.integer { return .int(integer) }
        var number = value.number
        if let text = value.string {
            let digits = TypedText.withoutMarks(try TextFilters(budget).strip(text, nil))
            if let integer = Int(digits) { return .int(integer) }
            // Swift reads hexadecimal digits and names, Python does not.
            guard digits.utf8.allSatisfy({ "0123456789+-.eE".utf8.contains($0) }) else { return nil }
            number = Double(digits)
        }
        guard let number, !number.isNaN else { return nil }
        guard let integer = Int(exactly: number.rounded(.towardZero)) else {
            throw TextError("the chat template has a number of over 64 bits")
        }
        return .int(integer)
    }

    /// As transformers' `tojson`, which takes what `json.dumps` does.
    private static func json(_ value: TemplateValue, _ arguments: TemplateArguments, _ budget: TemplateBudget) throws -> String {
        try arguments.check("tojson", takes: "ensure_ascii", "indent", "separators", "sort_keys")
        guard arguments.value(0, "ensure_ascii")?.isTrue != true else {
            throw TextError("the chat template calls tojson with ensure_ascii, which is not supported here")
        }
        var style = JSONStyle(indent: try arguments.optionalInteger(1, "indent"))
        let sortKeys = arguments.value(3, "sort_keys")?.isTrue ?? false
        if let separators = arguments.value(2, "separators"), !separators.isNone {
            let texts = try separators.items(budget).compactMap(\.string)
            guard texts.count == 2 else { throw TextError("the chat template gives separators that are not two texts") }
            (style.itemSeparator, style.keySeparator) = (texts[0], texts[1])
        }
        let text = try value.json(budget, sortKeys: sortKeys).dumped(style, limit: TemplateBudget.maxValueBytes)
        try budget.make(text?.utf8.count)
        return text ?? ""
    }

    private static func joined(_ values: [TemplateValue], _ separator: String, _ budget: TemplateBudget) throws -> String {
        var size: Int? = product(separator.utf8.count, max(values.count - 1, 0))
        for value in values {
            try budget.node()
            size = sum(size, try value.text().utf8.count)
        }
        try budget.make(size)
        return try values.map { try $0.text() }.joined(separator: separator)
    }

    static func test(_ name: String, _ value: TemplateValue) throws -> Bool {
        switch (name, value) {
        case ("defined", .undefined): return false
        case ("defined", _): return true
        case ("undefined", .undefined), ("none", .none): return true
        case ("string", .string), ("mapping", .object), ("boolean", .bool), ("integer", .int), ("float", .double): return true
        case ("number", .int), ("number", .double), ("number", .bool): return true
        case ("true", .bool(let flag)): return flag
        case ("false", .bool(let flag)): return !flag
        case ("iterable", .undefined), ("sequence", .undefined): return true
        case ("iterable", .string), ("iterable", .list), ("iterable", .object): return true
        case ("sequence", .string), ("sequence", .list), ("sequence", .object): return true
        default: return false
        }
    }

    // MARK: methods

    static func call(
        _ name: String, on value: TemplateValue, _ arguments: TemplateArguments, _ budget: TemplateBudget
    ) throws -> TemplateValue {
        if case .object(let object) = value { return try callObject(name, object, arguments, budget) }
        guard let text = value.string else {
            throw TextError("the chat template calls \(name) of a value that has no such method here")
        }
        let texts = TextFilters(budget)
        switch name {
        case "strip", "lstrip", "rstrip":
            try arguments.check(name, takes: "chars")
            let chars = try arguments.optionalText(0, "chars")
            return .string(try texts.strip(text, chars, start: name != "rstrip", end: name != "lstrip"))
        case "upper", "lower", "capitalize", "replace": return .string(try texts.apply(name, to: text, arguments))
        case "startswith", "endswith":
            try arguments.check(name, takes: "part")
            let part = try Unmarked(arguments.text(0, "part"), budget).text.utf8
            let bytes = try Unmarked(text, budget).text.utf8
            return .bool(name == "startswith" ? bytes.starts(with: part) : bytes.reversed().starts(with: part.reversed()))
        case "split":
            try arguments.check(name, takes: "sep", "maxsplit")
            let parts = try texts.split(text, arguments.optionalText(0, "sep"), limit: arguments.optionalInteger(1, "maxsplit"))
            return .list(try TemplateList(parts.map { .string($0) }))
        default: throw TextError("the chat template calls the method \(name), which is not supported here")
        }
    }

    private static func callObject(
        _ name: String, _ object: TemplateObject, _ arguments: TemplateArguments, _ budget: TemplateBudget
    ) throws -> TemplateValue {
        if name == "get" {
            try arguments.check(name, takes: "key", "default")
            return object[try arguments.text(0, "key")] ?? arguments.value(1, "default") ?? .none
        }
        try arguments.check(name)
        switch name {
        case "items": return try pairs(.object(object), budget)
        case "keys": return .list(try TemplateList(TemplateValue.object(object).items(budget)))
        case "values":
            try budget.makeEntries(object.members.count)
            return .list(try TemplateList(object.members.map(\.value)))
        default: throw TextError("the chat template calls the method \(name), which is not supported here")
        }
    }

    private static func pairs(_ value: TemplateValue, _ budget: TemplateBudget) throws -> TemplateValue {
        if value.isUndefined { return .list(try TemplateList([])) }
        guard case .object(let object) = value else { throw TextError("the chat template asks for the items of what has no members") }
        try budget.makeEntries(3 * object.members.count)
        return .list(try TemplateList(object.members.map { .list(try TemplateList([.string($0.key), $0.value])) }))
    }
}
