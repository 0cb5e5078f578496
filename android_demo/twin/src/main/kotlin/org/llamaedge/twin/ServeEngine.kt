package org.llamaedge.twin

import java.io.BufferedReader
import java.io.IOException
import java.io.Writer
import org.llamaedge.core.Engine
import org.llamaedge.core.Json
import org.llamaedge.core.Sampling
import org.llamaedge.core.StopReason

/** The engine of a desktop: `llama-edge serve --stdio`, which runs the written artifact, over JSON lines. */
class ServeEngine(private val process: Process) : Engine {
    private val requests: Writer = process.outputStream.bufferedWriter()
    private val replies: BufferedReader = process.inputStream.bufferedReader()

    override val maxContext: Int

    init {
        send(mapOf("op" to "open"))
        val opened = receive()["opened"] as? Map<*, *> ?: throw IOException("the bundle was not opened")
        maxContext = (opened["max_context"] as Long).toInt()
    }

    private fun send(request: Map<String, Any?>) {
        requests.write(Json.write(request) + "\n")
        requests.flush()
    }

    private fun receive(): Map<*, *> {
        val line = replies.readLine() ?: throw IOException("llama-edge serve has ended")
        val reply = Json.parse(line) as Map<*, *>
        (reply["error"] as? Map<*, *>)?.let { throw IOException("${it["class"]}: ${it["message"]}") }
        return reply
    }

    override fun generate(
        prompt: List<Int>, ends: Set<Int>, maxNewTokens: Int, sampling: Sampling, onToken: (Int) -> Boolean,
    ): StopReason {
        send(
            mapOf(
                "op" to "generate", "tokens" to prompt, "ends" to ends.toList(), "max_new_tokens" to maxNewTokens,
                "temperature" to sampling.temperature, "top_p" to sampling.topP, "top_k" to sampling.topK, "seed" to sampling.seed,
            ),
        )
        var wanted = true
        while (true) {
            val reply = receive()
            val token = reply["token"] as? Long
            if (token == null) return if (wanted) REASONS.getValue(reply["done"]) else StopReason.CANCELLED
            if (wanted && !onToken(token.toInt())) {
                wanted = false
                send(mapOf("op" to "cancel"))
            }
        }
    }

    override fun reset() {
        send(mapOf("op" to "reset"))
        receive()
    }

    override fun close() {
        send(mapOf("op" to "close"))
        requests.close()
        process.waitFor()
    }

    private companion object {
        val REASONS = mapOf<Any?, StopReason>(
            "eos" to StopReason.END_TOKEN, "max_new_tokens" to StopReason.MAX_NEW_TOKENS,
            "context_full" to StopReason.CONTEXT_FULL, "cancelled" to StopReason.CANCELLED,
        )
    }
}
