import Foundation

/// A tokenizer or a template that is damaged, or uses what is not supported here.
public struct TextError: Error, Equatable, CustomStringConvertible, Sendable {
    public let description: String

    public init(_ description: String) {
        // A template may quote what was typed.
        self.description = TypedText.withoutMarks(description)
    }
}
