import Foundation

/// The last step: tokenizer, end tokens, sampling defaults and template against the manifest's golden texts.
struct TextCheck {
    let folder: URL
    let manifest: Manifest

    private static let endTokensPlace = "\(TextAssets.generationConfigFile): eos_token_id"
    /// Each may use up all that a rendering may cost; llama-edge writes nine texts and two dialogs.
    private static let maxGolden = 64
    private static let templatePlace = "\(TextAssets.tokenizerConfigFile): chat_template"

    func open() throws -> CheckedBundle {
        for (name, count) in [("golden_tokens", manifest.text.goldenTokens.count), ("golden_chats", manifest.text.goldenChats.count)]
        where count > Self.maxGolden {
            let place = "\(Manifest.fileName): text.\(name)"
            throw RefusedBundle(findings: [
                Finding("manifest.too_large", at: place, expected: "at most \(Self.maxGolden) entries", found: "\(count)")
            ])
        }
        let assets: TextAssets
        do {
            assets = try TextAssets(folder: folder)
        } catch let error as TextError {
            throw Self.unreadable("\(error)")
        }
        let dialog = Result { try encoder(assets) }
        let endOfAnswer = (try? dialog.get()).flatMap(EndTokens.afterAnswer)
        var findings = try checkTokenizer(assets) + checkEndTokens(assets, endOfAnswer)
        if assets.generationDefaults != manifest.generationDefaults {
            findings.append(
                Finding(
                    "text.generation_defaults", at: TextAssets.generationConfigFile, expected: Self.shown(manifest.generationDefaults),
                    found: Self.shown(assets.generationDefaults)))
        }
        findings += checkTemplate(assets, dialog)
        guard findings.isEmpty, let dialog = try dialog.get() else { throw RefusedBundle(findings: findings) }
        return CheckedBundle(folder: folder, manifest: manifest, dialog: dialog)
    }

    private static func unreadable(_ found: String) -> RefusedBundle {
        RefusedBundle(findings: [Finding("tokenizer.unreadable", at: Tokenizer.fileName, expected: "files that can be read", found: found)])
    }

    /// nil without a template.
    private func encoder(_ assets: TextAssets) throws -> DialogEncoder? {
        try assets.compiledTemplate().map { template in
            DialogEncoder(
                tokenizer: assets.tokenizer, template: template, beginsOrEnds: beginsOrEnds, contentParts: manifest.text.contentParts ?? false)
        }
    }

    private var beginsOrEnds: Set<Int> { Set(manifest.text.eosTokenIds + (manifest.text.bosTokenId.map { [$0] } ?? [])) }

    private static func shown(_ values: [String: JSONValue]) -> String {
        JSONValue.object(JSONObject(values.map { ($0.key, $0.value) })).dumped(JSONStyle(sortKeys: true))
    }

    private static func shown(_ value: (some Any)?) -> String {
        value.map { "\($0)" } ?? "none"
    }

    private func checkTokenizer(_ assets: TextAssets) -> [Finding] {
        let written = manifest.text
        var findings: [Finding] = []
        if assets.tokenizerSHA256 != written.tokenizerSha256 {
            findings.append(Finding("tokenizer.sha256", at: Tokenizer.fileName, expected: written.tokenizerSha256, found: assets.tokenizerSHA256))
        }
        let config = TextAssets.tokenizerConfigFile
        if assets.bosTokenID != written.bosTokenId {
            findings.append(
                Finding(
                    "tokenizer.bos", at: "\(config): bos_token", expected: Self.shown(written.bosTokenId), found: Self.shown(assets.bosTokenID)))
        }
        for found in [assets.addBOS, assets.addBOSFlag] where found != written.addBos {
            findings.append(Finding("tokenizer.bos", at: "\(config): add_bos_token", expected: "\(written.addBos)", found: "\(found)"))
            break
        }
        let control = Set(assets.tokenizer.controlTokens(literals: [], beginsOrEnds: beginsOrEnds).map(\.id))
        for (place, golden) in written.goldenTokens.enumerated() {
            let location = "\(Tokenizer.fileName): golden_tokens[\(place)] (\(golden.language))"
            do {
                let tokens = try assets.tokenizer.encode(golden.text, where: control.contains)
                guard tokens != golden.tokens else { continue }
                let (wanted, found) = Self.firstDifference(golden.tokens, tokens)
                findings.append(Finding("tokenizer.golden_tokens", at: location, expected: wanted, found: found))
            } catch {
                // What took too long would do so for the next text as well.
                findings.append(Finding("tokenizer.golden_tokens", at: location, expected: "\(golden.tokens.count) tokens", found: "\(error)"))
                break
            }
        }
        let rows = manifest.model.config.vocabSize
        let ids = written.eosTokenIds + written.goldenTokens.flatMap(\.tokens) + [assets.tokenizer.vocabularySize - 1]
        if let largest = ids.max(), largest >= rows {
            findings.append(
                Finding(
                    "tokenizer.vocabulary", at: Tokenizer.fileName, expected: "token ids below the model's \(rows) rows", found: "id \(largest)"))
        }
        return findings
    }

    /// The manifest's list, which the app waits for, against what each file and the template say.
    private func checkEndTokens(_ assets: TextAssets, _ endOfAnswer: Int?) throws -> [Finding] {
        let (tokenizer, template, written) = (assets.tokenizer, assets.chatTemplate, endOfAnswer.map { [$0] } ?? [])
        let ofFiles = EndTokens.implied(tokenizer, template, named: assets.namedEnds + written)
        guard !ofFiles.isEmpty else { throw Self.unreadable("no end-of-sequence token is named anywhere") }
        let expected = Set(manifest.text.eosTokenIds)
        let wanted = "\(expected.sorted())"
        let implied = EndTokens.implied(tokenizer, template, named: manifest.text.eosTokenIds + written)
        var findings: [Finding] = []
        if !implied.isSubset(of: expected) {
            findings.append(Finding("eos.missing", at: "\(Manifest.fileName): text.eos_token_ids", expected: "\(implied.sorted())", found: wanted))
        }
        let listed = Set(try TextAssets.ids(assets.generationConfig, "eos_token_id"))
        let main = assets.namedTokens["eos_token"].flatMap(tokenizer.id)
        let missing = expected.subtracting(listed)
        if !missing.isEmpty {
            let code = missing.count == 1 && missing.first == main ? "eos.precedence" : "eos.missing"
            findings.append(Finding(code, at: Self.endTokensPlace, expected: wanted, found: "\(listed.sorted())"))
        }
        if !listed.isSubset(of: implied) {
            findings.append(Finding("eos.foreign", at: Self.endTokensPlace, expected: wanted, found: "\(listed.sorted())"))
        }
        // A template that writes it by this name does so whatever ends a turn.
        if EndTokens.mentions(template, "eos_token") { return findings }
        let place = "\(TextAssets.tokenizerConfigFile): eos_token"
        let token = main.flatMap(tokenizer.token)
        let mainEnd = EndTokens.main(tokenizer, template, named: assets.namedTokens["eos_token"], ends: ofFiles)
        if let main, !implied.contains(main) {
            findings.append(Finding("eos.foreign", at: place, expected: "one of the ids \(wanted)", found: "\(main)"))
        } else if token.map(ExactString.init) != mainEnd.map(ExactString.init) {
            findings.append(Finding("eos.precedence", at: place, expected: Self.shown(mainEnd), found: Self.shown(token)))
        }
        return findings
    }

    private func checkTemplate(_ assets: TextAssets, _ dialog: Result<DialogEncoder?, any Error>) -> [Finding] {
        let chats = manifest.text.goldenChats
        guard let source = assets.chatTemplate, !chats.isEmpty else {
            let found = assets.chatTemplate == nil ? "none" : "one without a sample dialog"
            return [Finding("template.missing", at: Self.templatePlace, expected: "a template", found: found)]
        }
        var findings: [Finding] = []
        let written = manifest.text.chatTemplate ?? ""
        if !sameText(source, written) {
            let (wanted, found) = Self.firstDifference(written, source)
            findings.append(Finding("template.source", at: Self.templatePlace, expected: wanted, found: found))
        }
        do {
            guard let dialog = try dialog.get() else { return findings }
            // All are rendered before one is compared: a template that fails is no template, whatever it began with.
            let rendered = try chats.map { chat in (chat, try dialog.render(chat.messages.map(JSONValue.init))) }
            var differences: [Finding] = []
            for (place, (chat, text)) in rendered.enumerated() {
                try differences += check(text, chat, at: place, dialog)
            }
            return findings + differences
        } catch {
            return findings + [Finding("template.unrenderable", at: Self.templatePlace, expected: "a template that renders", found: "\(error)")]
        }
    }

    private func check(
        _ text: String, _ chat: Manifest.GoldenChat, at place: Int, _ dialog: DialogEncoder
    ) throws -> [Finding] {
        let place = "\(Self.templatePlace), golden_chats[\(place)]"
        if !sameText(text, chat.text) {
            let (wanted, found) = Self.firstDifference(chat.text, text)
            return [Finding("template.text", at: place, expected: wanted, found: found)]
        }
        let tokens = try dialog.encode(chat.messages.map(JSONValue.init))
        guard tokens != chat.tokens else { return [] }
        let (wanted, found) = Self.firstDifference(chat.tokens, tokens)
        return [Finding("template.tokens", at: place, expected: wanted, found: found)]
    }

    /// What stands at the first place at which two lists of tokens part.
    private static func firstDifference(_ expected: [Int], _ found: [Int]) -> (String, String) {
        let place = zip(expected, found).enumerated().first { $1.0 != $1.1 }?.offset ?? min(expected.count, found.count)
        func shown(_ tokens: [Int]) -> String { place < tokens.count ? String(tokens[place]) : "the end" }
        return ("\(shown(expected)) as token \(place)", shown(found))
    }

    private static func firstDifference(_ expected: String, _ found: String) -> (String, String) {
        let (a, b) = (Array(expected.unicodeScalars), Array(found.unicodeScalars))
        let place = zip(a, b).enumerated().first { $1.0 != $1.1 }?.offset ?? min(a.count, b.count)
        func shown(_ text: [Unicode.Scalar]) -> String {
            "\"" + String(String.UnicodeScalarView(text[min(max(0, place - 12), text.count)..<min(place + 12, text.count)])) + "\""
        }
        return ("\(shown(a)) at character \(place)", shown(b))
    }
}

extension JSONValue {
    /// A message of a manifest.
    init(_ message: [String: String]) {
        self = .object(JSONObject(message.sorted { $0.key < $1.key }.map { ($0.key, .string($0.value)) }))
    }
}
