#if canImport(ExecuTorch)
    import BundleCore
    import ExecuTorch
    import Foundation

    /// A `.pte` through ExecuTorch's Swift package: `forward(tokens, position)` gives logits, the cache is inside of the program.
    actor ExecuTorchEngine: Engine {
        nonisolated let maxContext: Int
        nonisolated let maxPrefill: Int
        private let vocabularySize: Int
        private let module: Module
        private nonisolated let queue = DispatchSerialQueue(label: "org.llamaedge.executorch")

        nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

        init(_ bundle: CheckedBundle) throws {
            maxContext = bundle.manifest.artifact.maxContext
            maxPrefill = bundle.manifest.artifact.maxPrefill
            vocabularySize = bundle.manifest.model.config.vocabSize
            module = Module(filePath: bundle.artifact.path)
            try module.load("forward")
        }

        func run(_ tokens: [Int], at position: Int) async throws -> [Float] {
            guard !tokens.isEmpty, tokens.count <= maxPrefill, position >= 0, position + tokens.count <= maxContext else {
                throw EngineError("\(tokens.count) tokens at \(position) do not fit into \(maxContext)")
            }
            let ids = Tensor<Int64>(tokens.map(Int64.init), shape: [1, tokens.count])
            let start = Tensor<Int64>([Int64(position)], shape: [1])
            let outputs: [Value] = try module.forward([ids, start])
            guard let logits: Tensor<Float> = outputs.first?.tensor() else { throw EngineError("the model gave no logits") }
            let row = logits.scalars().suffix(vocabularySize)
            guard row.count == vocabularySize else { throw EngineError("the model gave \(row.count) logits") }
            return Array(row)
        }
    }
#endif
