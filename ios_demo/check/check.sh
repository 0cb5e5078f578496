#!/bin/sh
# What can be checked of the iOS app without a Mac: the core is compiled and tested, the app's files are parsed, no more.
# Exit codes: 0 good, 1 a check failed, 4 skipped, because there is no Swift compiler here (the reason is printed).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
core=ios_demo/BundleCore
scratch=${IOS_CHECK_BUILD:-build/ios}

run() {
	"$here/in_toolchain.sh" "$@"
}

# A compiler of its own for each question whether something is refused: not the package's build, which would be spoiled.
refused() {
	what=$1 expected=$2
	shift 2
	if output=$(run "$@" 2>&1); then
		echo "ios-check: FAILED: $what was accepted" >&2
		exit 1
	fi
	case $output in
	*"$expected"*) echo "ios-check: $what is refused: $expected" ;;
	*)
		echo "ios-check: FAILED: $what was refused for another reason:" >&2
		echo "$output" >&2
		exit 1
		;;
	esac
}

status=0
"$here/toolchain.sh" >/dev/null || status=$?
if [ "$status" = 4 ]; then
	echo "ios-check: SKIPPED: nothing was compiled, parsed or run" >&2
	exit 4
elif [ "$status" != 0 ]; then
	exit 1
fi

run swift --version 2>/dev/null | head -n 1
files=$(find ios_demo/App -name '*.swift' | sort)
parse() {
	# shellcheck disable=SC2086
	run swiftc -frontend -parse $2 || { echo "ios-check: FAILED: a file of $1 does not parse" >&2; exit 1; }
	echo "ios-check: $(echo "$2" | wc -l | tr -d ' ') files of $1: PARSED ONLY; $3"
}
parse "the app" "$files" "nothing here knows SwiftUI, Core ML or App Intents"

status=0
SWIFT_CRYPTO_PATH=$("$here/swift_crypto.sh") || status=$?
export SWIFT_CRYPTO_PATH BUNDLE_CORE_STRICT=1
if [ "$status" = 4 ]; then
	parse BundleCore "$(find $core -name '*.swift' | sort)" "without swift-crypto it cannot be compiled"
	echo "ios-check: SKIPPED: BundleCore was not compiled, and none of its tests was run; the reason is above" >&2
	exit 4
elif [ "$status" != 0 ]; then
	exit 1
fi
run swift test --package-path "$core" --scratch-path "$scratch" --disable-sandbox -j 2 ||
	{ echo "ios-check: FAILED: the core does not build without warnings, or its tests fail" >&2; exit 1; }
echo "ios-check: BundleCore: compiled with warnings as errors; its tests passed with swift-crypto from ${SWIFT_CRYPTO_PATH:-GitHub}"

faults=$scratch/faults
mkdir -p "$faults"
sed 's/func run(/func run((/' ios_demo/App/Model/CoreMLEngine.swift >"$faults/SyntaxError.swift"
refused "a planted syntax error" "error: expected" swiftc -frontend -parse "$faults/SyntaxError.swift"
modules=$scratch/debug/Modules
printf 'import BundleCore\nlet engine = ScriptedEngine(answers: [[1]], endToken: 0, vocabularySize: 4)\nfunc f() async throws { _ = try await engine.run([1]) }\n' \
	>"$faults/WrongCall.swift"
refused "a planted wrong call of the core" "missing argument for parameter 'at'" \
	swiftc -typecheck -swift-version 6 -I "$modules" "$faults/WrongCall.swift"
sed 's/engine.run(\[1\])/engine.run([1], at: 0)/' "$faults/WrongCall.swift" >"$faults/RightCall.swift"
run swiftc -typecheck -swift-version 6 -I "$modules" "$faults/RightCall.swift" ||
	{ echo "ios-check: FAILED: the right call was refused too" >&2; exit 1; }
echo "ios-check: good"
