/// The special tokens that a bundle's files name, under the names by which a template writes them: the rules of transformers, as
/// `llama_edge/text/special_tokens.py` has them. A name that no file gives is none.
enum NamedTokens {
    static let fileName = "special_tokens_map.json"
    private static let standard = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]

    /// Where the config has `added_tokens_decoder`, special_tokens_map.json does not count.
    static func read(config: JSONObject, specialTokens: JSONObject) throws -> [String: String] {
        var found: [String: String] = [:]
        for source in config["added_tokens_decoder"] == nil ? [config, specialTokens] : [config] {
            for (name, value) in source.members where standard.contains(name) || isModelSpecific(name, value) {
                found[name] = try content(name, value)
            }
            for (name, value) in source["extra_special_tokens"]?.objectValue?.members ?? [] { found[name] = try content(name, value) }
        }
        return found
    }

    /// A name of the model's own, such as `image_token`; `add_bos_token` is a setting.
    private static func isModelSpecific(_ name: String, _ value: JSONValue) -> Bool {
        name.hasSuffix("_token") && (value.stringValue != nil || value["content"] != nil)
    }

    /// A token as text or as an object; an empty one is none.
    private static func content(_ name: String, _ value: JSONValue) throws -> String? {
        if value.isNull { return nil }
        guard let text = value["content"]?.stringValue ?? value.stringValue else {
            throw TextError("\(name) is \(value.compact), which is no token; a text, or an object with its content, is needed")
        }
        return text.isEmpty ? nil : text
    }
}
