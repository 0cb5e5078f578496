import Foundation

/// Runs a body on a thread with the stack that a background thread has on a phone: half a megabyte.
func onSmallStack<Value>(_ body: @escaping () throws -> Value) throws -> Value {
    let call = Call(body)
    let done = DispatchSemaphore(value: 0)
    let thread = Thread {
        call.run()
        done.signal()
    }
    thread.stackSize = 512 << 10
    thread.start()
    done.wait()
    guard let result = call.result else { throw CancellationError() }
    return try result.get()
}

/// Used by one thread, then by the other: the semaphore is between them.
private final class Call<Value>: @unchecked Sendable {
    private let body: () throws -> Value
    private(set) var result: Result<Value, any Error>?

    init(_ body: @escaping () throws -> Value) { self.body = body }

    func run() { result = Result { try body() } }
}
