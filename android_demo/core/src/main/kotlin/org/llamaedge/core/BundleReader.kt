package org.llamaedge.core

import java.io.File
import java.io.IOException
import java.security.MessageDigest

/** What this app loads. */
data class AppTarget(val target: String, val backend: String)

/** A bundle whose whole contract held: it may be loaded. */
class Bundle(val root: File, val manifest: Manifest, val text: TextModel) {
    /** The file that the runtime opens. */
    val artifact: File get() = File(root, manifest.files.first().path)
}

/**
 * Opens a bundle in steps and stops after the first that finds something, since the next would trust what that one refused:
 * manifest, signature, places, files, purpose, text. The order is that of `llama_edge/bundle/app_check.py`.
 *
 * @param accepts what the app has a runtime for
 * @param publicKey 32 bytes that the app ships; with it, only signed bundles are loaded
 * @param onProgress bytes hashed so far, and in all; may throw to cancel
 */
class BundleReader(
    private val accepts: List<AppTarget>,
    private val publicKey: ByteArray? = null,
    private val onProgress: (Long, Long) -> Unit = { _, _ -> },
) {
    /** Throws [Refused] with every fault of the step that failed. */
    fun open(root: File): Bundle {
        val bytes = manifestBytes(root)
        val manifest = Manifest.parse(bytes)
        SignatureFile(root).check(bytes, publicKey)?.let { throw Refused(it) }
        val found = Entries(root)
        refuse(places(manifest) + found.strange)
        refuse(files(root, manifest) + unlisted(found, manifest))
        refuse(purpose(manifest))
        return TextContract(root, manifest).check()
    }

    private fun refuse(findings: List<Finding>) {
        if (findings.isNotEmpty()) throw Refused(findings)
    }

    private fun manifestBytes(root: File): ByteArray {
        val file = File(root, Manifest.FILE)
        if (!file.isFile) throw Refused(Finding("manifest.missing", Manifest.FILE, Manifest.FILE, "no such file"))
        if (file.length() > Manifest.MAX_BYTES) {
            throw Refused(Finding("manifest.too_large", Manifest.FILE, "at most ${Manifest.MAX_BYTES} bytes", "${file.length()} bytes"))
        }
        return readAll(file)
    }

    private fun places(manifest: Manifest): List<Finding> = manifest.files.mapNotNull { entry ->
        val parts = entry.path.split('/')
        if (".." in parts || "." in parts || "" in parts) {
            Finding("files.outside", Manifest.FILE, "paths inside of the bundle", "'${entry.path}'")
        } else {
            null
        }
    }

    private fun files(root: File, manifest: Manifest): List<Finding> {
        val total = manifest.files.sumOf { it.sizeBytes }
        var done = 0L
        return manifest.files.mapNotNull { entry ->
            val file = File(root, entry.path)
            val size = if (file.isFile) file.length() else null
            when (size) {
                null -> Finding("files.missing", entry.path, "${entry.sizeBytes} bytes", "no such file")
                entry.sizeBytes -> {
                    val sha256 = sha256(file) { count -> done += count; onProgress(done, total) }
                    if (sha256 == entry.sha256) null else Finding("files.sha256", entry.path, "SHA-256 ${entry.sha256}", sha256)
                }
                else -> Finding("files.size", entry.path, "${entry.sizeBytes} bytes", "$size bytes")
            }
        }
    }

    private fun unlisted(found: Entries, manifest: Manifest): List<Finding> {
        val listed = manifest.files.map { it.path } + Manifest.FILE + SignatureFile.NAME
        return (found.names.toSet() - listed.toSet()).sorted().map {
            Finding("files.unlisted", it, "the ${manifest.files.size} files of ${Manifest.FILE} alone", "one more")
        }
    }

    private fun purpose(manifest: Manifest): List<Finding> = buildList {
        val file = Manifest.FILE
        if (!manifest.passed) add(Finding("verdict.failed", "$file: verdict", "passed", "failed"))
        if (AppTarget(manifest.target, manifest.backend) !in accepts) {
            val wanted = accepts.joinToString(" or ") { "${it.target} with ${it.backend}" }
            add(Finding("target.backend", "$file: target", wanted, "${manifest.target} with ${manifest.backend}"))
        }
        if (manifest.maxContext > manifest.maxPositions) {
            val wanted = "at most ${manifest.maxPositions} tokens"
            add(Finding("context.exceeds_model", "$file: artifact.max_context", wanted, "${manifest.maxContext}"))
        }
        if (manifest.maxPrefill > manifest.maxContext) {
            val wanted = "at most the context of ${manifest.maxContext} tokens"
            add(Finding("context.prefill", "$file: artifact.max_prefill", wanted, "${manifest.maxPrefill}"))
        }
    }

    internal companion object {
        fun sha256(file: File, onBytes: (Int) -> Unit = {}): String {
            val digest = MessageDigest.getInstance("SHA-256")
            val piece = ByteArray(1 shl 20)
            file.inputStream().use { stream ->
                while (true) {
                    val count = stream.read(piece)
                    if (count < 0) break
                    digest.update(piece, 0, count)
                    onBytes(count)
                }
            }
            return hex(digest.digest())
        }

        fun hex(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }

        fun readAll(file: File): ByteArray = try {
            file.readBytes()
        } catch (error: IOException) {
            throw Refused(Finding("files.missing", file.name, "a file that can be read", error.message.orEmpty()))
        }
    }
}

/**
 * Everything below a folder: the paths of files and of empty folders, and what is neither a file nor a folder. A link is one
 * of these wherever it points to, since what it points to can be changed after the check; none is followed.
 */
private class Entries(root: File) {
    val names = ArrayList<String>()
    val strange = ArrayList<Finding>()

    init {
        add(root, "")
    }

    private fun add(folder: File, prefix: String) {
        val entries = folder.listFiles().orEmpty().sortedBy { it.name }
        if (entries.isEmpty() && prefix.isNotEmpty()) names.add(prefix.dropLast(1))
        // The class library that this module compiles against asks of no file whether it is a link.
        val place = folder.canonicalFile
        for (entry in entries) {
            val name = prefix + entry.name
            when {
                // What is listed and does not exist is a link to nothing, which has no other canonical path.
                entry.canonicalFile != File(place, entry.name) || !entry.exists() -> add("files.symlink", name, "a symbolic link")
                // Deeper than any bundle: what is below is as unlisted as the folder itself.
                entry.isDirectory && name.count { it == '/' } >= MAX_DEPTH -> names.add(name)
                entry.isDirectory -> add(entry, "$name/")
                entry.isFile -> names.add(name)
                else -> add("files.kind", name, "neither a file nor a folder")
            }
        }
    }

    private fun add(code: String, name: String, found: String) {
        strange.add(Finding(code, name, "a file of the bundle's own", found))
    }

    private companion object {
        const val MAX_DEPTH = 32
    }
}
