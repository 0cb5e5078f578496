package org.llamaedge.twin

import java.io.File
import kotlin.system.exitProcess
import org.llamaedge.core.AppTarget
import org.llamaedge.core.BundleReader
import org.llamaedge.core.Chat
import org.llamaedge.core.ChatListener
import org.llamaedge.core.Json
import org.llamaedge.core.Refused
import org.llamaedge.core.Tool
import org.llamaedge.core.ToolCall

/**
 * The app without a phone: its own checks, template, tokenizer, streaming and tools, over a bundle that `llama-edge serve --stdio` runs.
 *
 * Arguments: the bundle, then the command that starts the program (`llama-edge`). Standard input, one line each: a question;
 * `/reset`; `/stop N QUESTION` cancels after N pieces of text; `/until TEXT QUESTION` ends the answer before TEXT. Standard
 * output: one JSON object for each line.
 */
fun main(arguments: Array<String>) {
    if (arguments.size < 2) {
        System.err.println("usage: twin BUNDLE COMMAND...")
        exitProcess(2)
    }
    val bundle = try {
        BundleReader(listOf(AppTarget("android", "executorch"))).open(File(arguments[0]))
    } catch (refused: Refused) {
        val findings = refused.findings.map { mapOf("code" to it.code, "where" to it.where, "what" to it.what) }
        println(Json.write(mapOf("refused" to findings)))
        exitProcess(1)
    }
    val process = ProcessBuilder(arguments.drop(1) + listOf("serve", arguments[0], "--stdio")).redirectError(ProcessBuilder.Redirect.INHERIT).start()
    ServeEngine(process).use { engine ->
        val clock = Tool("current_time", "The time now", mapOf("type" to "object")) { "12:30" }
        fun chat(stops: List<String> = emptyList()) = Chat(
            bundle.text, engine, systemPrompt = "You are a helpful assistant.", tools = listOf(clock), stops = stops, maxNewTokens = 48,
        )
        var chat = chat()
        for (line in generateSequence(::readlnOrNull)) {
            val words = line.split(' ', limit = 3)
            when (words[0]) {
                "/reset" -> chat.reset().also { println(Json.write(mapOf("reset" to true))) }
                "/stop" -> println(ask(chat, words[2], words[1].toInt()))
                "/until" -> {
                    chat = chat(listOf(words[1]))
                    println(ask(chat, words[2], null))
                }
                else -> println(ask(chat, line, null))
            }
        }
    }
}

private fun ask(chat: Chat, question: String, cancelAfter: Int?): String {
    val pieces = ArrayList<String>()
    val calls = ArrayList<String>()
    val answer = chat.ask(
        question,
        object : ChatListener {
            override fun onText(piece: String) {
                pieces += piece
                if (pieces.size == cancelAfter) chat.cancel()
            }

            override fun onToolCall(call: ToolCall, result: String) {
                calls += call.name
            }
        },
    )
    return Json.write(
        mapOf(
            "text" to answer.text, "pieces" to pieces.size, "new_tokens" to answer.newTokens, "reason" to answer.reason.name,
            "messages" to chat.messages.size, "calls" to calls,
        ),
    )
}
