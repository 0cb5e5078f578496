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
    private let model: MLModel
    private let state: MLState
    /// A prediction blocks its thread, which must be none of Swift's shared pool.
    private nonisolated let queue = DispatchSerialQueue(label: "org.llamaedge.coreml")

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    init(_ bundle: CheckedBundle) async throws {
        maxContext = bundle.manifest.artifact.maxContext
        maxPrefill = bundle.manifest.artifact.maxPrefill
        vocabularySize = bundle.manifest.model.config.vocabSize
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .all
        model = try await MLModel.load(contentsOf: CompiledModels.url(of: bundle), configuration: configuration)
        try Self.check(model.modelDescription)
        state = model.makeState()
    }

    /// The opened model itself, against how it will be called: a finding of the contract where they differ.
    private static func check(_ description: MLModelDescription) throws {
        let inputs = description.inputDescriptionsByName
        let states = description.stateDescriptionsByName
        let isWhole = inputs[Name.tokens]?.multiArrayConstraint?.dataType == .int32
            && inputs[Name.position]?.multiArrayConstraint?.dataType == .int32
            && description.outputDescriptionsByName[Name.logits] != nil
            && Name.states.allSatisfy { states[$0] != nil }
        guard isWhole else {
            let found = (inputs.keys.sorted() + states.keys.sorted()).joined(separator: ", ")
            let wanted = ([Name.tokens, Name.position] + Name.states).joined(separator: ", ")
            throw RefusedBundle(findings: [Finding("artifact.interface", at: "model.mlpackage", expected: wanted, found: found)])
        }
    }

    func run(_ tokens: [Int], at position: Int) async throws -> [Float] {
        // The program does not check this: a write beyond the cache would land on what is still needed.
        guard !tokens.isEmpty, tokens.count <= maxPrefill, position >= 0, position + tokens.count <= maxContext else {
            throw EngineError("\(tokens.count) tokens at \(position) do not fit into \(maxContext)")
        }
        let ids = try MLMultiArray(shape: [1, NSNumber(value: tokens.count)], dataType: .int32)
        for (place, token) in tokens.enumerated() { ids[place] = NSNumber(value: Int32(token)) }
        let start = try MLMultiArray(shape: [1], dataType: .int32)
        start[0] = NSNumber(value: Int32(position))
        let features = try MLDictionaryFeatureProvider(dictionary: [Name.tokens: ids, Name.position: start])
        let output = try model.prediction(from: features, using: state)
        guard let logits = output.featureValue(for: Name.logits)?.multiArrayValue else {
            throw EngineError("the model gave no \(Name.logits)")
        }
        return try lastRow(logits)
    }

    /// The row of the last token: shape (1, tokens, vocabulary), or (1, 1, vocabulary) from a model that gives no other.
    private func lastRow(_ logits: MLMultiArray) throws -> [Float] {
        let shape = logits.shape.map(\.intValue)
        let strides = logits.strides.map(\.intValue)
        guard shape.count == 3, shape[1] > 0, shape[2] == vocabularySize else {
            throw EngineError("the model gave logits of the shape \(shape)")
        }
        let start = (shape[1] - 1) * strides[1]
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
