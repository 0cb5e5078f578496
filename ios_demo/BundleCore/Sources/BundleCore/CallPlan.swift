import Foundation

/// How a program whose functions take fixed numbers of tokens reads any number of them.
public enum CallPlan {
    public struct Call: Equatable, Sendable {
        /// tokens of the sequence that this call reads
        public let count: Int
        /// tokens that the function takes; the places behind `count` are filled up
        public let places: Int
    }

    /// What stands in a filled place is written into the cache behind all that counts, hidden from every earlier token, and
    /// overwritten by the next call. So it must fit into the context; where it does not, single tokens do.
    ///
    /// `lengths` are what the functions take; one of them is 1.
    public static func calls(for count: Int, used: Int, maxContext: Int, lengths: [Int]) -> [Call] {
        var calls: [Call] = []
        var left = count
        var used = used
        while left > 0 {
            let fitting = lengths.filter { used + $0 <= maxContext }.sorted()
            // A single token is read faster by the function for one; else the shortest that takes all, or the longest.
            let places = fitting.first { $0 >= left } ?? fitting.last ?? 1
            let call = Call(count: min(left, places), places: places)
            calls.append(call)
            left -= call.count
            used += call.count
        }
        return calls
    }
}
