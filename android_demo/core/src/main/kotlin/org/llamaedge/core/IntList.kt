package org.llamaedge.core

import kotlin.collections.asList

/** Numbers that are not objects: a long text has millions of tokens. */
internal class IntList(capacity: Int = 16) {
    private var items = IntArray(maxOf(capacity, 1))
    private var size = 0

    fun add(item: Int) {
        if (size == items.size) items = items.copyOf(2 * size)
        items[size++] = item
    }

    fun addAll(more: IntArray) {
        while (items.size - size < more.size) items = items.copyOf(2 * items.size)
        more.copyInto(items, size)
        size += more.size
    }

    fun toIntArray(): IntArray = items.copyOf(size)

    fun toList(): List<Int> = toIntArray().asList()
}
