import BundleCore
import Foundation

/// Two tools that need nothing but the phone.
enum DemoTools {
    static let all = [time, wordCount]

    private static let time = LocalTool(
        schema: schema("get_time", "The time now in a time zone", ["zone": "Name of a time zone, such as Europe/Zurich"])
    ) { arguments in
        guard let zone = arguments["zone"]?.stringValue.flatMap(TimeZone.init(identifier:)) else {
            throw EngineError("that is not the name of a time zone")
        }
        var style = Date.ISO8601FormatStyle(timeZone: zone)
        style = style.year().month().day().time(includingFractionalSeconds: false).timeZone(separator: .colon)
        return .object(JSONObject([("time", .string(Date.now.formatted(style)))]))
    }

    private static let wordCount = LocalTool(
        schema: schema("count_words", "How many words a text has", ["text": "The text"])
    ) { arguments in
        guard let text = arguments["text"]?.stringValue else { throw EngineError("text is missing") }
        var count = 0
        // The system's own segmentation: Thai has no spaces.
        text.enumerateSubstrings(in: text.startIndex..., options: .byWords) { _, _, _, _ in count += 1 }
        return .object(JSONObject([("words", .int(count))]))
    }

    private static func schema(_ name: String, _ description: String, _ parameters: [String: String]) -> JSONValue {
        func text(_ key: String, _ value: String) -> (String, JSONValue) { (key, .string(value)) }
        let names = parameters.keys.sorted()
        let properties = names.map { key in
            (key, JSONValue.object(JSONObject([text("type", "string"), text("description", parameters[key] ?? "")])))
        }
        let object = JSONObject([
            text("type", "object"), ("properties", .object(JSONObject(properties))),
            ("required", .array(names.map { .string($0) })),
        ])
        let function = JSONObject([text("name", name), text("description", description), ("parameters", .object(object))])
        return .object(JSONObject([text("type", "function"), ("function", .object(function))]))
    }
}
