import Foundation

/// A bundle's text files, read as `llama_edge/text/text_assets.py` reads them.
struct TextAssets {
    static let tokenizerConfigFile = "tokenizer_config.json"
    static let generationConfigFile = "generation_config.json"
    static let templateFile = "chat_template.jinja"
    /// tokenizer_config.json of a thousand added tokens has half a megabyte.
    private static let maxConfigBytes = 16 << 20
    private static let maxConfigValues = 400_000
    /// Tokens that end a document, whatever the template.
    private static let documentEnds = ["<|end_of_text|>", "<|endoftext|>"]
    /// A template that mentions the first token lets the model end its turn by any of the second.
    private static let turnEnds = [("<|eot_id|>", ["<|eot_id|>", "<|eom_id|>"]), ("<|im_end|>", ["<|im_end|>"])]
    private static let generationKeys = ["do_sample", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"]

    let tokenizerSHA256: String
    let tokenizer: Tokenizer
    let chatTemplate: String?
    let bosTokenID: Int?
    let addBOS: Bool
    let eosTokenIDs: [Int]
    let generationDefaults: [String: JSONValue]
    let generationConfig: JSONObject
    let tokenizerConfig: JSONObject

    init(folder: URL) throws {
        let data = try Self.contents(folder.appendingPathComponent(Tokenizer.fileName), maxBytes: Tokenizer.maxBytes)
        tokenizerSHA256 = sha256(of: data)
        tokenizer = try Tokenizer(json: data)
        tokenizerConfig = try Self.object(folder, Self.tokenizerConfigFile)
        generationConfig = try Self.object(folder, Self.generationConfigFile)
        let modelConfig = try Self.object(folder, "config.json")
        chatTemplate = try Self.template(folder, tokenizerConfig)
        var bos = try Self.tokenID(tokenizerConfig["bos_token"], tokenizer)
        if bos == nil, tokenizerConfig["bos_token"] == nil {
            bos = try Self.ids(generationConfig, "bos_token_id").first ?? Self.ids(modelConfig, "bos_token_id").first
        }
        bosTokenID = bos
        addBOS = bos != nil && (tokenizerConfig["add_bos_token"]?.boolValue ?? (tokenizer.firstAddedID == bos))
        var ends = try Self.ids(generationConfig, "eos_token_id") + Self.ids(modelConfig, "eos_token_id")
        if let main = try Self.tokenID(tokenizerConfig["eos_token"], tokenizer) { ends.append(main) }
        eosTokenIDs = Self.endTokenIDs(tokenizer, chatTemplate, named: ends)
        guard !eosTokenIDs.isEmpty else { throw TextError("no end-of-sequence token is named anywhere") }
        generationDefaults = try Self.defaults(generationConfig)
    }

    /// Every id that ends a turn: those the files name, and those the vocabulary implies.
    static func endTokenIDs(_ tokenizer: Tokenizer, _ template: String?, named: [Int]) -> [Int] {
        var tokens = documentEnds
        for (sign, ends) in turnEnds where template?.contains(sign) ?? false { tokens += ends }
        let implied = tokens.compactMap { tokenizer.id(of: $0) }.filter(tokenizer.isSpecial)
        return Set(named + implied).sorted()
    }

    /// The end token for tools that know only one: the turn's end if there is a chat template.
    var mainEndToken: String? {
        for (token, _) in Self.turnEnds where chatTemplate?.contains(token) ?? false {
            if let id = tokenizer.id(of: token), eosTokenIDs.contains(id) { return token }
        }
        return eosTokenIDs.first.flatMap { tokenizer.token(of: $0) }
    }

    /// The compiled template, with this tokenizer's tokens.
    func compiledTemplate() throws -> ChatTemplate? {
        try chatTemplate.map { source in
            let bos = bosTokenID.flatMap { tokenizer.token(of: $0) } ?? ""
            return try ChatTemplate(source, bosToken: bos, eosToken: mainEndToken ?? "")
        }
    }

    private static func contents(_ url: URL, maxBytes: Int) throws -> Data {
        let name = url.lastPathComponent
        guard isRegularFile(url), let size = fileSize(url) else { throw TextError("\(name) is missing") }
        guard size <= maxBytes else { throw TextError("\(name) has \(size) bytes; at most \(maxBytes) are read") }
        guard let data = try? Data(contentsOf: url) else { throw TextError("\(name) cannot be read") }
        return data
    }

    private static func object(_ folder: URL, _ name: String) throws -> JSONObject {
        let url = folder.appendingPathComponent(name)
        guard isRegularFile(url) else { return JSONObject() }
        do {
            guard let object = try JSONValue(parsing: contents(url, maxBytes: maxConfigBytes), maxValues: maxConfigValues).objectValue else {
                throw TextError("\(name) is no JSON object")
            }
            return object
        } catch let error as JSONError {
            throw TextError("\(name) is no JSON: \(error)")
        } catch let error as JSONTooManyValues {
            throw TextError("\(name) has more than \(error.limit) values")
        }
    }

    /// `chat_template.jinja` goes before tokenizer_config.json, as in transformers.
    private static func template(_ folder: URL, _ config: JSONObject) throws -> String? {
        let url = folder.appendingPathComponent(templateFile)
        if isRegularFile(url) {
            guard let text = String(validatingUTF8Bytes: try contents(url, maxBytes: maxConfigBytes)) else {
                throw TextError("\(templateFile) is not UTF-8")
            }
            return text
        }
        var value = config["chat_template"]
        if let named = value?.arrayValue { value = named.last { $0["name"]?.stringValue == "default" }?["template"] }
        guard let value, !value.isNull else { return nil }
        guard let text = value.stringValue else { throw TextError("\(tokenizerConfigFile): chat_template is no text") }
        return text
    }

    /// An id or a list of ids; null and an absent key are none.
    static func ids(_ source: JSONObject, _ key: String) throws -> [Int] {
        guard let value = source[key], !value.isNull else { return [] }
        return try (value.arrayValue ?? [value]).map { entry in
            guard case .int(let id) = entry else { throw TextError("\(key) is \(value.compact); a token id or a list of them is needed") }
            return id
        }
    }

    /// The text of a token that is given as text or as an object with `content`.
    static func content(_ token: JSONValue?) -> String? {
        token?["content"]?.stringValue ?? token?.stringValue
    }

    private static func tokenID(_ token: JSONValue?, _ tokenizer: Tokenizer) throws -> Int? {
        guard let token, !token.isNull else { return nil }
        guard let content = content(token), let id = tokenizer.id(of: content) else {
            throw TextError("\(tokenizerConfigFile) names the token \(token.compact), which the tokenizer lacks")
        }
        return id
    }

    private static func defaults(_ config: JSONObject) throws -> [String: JSONValue] {
        var kept: [String: JSONValue] = [:]
        for key in generationKeys {
            guard let value = config[key], !value.isNull else { continue }
            guard value.boolValue != nil || abs(value.doubleValue ?? .infinity) < 1e6 else {
                throw TextError("\(generationConfigFile): \(key) is \(value.compact); not a number")
            }
            kept[key] = value
        }
        return kept
    }
}
