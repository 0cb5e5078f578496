"""What Python can hold the Android project to; `make android-check` compiles it."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from llama_edge.text.contract import GOLDEN_TEXTS
from tests.app_fixtures.files import ROOT

DEMO = ROOT / "android_demo"
MAIN = DEMO / "app/src/main"
ANDROID = "{http://schemas.android.com/apk/res/android}"
PERMISSION_TAGS = ("permission", "uses-permission", "uses-permission-sdk-23")


def permissions(manifest: str) -> list[str]:
    """Every tag that asks for or defines a permission."""
    return [tag.tag for tag in ET.fromstring(manifest).iter() if tag.tag in PERMISSION_TAGS]


def test_the_app_asks_for_no_permission_at_all() -> None:
    manifests = [path for path in DEMO.rglob("AndroidManifest.xml") if "build" not in path.parts]
    assert manifests == [MAIN / "AndroidManifest.xml"]
    source = manifests[0].read_text("utf-8")
    assert permissions(source) == []
    planted = source.replace(
        "<application",
        '<uses-permission android:name="android.permission.INTERNET" />\n<application',
    )
    assert permissions(planted) == ["uses-permission"]


def test_the_sources_reach_no_network() -> None:
    sources = [path for path in DEMO.rglob("*.kt") if "build" not in path.parts]
    assert len(sources) > 20
    network = re.compile(r"java\.net|android\.net\.(?!Uri\b)|okhttp|WebView|Socket")
    assert [path.name for path in sources if network.search(path.read_text("utf-8"))] == []


def test_only_what_must_be_open_to_other_apps_is() -> None:
    tree = ET.parse(MAIN / "AndroidManifest.xml")
    parts = [*tree.iter("activity"), *tree.iter("activity-alias")]
    exported = {
        part.get(f"{ANDROID}name") for part in parts if part.get(f"{ANDROID}exported") == "true"
    }
    assert exported == {".BundlesActivity", ".Summarize", ".Rewrite"}
    assert tree.find("application") is not None
    assert tree.getroot().find("application").get(f"{ANDROID}allowBackup") == "false"  # type: ignore[union-attr]


def strings(folder: Path) -> dict[str, str]:
    tree = ET.parse(folder / "strings.xml")
    return {entry.get("name", ""): entry.text or "" for entry in tree.iter("string")}


@pytest.mark.parametrize("language", sorted({code for code, _ in GOLDEN_TEXTS} - {"en"}))
def test_every_language_says_everything(language: str) -> None:
    english = strings(MAIN / "res/values")
    other = strings(MAIN / f"res/values-{language}")
    assert set(other) == set(english) - {"app_name"}
    for name, text in other.items():
        marks = re.findall(r"%\d\$[\d.]*[sdf]", english[name])
        assert sorted(re.findall(r"%\d\$[\d.]*[sdf]", text)) == sorted(marks), name
    assert sum(other[name] != english[name] for name in other) > len(other) * 0.8


def test_sizes_of_text_follow_the_user_and_targets_can_be_hit() -> None:
    for path in (MAIN / "res/layout").glob("*.xml"):
        for view in ET.parse(path).iter():
            size = view.get(f"{ANDROID}textSize")
            assert size is None or size.endswith("sp"), (path.name, view.tag)
            if view.tag in ("Button", "CheckBox", "EditText"):
                assert view.get(f"{ANDROID}minHeight") == "48dp", (path.name, view.tag)
            if view.tag in ("ListView", "ProgressBar", "ImageView"):
                assert view.get(f"{ANDROID}contentDescription"), (path.name, view.tag)
