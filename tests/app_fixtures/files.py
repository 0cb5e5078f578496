"""The fixture folder as a mapping from relative paths to bytes, and writing it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
FIXTURES: Final = ROOT / "app_fixtures"
INDEX: Final = "index.json"
#: What the apps carry of Python's own, so that both read one schema and say one wording.
SHARED_RESOURCES: Final = ("finding_codes.json", "manifest.schema.json")
RESOURCE_FOLDERS: Final = (
    ROOT / "android_demo/core/src/main/resources/llama_edge",
    ROOT / "ios_demo/BundleCore/Sources/BundleCore/Resources",
)

Case = dict[str, Any]
Files = dict[str, bytes]


def compact_json(value: Any) -> bytes:  # noqa: ANN401
    """One line; the same value gives the same bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def index_json(cases: list[Case]) -> bytes:
    """The index, one case a line, so that a change of one case is a change of one line."""
    lines = ",\n".join(compact_json(case).decode() for case in cases)
    return f'{{"format":1,"cases":[\n{lines}\n]}}\n'.encode()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace a folder by these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_files(folder: Path) -> Files:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
