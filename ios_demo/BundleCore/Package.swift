// swift-tools-version: 6.0
import PackageDescription

// CryptoKit hashes and verifies on Apple platforms, swift-crypto (the same API) where there is none. SWIFT_CRYPTO_PATH names
// a checkout of it, for a machine that cannot reach GitHub.
let checkout = Context.environment["SWIFT_CRYPTO_PATH"] ?? ""
let swiftCrypto: Package.Dependency =
    checkout.isEmpty ? .package(url: "https://github.com/apple/swift-crypto.git", "2.6.0"..<"5.0.0") : .package(path: checkout)
// The check of this repository; packages that depend on this one must not set such flags.
let strict: [SwiftSetting] = Context.environment["BUNDLE_CORE_STRICT"] == "1" ? [.unsafeFlags(["-warnings-as-errors"])] : []

let package = Package(
    name: "BundleCore",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "BundleCore", targets: ["BundleCore"])],
    dependencies: [swiftCrypto],
    targets: [
        .target(
            name: "BundleCore",
            dependencies: [
                .product(name: "Crypto", package: "swift-crypto", condition: .when(platforms: [.linux, .android, .windows]))
            ],
            resources: [.copy("Resources/finding_codes.json"), .copy("Resources/manifest.schema.json")],
            swiftSettings: strict
        ),
        .testTarget(name: "BundleCoreTests", dependencies: ["BundleCore"], exclude: ["Cases"], swiftSettings: strict),
    ]
)
