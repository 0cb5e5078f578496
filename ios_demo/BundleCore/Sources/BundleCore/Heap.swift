/// A binary heap, the first in `isBefore`'s order at the top.
struct Heap<Element> {
    private var elements: [Element]
    private let isBefore: (Element, Element) -> Bool

    /// In a number of comparisons that is linear.
    init(_ elements: [Element] = [], by isBefore: @escaping (Element, Element) -> Bool) {
        self.elements = elements
        self.isBefore = isBefore
        for place in stride(from: elements.count / 2 - 1, through: 0, by: -1) { sink(place) }
    }

    mutating func push(_ element: Element) {
        elements.append(element)
        var place = elements.count - 1
        while place > 0, isBefore(elements[place], elements[(place - 1) / 2]) {
            elements.swapAt(place, (place - 1) / 2)
            place = (place - 1) / 2
        }
    }

    mutating func pop() -> Element? {
        guard let first = elements.first, let last = elements.popLast() else { return nil }
        if !elements.isEmpty {
            elements[0] = last
            sink(0)
        }
        return first
    }

    private mutating func sink(_ start: Int) {
        var place = start
        while 2 * place + 1 < elements.count {
            var child = 2 * place + 1
            if child + 1 < elements.count, isBefore(elements[child + 1], elements[child]) { child += 1 }
            guard isBefore(elements[child], elements[place]) else { return }
            elements.swapAt(place, child)
            place = child
        }
    }
}
