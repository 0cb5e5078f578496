#if !canImport(CryptoKit) && !canImport(Crypto)
    import Foundation

    /// FIPS 180-4, section 6.2.
    struct PlainSHA256 {
        private static let constants: [UInt32] = primes(64).map { fraction(pow(Double($0), 1.0 / 3)) }
        private var hash: [UInt32] = primes(8).map { fraction(Double($0).squareRoot()) }
        private var pending: [UInt8] = []
        private var length: UInt64 = 0

        /// The first primes: constants and start are the fractions of their roots.
        private static func primes(_ count: Int) -> [Int] {
            var found: [Int] = []
            var number = 2
            while found.count < count {
                if found.allSatisfy({ number % $0 != 0 }) { found.append(number) }
                number += 1
            }
            return found
        }

        /// The first 32 bits behind the point; a double has 52, three of which the whole part takes.
        private static func fraction(_ root: Double) -> UInt32 {
            UInt32((root - root.rounded(.down)) * 4_294_967_296)
        }

        mutating func update(_ data: Data) {
            length += UInt64(data.count) * 8
            pending.append(contentsOf: data)
            let whole = pending.count / 64 * 64
            pending.withUnsafeBufferPointer { bytes in
                for start in stride(from: 0, to: whole, by: 64) { compress(bytes[start..<start + 64]) }
            }
            pending.removeFirst(whole)
        }

        mutating func finish() -> [UInt8] {
            let bits = length
            var tail = Data([0x80])
            tail.append(Data(count: (119 - pending.count % 64) % 64))
            tail.append(contentsOf: withUnsafeBytes(of: bits.bigEndian, Array.init))
            update(tail)
            return hash.flatMap { word in withUnsafeBytes(of: word.bigEndian, Array.init) }
        }

        private mutating func compress(_ block: Slice<UnsafeBufferPointer<UInt8>>) {
            var words = [UInt32](repeating: 0, count: 64)
            for (place, byte) in block.enumerated() { words[place / 4] = words[place / 4] << 8 | UInt32(byte) }
            for place in 16..<64 {
                let a = words[place - 15]
                let b = words[place - 2]
                let small = rotate(a, 7) ^ rotate(a, 18) ^ a >> 3
                let large = rotate(b, 17) ^ rotate(b, 19) ^ b >> 10
                words[place] = words[place - 16] &+ small &+ words[place - 7] &+ large
            }
            var h = hash
            for place in 0..<64 {
                let choice = (h[4] & h[5]) ^ (~h[4] & h[6])
                let majority = (h[0] & h[1]) ^ (h[0] & h[2]) ^ (h[1] & h[2])
                let sum1 = rotate(h[4], 6) ^ rotate(h[4], 11) ^ rotate(h[4], 25)
                let sum0 = rotate(h[0], 2) ^ rotate(h[0], 13) ^ rotate(h[0], 22)
                let first = h[7] &+ sum1 &+ choice &+ Self.constants[place] &+ words[place]
                h = [first &+ sum0 &+ majority, h[0], h[1], h[2], h[3] &+ first, h[4], h[5], h[6]]
            }
            for place in 0..<8 { hash[place] = hash[place] &+ h[place] }
        }

        private func rotate(_ word: UInt32, _ count: UInt32) -> UInt32 {
            word >> count | word << (32 - count)
        }
    }
#endif
