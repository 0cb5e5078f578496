"""What can be said of the iOS app without a Mac; the core is compiled where a compiler is."""

import json
import os
import plistlib
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
APP: Final = ROOT / "ios_demo/App"
CORE: Final = ROOT / "ios_demo/BundleCore"
CHECK: Final = ROOT / "ios_demo/check"
SOURCES: Final = sorted((*APP.rglob("*.swift"), *(CORE / "Sources").rglob("*.swift")))
LANGUAGES: Final = {"en", "de", "fr", "it", "pt", "hi", "es", "th"}
SKIPPED: Final = 4
MAX_LINES: Final = 400

#: What reaches other machines: frameworks by import, and Foundation's own ways by name.
_NETWORK: Final = re.compile(
    r"\bimport\s+(?:\w+\s+)?(?:Network|CFNetwork|WebKit|SafariServices|MultipeerConnectivity|"
    r"FoundationNetworking|CloudKit|NetworkExtension)\b"
    r"|\b(?:URLSession|URLRequest|NSURLConnection|NWConnection|CFSocket|CFStreamCreate|"
    r"StreamDelegate|AsyncImage|WKWebView|getaddrinfo|socket)\b"
    r"|https?://"
)
_PLACEHOLDER: Final = re.compile(r"%(?:\d\$)?(?:@|lld)")
_KEY: Final = re.compile(r'"([a-z]+\.[a-z_]+(?:\.[a-z_]+)*)(?:"| (\\\(.*))')


def network_uses(text: str) -> list[str]:
    return [found[0] for found in _NETWORK.finditer(text)]


def strings() -> dict[str, Any]:
    table = json.loads((APP / "Resources/Localizable.xcstrings").read_text("utf-8"))
    return dict(table["strings"])


def test_no_source_reaches_a_network() -> None:
    assert len(SOURCES) > 40
    uses = {path.name: network_uses(path.read_text("utf-8")) for path in SOURCES}
    assert {name: found for name, found in uses.items() if found} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import Network",
        "import class Network.NWPathMonitor",
        "let task = URLSession.shared.dataTask(with: url)",
        'AsyncImage(url: URL(string: "x"))',
        'let page = "https://example.org"',
    ],
)
def test_a_use_of_the_network_is_seen(line: str) -> None:
    assert network_uses(line)


def test_the_project_asks_for_no_right() -> None:
    project = (ROOT / "ios_demo/project.yml").read_text("utf-8")
    rights = ("entitlements", "NSAppTransportSecurity", "NSLocalNetwork", "NSBonjourServices")
    assert [word for word in (*rights, "UIBackgroundModes") if word in project] == []
    assert list((ROOT / "ios_demo").rglob("*.entitlements")) == []


def test_the_privacy_manifest_collects_nothing() -> None:
    manifest = plistlib.loads((APP / "Resources/PrivacyInfo.xcprivacy").read_bytes())
    assert manifest["NSPrivacyTracking"] is False
    assert manifest["NSPrivacyTrackingDomains"] == manifest["NSPrivacyCollectedDataTypes"] == []
    declared = {
        entry["NSPrivacyAccessedAPIType"] for entry in manifest["NSPrivacyAccessedAPITypes"]
    }
    uses = {"NSPrivacyAccessedAPICategoryUserDefaults": r"\bUserDefaults\b"}
    uses |= {
        "NSPrivacyAccessedAPICategoryFileTimestamp": r"\b(?:creationDate|modificationDate|stat)\b",
        "NSPrivacyAccessedAPICategoryDiskSpace": r"volumeAvailableCapacity|systemFreeSize",
        "NSPrivacyAccessedAPICategorySystemBootTime": r"systemUptime|mach_absolute_time",
        "NSPrivacyAccessedAPICategoryActiveKeyboards": r"activeInputModes",
    }
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    assert declared == {category for category, use in uses.items() if re.search(use, text)}


def test_every_string_is_there_in_all_languages() -> None:
    table = strings()
    assert len(table) >= 30
    for key, entry in table.items():
        units = {name: unit["stringUnit"] for name, unit in entry["localizations"].items()}
        assert set(units) == LANGUAGES, key
        wanted = sorted(_PLACEHOLDER.findall(units["en"]["value"]))
        assert len(wanted) == len(_PLACEHOLDER.findall(key)), key
        for language, unit in units.items():
            assert unit["value"].strip() and unit["state"] == "translated", (key, language)
            assert sorted(_PLACEHOLDER.findall(unit["value"])) == wanted, (key, language)


def test_the_languages_are_the_ones_that_the_project_lists() -> None:
    project = (ROOT / "ios_demo/project.yml").read_text("utf-8")
    found = re.search(r"CFBundleLocalizations: \[(.*)\]", project)
    assert found and set(found[1].split(", ")) == LANGUAGES


def test_the_app_uses_the_strings_that_there_are() -> None:
    areas = {key.split(".")[0] for key in strings()}
    used = set()
    for path in APP.rglob("*.swift"):
        for key, arguments in _KEY.findall(path.read_text("utf-8")):
            if key.split(".")[0] in areas:
                used.add((key, arguments.count("\\(")))
    known = {(key.split(" ")[0], len(_PLACEHOLDER.findall(key))) for key in strings()}
    # Names of system images have a dot too.
    assert {key for key in used - known if key[0] not in {"text.badge.minus"}} == set()
    assert known - used == set()


@pytest.mark.parametrize("name", ["finding_codes.json", "manifest.schema.json"])
def test_the_core_carries_what_python_has(name: str) -> None:
    carried = CORE / "Sources/BundleCore/Resources" / name
    assert carried.read_bytes() == (ROOT / "llama_edge/bundle" / name).read_bytes()


def test_swift_runs_every_kind_of_fixture() -> None:
    index = json.loads((ROOT / "app_fixtures/index.json").read_text("utf-8"))
    tests = (CORE / "Tests/BundleCoreTests/SharedFixtureTests.swift").read_text("utf-8")
    run = set(re.findall(r'forEach\("(\w+)"', tests))
    assert run == {case["kind"] for case in index["cases"]}


def test_the_core_is_foundation_and_one_library() -> None:
    """CryptoKit, or swift-crypto where there is none, and in one file."""
    for path in (CORE / "Sources").rglob("*.swift"):
        imports = set(re.findall(r"^\s*import (\w+)", path.read_text("utf-8"), re.MULTILINE))
        crypto = {"CryptoKit", "Crypto"} if path.name == "SystemCrypto.swift" else set()
        assert imports <= {"Foundation"} | crypto, path.name
        assert crypto <= imports, path.name


def cryptography_of_our_own(text: str) -> list[str]:
    """Constants and names that an implementation of SHA-2, Ed25519 or Base64 has."""
    found = re.findall(
        r"0x428a_?2f98|0x6a09_?e667|FIPS 180|RFC 8032|2\^255|curve.?25519(?!\.Signing)"
        r"|ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgh|rotate_?(?:left|right|d)",
        text,
        re.IGNORECASE,
    )
    return [str(word) for word in found]


def test_the_core_has_no_cryptography_of_its_own() -> None:
    uses = {path.name: cryptography_of_our_own(path.read_text("utf-8")) for path in SOURCES}
    assert {name: found for name, found in uses.items() if found} == {}


@pytest.mark.parametrize(
    "line",
    [
        "let k: [UInt32] = [0x428a2f98, 0x71374491]",
        "func rotateRight(_ word: UInt32)",
        "// FIPS 180-4",
        "let p = 2^255 - 19",
    ],
)
def test_cryptography_of_our_own_is_seen(line: str) -> None:
    assert cryptography_of_our_own(line)


def test_swift_crypto_is_an_ordinary_dependency() -> None:
    package = (CORE / "Package.swift").read_text("utf-8")
    url = r"https://github\.com/apple/swift-crypto\.git"
    assert re.search(rf'\.package\(url: "{url}", "\d+\.\d+\.\d+"\.\.<"\d+\.0\.0"\)', package)
    assert '.product(name: "Crypto", package: "swift-crypto", condition' in package


def test_no_swift_file_is_longer_than_the_limit() -> None:
    lengths = {
        path.name: len(path.read_text("utf-8").splitlines())
        for path in (ROOT / "ios_demo").rglob("*.swift")
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECK / script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_compiler_the_check_says_what_it_skipped(tmp_path: Path) -> None:
    """No `swift` on PATH, nothing unpacked, and nothing may be unpacked."""
    nowhere = {"PATH": "/usr/bin:/bin", "SWIFT_SETUP": "no", "SWIFT_ROOT": str(tmp_path / "none")}
    if (Path("/usr/bin/swift")).exists():
        pytest.skip("swift is a part of this system")
    done = run("check.sh", **nowhere)
    assert done.returncode == SKIPPED
    assert "no Swift compiler: swift is not on PATH" in done.stderr
    assert "SKIPPED: nothing was compiled, parsed or run" in done.stderr


def test_a_folder_without_a_compiler_is_not_unpacked_into(tmp_path: Path) -> None:
    if (Path("/usr/bin/swift")).exists():
        pytest.skip("swift is a part of this system")
    done = run("toolchain.sh", PATH="/usr/bin:/bin", SWIFT_ROOT=str(tmp_path))
    assert done.returncode == SKIPPED
    assert f"{tmp_path} is there and has no usr/bin/swift" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_reaches_no_package_is_skipped_with_the_reason(tmp_path: Path) -> None:
    swift = tmp_path / "swift"
    swift.write_text("#!/bin/sh\necho cannot reach it >&2\nexit 1\n", "utf-8")
    swift.chmod(0o755)
    done = run("swift_crypto.sh", PATH=f"{tmp_path}:/usr/bin:/bin", SWIFT_CRYPTO_PATH="")
    assert done.returncode == SKIPPED
    assert "cannot reach it" in done.stderr
    assert "no swift-crypto: SwiftPM cannot fetch it" in done.stderr
    assert done.stdout == ""


def test_a_checkout_of_swift_crypto_may_be_named() -> None:
    done = run("swift_crypto.sh", SWIFT_CRYPTO_PATH="../swift-crypto")
    assert (done.returncode, done.stdout) == (0, "../swift-crypto\n")


def test_a_system_without_swift_crypto_downloads_none_unasked(tmp_path: Path) -> None:
    swift = tmp_path / "usr/bin/swift"
    swift.parent.mkdir(parents=True)
    swift.touch(0o755)
    nowhere = {"PATH": "/usr/bin:/bin", "SWIFT_SETUP": "no", "SWIFT_ROOT": str(tmp_path)}
    if (Path("/usr/bin/swift")).exists():
        pytest.skip("swift is a part of this system")
    done = run("swift_crypto.sh", **nowhere, SWIFT_CRYPTO_PATH="")
    assert done.returncode == SKIPPED
    # Who may not enter the system hears of that first.
    assert "no swift-crypto: " in done.stderr or "no Swift compiler: " in done.stderr


@pytest.mark.slow
def test_the_core_compiles_and_passes_and_the_app_parses() -> None:
    done = run("check.sh", SWIFT_SETUP="no")
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "BundleCore: compiled with warnings as errors; its tests passed",
        "with swift-crypto",
        "PARSED ONLY",
        "a planted syntax error is refused",
        "a planted wrong call of the core is refused",
    ):
        assert line in done.stdout
