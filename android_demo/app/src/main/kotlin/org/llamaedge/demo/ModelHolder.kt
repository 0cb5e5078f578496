package org.llamaedge.demo

import android.os.Handler
import android.os.Looper
import java.io.File
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicInteger
import org.llamaedge.core.AppTarget
import org.llamaedge.core.Bundle
import org.llamaedge.core.BundleReader
import org.llamaedge.core.Engine
import org.llamaedge.core.LogitsEngine

/** A checked bundle and, while it is in memory, its engine. */
class LoadedModel(val bundle: Bundle) {
    private var engine: Engine? = null

    /** On the worker thread only. */
    fun engine(): Engine = engine ?: LogitsEngine(
        ExecuTorchModel(bundle.artifact, bundle.manifest.maxContext, bundle.manifest.maxPrefill),
    ).also { engine = it }

    fun unload() {
        engine?.close()
        engine = null
    }
}

/**
 * The models, and the one thread that touches them: it lives as long as the process, so turning the phone neither stops an
 * answer nor loads a model twice.
 */
class ModelHolder(private val publicKey: ByteArray?) {
    private val worker = Executors.newSingleThreadExecutor { Thread(it, "inference") }
    private val main = Handler(Looper.getMainLooper())
    private val pending = AtomicInteger()

    /** The model to chat with, and the guard in front of it; set on the main thread. */
    var chat: LoadedModel? = null
    var guard: LoadedModel? = null

    val busy: Boolean get() = pending.get() > 0

    /** Runs [work] off the main thread and hands its result, or what went wrong, back on it. */
    fun <T> run(work: () -> T, done: (Result<T>) -> Unit) {
        pending.incrementAndGet()
        worker.execute {
            // Whatever a native runtime throws must reach the screen, and not end the process.
            val result = runCatching(work)
            pending.decrementAndGet()
            main.post { done(result) }
        }
    }

    fun onMain(action: () -> Unit) {
        main.post(action)
    }

    /** Checks the whole contract of a bundle. */
    fun open(folder: File, onProgress: (Long, Long) -> Unit): LoadedModel =
        LoadedModel(BundleReader(listOf(ANDROID), publicKey, onProgress).open(folder))

    /** Frees the memory of the models; the next question loads them again. */
    fun unload() {
        val (first, second) = chat to guard
        worker.execute {
            first?.unload()
            second?.unload()
        }
    }

    private companion object {
        val ANDROID = AppTarget("android", "executorch")
    }
}
