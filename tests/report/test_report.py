"""The page: what it says, that it is one file of few bytes, and that a bundle cannot inject."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llama_edge.bundle.folder import Bundle, open_bundle, read_manifest
from llama_edge.bundle.manifest import Manifest, Verdict
from llama_edge.core.errors import ArtifactError, OutputError
from llama_edge.gate.gate import GateOutcome
from llama_edge.report.page import bits_per_weight, render_page, size_parts
from llama_edge.report.write import rebuild_report, with_report

LIMIT_BYTES = 400_000
HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac{ $ --> ]]> \u202eexe \u2066"
)


class Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def parity_of(bundle: Bundle) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((bundle.root / "parity.json").read_text())
    return value


def test_every_bundle_has_a_page_that_its_manifest_lists(
    debug_bundles: Mapping[str, Bundle],
) -> None:
    for bundle in debug_bundles.values():
        opened = open_bundle(bundle.root)
        assert opened.manifest.files[-1].path == "report.html"
        text = (bundle.root / "report.html").read_text()
        assert len(text.encode()) < LIMIT_BYTES
        assert "Passed" in text
        for heading in ("Size", "Graph parity", "Fidelity", "Sample answers", "Placement"):
            assert f"<h2>{heading}" in text
        assert text.count("<svg") == 3, "size, blocks, positions; no recipe was measured on it"


def test_the_page_needs_no_network_and_runs_no_script(page: Path) -> None:
    text = page.read_text()
    found = Reader(text)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in found.tags}
    addresses = [
        value
        for _, attributes in found.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action") and not str(value).startswith("#")
    ]
    assert addresses == []
    assert "default-src 'none'" in text
    assert "url(http" not in text


def test_for_a_screen_reader(page: Path) -> None:
    found = Reader(page.read_text())
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    names = {attributes.get("id") for _, attributes in found.tags}
    pictures = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert all(one["role"] == "img" and one["aria-labelledby"] in names for one in pictures)
    heads = [attributes for tag, attributes in found.tags if tag == "th"]
    assert all("scope" in one for one in heads)
    assert dict(found.tags)["html"]["lang"] == "en"


def test_ids_are_unique(page: Path) -> None:
    ids = [one["id"] for _, one in Reader(page.read_text()).tags if "id" in one]
    assert len(ids) == len(set(ids))


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_aa(scheme: str, page: Path) -> None:
    blocks = re.findall(r":root \{(.*?)\}", page.read_text(), flags=re.DOTALL)
    colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))
    for ink, paper in (
        ("--ink", "--paper"),
        ("--ink-soft", "--paper"),
        ("--ink", "--panel"),
        ("--ink-soft", "--panel"),
        ("--good", "--good-paper"),
        ("--bad", "--bad-paper"),
        ("--note", "--note-paper"),
        ("--first", "--paper"),
        ("--second", "--paper"),
    ):
        assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert contrast(colours["--third"], colours["--paper"]) >= 3, "a graphical object"


def test_contrast_can_fail() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#888888", "#ffffff") < 4.5


def test_the_same_bundle_gives_the_same_bytes(debug_bundles: Mapping[str, Bundle]) -> None:
    bundle = debug_bundles["onnx"]
    written = (bundle.root / "report.html").read_bytes()
    before = (bundle.root / "manifest.json").read_bytes()
    assert rebuild_report(bundle.root) == bundle.root / "report.html"
    assert (bundle.root / "report.html").read_bytes() == written
    assert (bundle.root / "manifest.json").read_bytes() == before
    open_bundle(bundle.root)


def test_a_page_that_was_changed_is_made_again(
    debug_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    folder = shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle")
    written = (folder / "report.html").read_bytes()
    (folder / "report.html").write_text("a stranger's page")
    rebuild_report(folder)
    assert (folder / "report.html").read_bytes() == written
    open_bundle(folder)
    elsewhere = tmp_path / "elsewhere.html"
    for _ in range(2):  # its own page is replaced
        rebuild_report(folder, elsewhere)
        assert elsewhere.read_bytes() == written


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe", "in the bundle"])
def test_what_is_no_report_is_not_replaced(
    debug_bundles: Mapping[str, Bundle], tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle")
    out = tmp_path / "thesis.html"
    (tmp_path / "victim").write_text("mine")
    if kind == "file":
        out.write_text("<!doctype html>\n<html>mine")
    elif kind == "folder":
        out.mkdir()
    elif kind == "link":
        out.symlink_to("victim")
    elif kind == "pipe":
        os.mkfifo(out)
    else:
        out = folder / "second.html"
    before = sorted((str(path), path.lstat()[:7]) for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"is no report of llama-edge|is in the bundle"):
        rebuild_report(folder, out)
    assert sorted((str(path), path.lstat()[:7]) for path in tmp_path.rglob("*")) == before


def test_a_bundle_of_before_gets_a_page(
    debug_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    folder = shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle")
    manifest = read_manifest(folder).manifest
    (folder / "report.html").unlink()
    value = replace(manifest, files=manifest.files[:-1]).to_json()
    (folder / "manifest.json").write_text(json.dumps(value))
    rebuild_report(folder)
    assert open_bundle(folder).manifest.files == manifest.files


def test_measurements_of_another_bundle_are_refused(
    debug_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    folder = shutil.copytree(debug_bundles["onnx"].root, tmp_path / "bundle")
    shutil.copy(debug_bundles["android"].root / "parity.json", folder)
    with pytest.raises(ArtifactError, match="not the file that the manifest lists"):
        rebuild_report(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"parity": {}},
        {"fidelity": {"prompts": 3, "findings": []}},
        {"samples": [{"language": 1}]},
        {
            "samples": [
                {
                    "language": "en",
                    "question": "q",
                    "artifact": "a",
                    "full": None,
                    "same_tokens": -1,
                    "artifact_tokens": 1,
                }
            ]
        },
    ],
)
def test_measurements_that_no_gate_writes_are_refused(
    change: dict[str, Any], debug_bundles: Mapping[str, Bundle]
) -> None:
    bundle = debug_bundles["onnx"]
    with pytest.raises(ArtifactError, match="measurements cannot be read"):
        render_page(bundle.manifest, {**parity_of(bundle), **change})


def planted(value: Any) -> Any:  # noqa: ANN401
    """Every text of a JSON value replaced by a hostile one."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {key: planted(item) for key, item in value.items()}
    return [planted(item) for item in value] if isinstance(value, list) else value


def test_nothing_from_a_bundle_becomes_markup(debug_bundles: Mapping[str, Bundle]) -> None:
    bundle = debug_bundles["android"]
    manifest = replace(
        bundle.manifest,
        model=replace(bundle.manifest.model, source=HOSTILE, note=HOSTILE),
        recipe=replace(bundle.manifest.recipe, name=HOSTILE, summary=HOSTILE),
        versions={HOSTILE: HOSTILE},
        files=tuple(replace(one, path=HOSTILE) for one in bundle.manifest.files),
    )
    text = render_page(manifest, planted(parity_of(bundle)))
    tags = {tag for tag, _ in Reader(text).tags}
    assert not {"script", "img"} & tags
    assert "&lt;script&gt;" in text
    assert "\\u202eexe" in text
    assert not {"\u202e", "\u2066"} & set(text)


def test_a_failed_gate_is_told_first(debug_manifest: Manifest, tmp_path: Path) -> None:
    manifest = replace(debug_manifest, verdict=Verdict.FAILED)
    outcome = GateOutcome(parity=None, fidelity=None, reason="blocks: layers.1.mlp is wrong")
    listed = with_report(tmp_path, manifest, outcome.to_json())
    text = (tmp_path / "report.html").read_text()
    assert text.index("Failed") < text.index("layers.1.mlp is wrong") < text.index("<h2>Size")
    assert "Not measured" in text
    assert [one.path for one in listed.files] == ["model.pte", "report.html"]


def test_sizes_add_up(debug_bundles: Mapping[str, Bundle]) -> None:
    for bundle in debug_bundles.values():
        manifest = bundle.manifest
        parts = size_parts(manifest)
        assert sum(parts.values()) == sum(file.size_bytes for file in manifest.files)
        assert 4.5 < bits_per_weight(manifest) < 9


def test_errors_are_shown_before_and_after_flips_are_taken_back(
    debug_bundles: Mapping[str, Bundle],
) -> None:
    text = (debug_bundles["android"].root / "report.html").read_text()
    blocks = parity_of(debug_bundles["android"])["parity"]["blocks"]["blocks"]
    flipped = next(block for block in blocks if block["flips"])
    raw = max(flipped["prefill"]["raw_max"], flipped["decode"]["raw_max"])
    explained = max(flipped["prefill"]["max"], flipped["decode"]["max"])
    assert raw > explained
    row = re.search(rf"<tr><th scope=\"row\">{re.escape(flipped['name'])}</th>.*?</tr>", text)
    assert row is not None
    assert f"{raw:.1e}" in row.group()
    assert f"{explained:.1e}" in row.group()


def test_a_plotting_backend_that_is_not_installed_is_no_matter() -> None:
    """A notebook sets one for every program that it starts."""
    code = "from llama_edge.report.charts import figure\nwith figure(): pass"
    environment = {**os.environ, "MPLBACKEND": "module://no_such_backend"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=100)
