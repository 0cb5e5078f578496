package org.llamaedge.demo

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import java.io.File
import java.io.IOException
import java.io.InputStream
import org.llamaedge.core.Manifest

/** Where bundles lie: pushed over adb, picked by the user, or shipped in the app's assets. */
class BundleStore(private val context: Context) {
    private val own = File(context.filesDir, "bundles")

    /** `llama-edge push` writes here; the folder is the app's own, so no storage permission is needed. */
    private val pushed = File(context.getExternalFilesDir(null) ?: context.filesDir, "bundles")

    fun list(): List<File> = (folders(own) + folders(pushed)).sortedBy { it.name }

    /** Names of bundles in the app's assets; a large one is better pushed. */
    fun assets(): List<String> = context.assets.list(ASSETS).orEmpty().filter { name ->
        Manifest.FILE in context.assets.list("$ASSETS/$name").orEmpty()
    }

    private fun folders(place: File): List<File> {
        place.mkdirs()
        return place.listFiles { file -> file.isDirectory && !file.name.startsWith(".") }.orEmpty().toList()
    }

    /** Copies a bundle out of the assets: a runtime maps files, and an asset is none. */
    fun unpackAsset(name: String): File = intoPlace(name) { folder -> copyAsset("$ASSETS/$name", folder) }

    private fun copyAsset(path: String, target: File) {
        val children = context.assets.list(path).orEmpty()
        if (children.isEmpty()) {
            context.assets.open(path).use { write(it, target) }
        } else {
            target.mkdirs()
            children.forEach { copyAsset("$path/$it", File(target, it)) }
        }
    }

    /** Copies a folder that the user picked; the names in it are a stranger's. */
    fun import(tree: Uri): File {
        val root = DocumentsContract.getTreeDocumentId(tree)
        return intoPlace(root.substringAfterLast('/').substringAfterLast(':')) { folder -> copyTree(tree, root, folder, 0) }
    }

    private fun copyTree(tree: Uri, id: String, target: File, depth: Int) {
        if (depth > MAX_DEPTH) throw IOException("folders are nested more than $MAX_DEPTH deep")
        target.mkdirs()
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, id)
        context.contentResolver.query(children, COLUMNS, null, null, null)?.use { cursor ->
            while (cursor.moveToNext()) {
                val name = cursor.getString(1)
                if (!safe(name)) throw IOException("a file is called $name")
                val child = File(target, name)
                if (cursor.getString(2) == DocumentsContract.Document.MIME_TYPE_DIR) {
                    copyTree(tree, cursor.getString(0), child, depth + 1)
                } else {
                    val uri = DocumentsContract.buildDocumentUriUsingTree(tree, cursor.getString(0))
                    (context.contentResolver.openInputStream(uri) ?: throw IOException("$name cannot be read")).use { write(it, child) }
                }
            }
        }
    }

    private fun write(stream: InputStream, target: File) {
        target.outputStream().use { stream.copyTo(it, 1 shl 20) }
    }

    /** Written under another name first, so that a copy that stops early is never taken for a bundle. */
    private fun intoPlace(name: String, fill: (File) -> Unit): File {
        if (!safe(name)) throw IOException("a folder is called $name")
        val (target, temporary) = File(own, name) to File(own, ".$name")
        temporary.deleteRecursively()
        try {
            fill(temporary)
            target.deleteRecursively()
            if (!temporary.renameTo(target)) throw IOException("$name cannot be put in its place")
        } finally {
            temporary.deleteRecursively()
        }
        return target
    }

    private fun safe(name: String) = name.isNotEmpty() && !name.startsWith(".") && name.none { it == '/' || it == '\\' || it == '\u0000' }

    private companion object {
        const val ASSETS = "bundles"
        const val MAX_DEPTH = 8
        val COLUMNS = arrayOf(
            DocumentsContract.Document.COLUMN_DOCUMENT_ID, DocumentsContract.Document.COLUMN_DISPLAY_NAME,
            DocumentsContract.Document.COLUMN_MIME_TYPE,
        )
    }
}
