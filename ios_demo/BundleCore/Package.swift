// swift-tools-version: 6.0
import PackageDescription

// On Apple platforms CryptoKit hashes and verifies. Elsewhere swift-crypto does, where a checkout of it is named in
// SWIFT_CRYPTO_PATH; without one, hashing is a few lines of our own and signatures cannot be verified.
let cryptoPath = Context.environment["SWIFT_CRYPTO_PATH"].flatMap { $0.isEmpty ? nil : $0 }

let package = Package(
    name: "BundleCore",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "BundleCore", targets: ["BundleCore"])],
    dependencies: cryptoPath.map { [.package(path: $0)] } ?? [],
    targets: [
        .target(
            name: "BundleCore",
            dependencies: cryptoPath == nil ? [] : [.product(name: "Crypto", package: "swift-crypto")],
            resources: [.copy("Resources/finding_codes.json"), .copy("Resources/manifest.schema.json")]
        ),
        .testTarget(name: "BundleCoreTests", dependencies: ["BundleCore"]),
    ]
)
