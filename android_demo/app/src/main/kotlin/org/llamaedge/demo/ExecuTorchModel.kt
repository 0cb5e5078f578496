package org.llamaedge.demo

import java.io.File
import org.llamaedge.core.LogitsModel
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A `.pte` whose cache lives inside; `input_pos` says where to write, so a shorter sequence needs no reset. */
class ExecuTorchModel(file: File, override val maxContext: Int, override val maxPrefill: Int) : LogitsModel {
    // Mapped, not read: the weights stay pages of the file, which the system may drop and read again.
    private val module: Module = Module.load(file.path, Module.LOAD_MODE_MMAP)

    init {
        module.loadMethod("forward")
    }

    override fun forward(tokens: List<Int>, position: Int): FloatArray {
        val ids = LongArray(tokens.size) { tokens[it].toLong() }
        val outputs = module.forward(
            EValue.from(Tensor.fromBlob(ids, longArrayOf(1, ids.size.toLong()))),
            EValue.from(Tensor.fromBlob(longArrayOf(position.toLong()), longArrayOf(1))),
        )
        return outputs[0].toTensor().dataAsFloatArray
    }

    override fun close() = module.close()
}
