import Foundation

/// A bundle's text files, read as `llama_edge/text/text_assets.py` reads them.
struct TextAssets {
    static let tokenizerConfigFile = "tokenizer_config.json"
    static let generationConfigFile = "generation_config.json"
    static let templateFile = "chat_template.jinja"
    /// tokenizer_config.json of a thousand added tokens has half a megabyte.
    private static let maxConfigBytes = 16 << 20
    private static let maxConfigValues = 400_000
    private static let generationKeys = ["do_sample", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"]

    /// Classes in which `add_bos_token` decides; in others the tokenizer's own post-processor does.
    private static let classesWithFlag = ["LlamaTokenizer", "LlamaTokenizerFast"]

    let tokenizerSHA256: String
    let tokenizer: Tokenizer
    let chatTemplate: String?
    let namedTokens: [String: String]
    let bosTokenID: Int?
    let addBOS: Bool
    /// What tokenizer_config.json says of it, for programs that go by it.
    let addBOSFlag: Bool
    /// The end tokens that the files name and that count.
    let namedEnds: [Int]
    let generationDefaults: [String: JSONValue]
    let generationConfig: JSONObject

    init(folder: URL) throws {
        let data = try Self.contents(folder.appendingPathComponent(Tokenizer.fileName), maxBytes: Tokenizer.maxBytes)
        tokenizerSHA256 = sha256(of: data)
        tokenizer = try Tokenizer(json: data)
        let config = try Self.object(folder, Self.tokenizerConfigFile)
        generationConfig = try Self.object(folder, Self.generationConfigFile)
        let modelConfig = try Self.object(folder, "config.json")
        chatTemplate = try Self.template(folder, config)
        namedTokens = try NamedTokens.read(config: config, specialTokens: Self.object(folder, NamedTokens.fileName))
        var bos = namedTokens["bos_token"].flatMap(tokenizer.id)
        if namedTokens["bos_token"] == nil, !(config["bos_token"]?.isNull ?? false) {
            bos = try Self.ids(generationConfig, "bos_token_id").first ?? Self.ids(modelConfig, "bos_token_id").first
        }
        bosTokenID = bos
        let flag = config["add_bos_token"]?.boolValue
        addBOSFlag = flag ?? false
        let isByFlag = config["tokenizer_class"]?.stringValue.map(Self.classesWithFlag.contains) ?? false
        addBOS = bos != nil && (isByFlag ? flag : nil) ?? (tokenizer.firstAddedID == bos)
        namedEnds = EndTokens.named(
            generation: try Self.ids(generationConfig, "eos_token_id"), model: try Self.ids(modelConfig, "eos_token_id"),
            main: namedTokens["eos_token"].flatMap(tokenizer.id), tokenizer)
        generationDefaults = try Self.defaults(generationConfig)
    }

    /// The compiled template, with this tokenizer's tokens.
    func compiledTemplate() throws -> ChatTemplate? {
        try chatTemplate.map { try ChatTemplate($0, specialTokens: namedTokens) }
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
