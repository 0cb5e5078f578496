import BundleCore
import CoreML
import Foundation

/// A stateful ML program, called as `docs/coreml.md` says: `inputIds` and `position` go in, `logits` come out, the cache is the
/// model's state.
actor CoreMLEngine: Engine {
    private enum Name {
        static let tokens = "inputIds"
        static let position = "position"
        static let logits = "logits"
        static let states = ["keyCache", "valueCache"]
    }

    nonisolated let maxContext: Int
    nonisolated let maxPrefill: Int
    private let vocabularySize: Int
    /// The program's functions by the number of tokens that they take; under 0 the one that takes any.
    private let models: [Int: MLModel]
    /// One for all functions.
    private let state: MLState
    /// A prediction blocks its thread, which must be none of Swift's shared pool.
    private nonisolated let queue = DispatchSerialQueue(label: "org.llamaedge.coreml")

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    init(_ bundle: CheckedBundle) async throws {
        maxContext = bundle.manifest.artifact.maxContext
        maxPrefill = bundle.manifest.artifact.maxPrefill
        vocabularySize = bundle.manifest.model.config.vocabSize
        let url = try await CompiledModels.url(of: bundle)
        let names = try await MLModelAsset(url: url).functionNames
        var loaded: [Int: MLModel] = [:]
        for name in names.isEmpty ? [nil] : names.map(Optional.some) {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = .all
            // A program with one function has it under its default name.
            if names.count > 1 { configuration.functionName = name }
            let model = try await MLModel.load(contentsOf: url, configuration: configuration)
            let length = try Self.checkedLength(model.modelDescription)
            loaded[names.count > 1 ? length : 0] = model
        }
        guard let first = loaded[0] ?? loaded[1] else {
            throw Self.refusal("a function that takes a single token", "functions for \(loaded.keys.sorted()) tokens")
        }
        models = loaded
        state = first.makeState()
    }

    private static func refusal(_ expected: String, _ found: String) -> RefusedBundle {
        RefusedBundle(findings: [Finding("artifact.interface", at: "model.mlpackage", expected: expected, found: found)])
    }

    /// The opened model itself, against how it will be called; the number of tokens in its description.
    private static func checkedLength(_ description: MLModelDescription) throws -> Int {
        let inputs = description.inputDescriptionsByName
        let states = description.stateDescriptionsByName
        let tokens = inputs[Name.tokens]?.multiArrayConstraint
        let isWhole = tokens?.dataType == .int32 && inputs[Name.position]?.multiArrayConstraint?.dataType == .int32
            && description.outputDescriptionsByName[Name.logits] != nil
            && Name.states.allSatisfy { states[$0] != nil }
        guard isWhole, let length = tokens?.shape.last?.intValue else {
            let wanted = ([Name.tokens, Name.position] + Name.states).joined(separator: ", ")
            throw refusal(wanted, (inputs.keys.sorted() + states.keys.sorted()).joined(separator: ", "))
        }
        return length
    }

    func run(_ tokens: [Int], at position: Int) async throws -> [Float] {
        // The program does not check this: a write beyond the cache would land on what is still needed.
        guard !tokens.isEmpty, tokens.count <= maxPrefill, position >= 0, position + tokens.count <= maxContext else {
            throw EngineError("\(tokens.count) tokens at \(position) do not fit into \(maxContext)")
        }
        if let model = models[0] { return try predict(model, tokens, places: tokens.count, at: position) }
        var logits: [Float] = []
        var done = 0
        let lengths = models.keys.sorted()
        for call in CallPlan.calls(for: tokens.count, used: position, maxContext: maxContext, lengths: lengths) {
            guard let model = models[call.places] else { throw EngineError("no function takes \(call.places) tokens") }
            let piece = Array(tokens[done..<done + call.count])
            logits = try predict(model, piece, places: call.places, at: position + done)
            done += call.count
        }
        return logits
    }

    /// Logits behind the last of the tokens; places behind them are filled with token 0, whose logits nobody reads.
    private func predict(_ model: MLModel, _ tokens: [Int], places: Int, at position: Int) throws -> [Float] {
        let ids = try MLMultiArray(shape: [1, NSNumber(value: places)], dataType: .int32)
        for place in 0..<places { ids[place] = NSNumber(value: place < tokens.count ? Int32(tokens[place]) : 0) }
        let start = try MLMultiArray(shape: [1], dataType: .int32)
        start[0] = NSNumber(value: Int32(position))
        let features = try MLDictionaryFeatureProvider(dictionary: [Name.tokens: ids, Name.position: start])
        let output = try model.prediction(from: features, using: state)
        guard let logits = output.featureValue(for: Name.logits)?.multiArrayValue else {
            throw EngineError("the model gave no \(Name.logits)")
        }
        return try row(tokens.count - 1, of: logits)
    }

    /// One token's row of logits, shape (1, tokens, vocabulary).
    private func row(_ token: Int, of logits: MLMultiArray) throws -> [Float] {
        let shape = logits.shape.map(\.intValue)
        let strides = logits.strides.map(\.intValue)
        guard shape.count == 3, shape[1] > token, shape[2] == vocabularySize else {
            throw EngineError("the model gave logits of the shape \(shape)")
        }
        let start = token * strides[1]
        let places = (0..<vocabularySize).lazy.map { start + $0 * strides[2] }
        switch logits.dataType {
        case .float16: return logits.withUnsafeBufferPointer(ofType: Float16.self) { row in places.map { Float(row[$0]) } }
        case .float32: return logits.withUnsafeBufferPointer(ofType: Float.self) { row in places.map { row[$0] } }
        default: throw EngineError("the model gave logits that are no floats")
        }
    }
}

/// Core ML compiles a package before it loads it; the result is kept, by the hash of what was compiled.
enum CompiledModels {
    static func url(of bundle: CheckedBundle) async throws -> URL {
        let files = FileManager.default
        let hashes = bundle.manifest.files.map(\.sha256).joined()
        let folder = URL.cachesDirectory.appending(path: "compiled", directoryHint: .isDirectory)
        let kept = folder.appending(path: "\(sha256(of: Data(hashes.utf8))).mlmodelc", directoryHint: .isDirectory)
        if files.fileExists(atPath: kept.path) { return kept }
        let compiled = try await MLModel.compileModel(at: bundle.artifact)
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        try files.moveItem(at: compiled, to: kept)
        return kept
    }
}
