"""Licence texts that a bundle carries on, and what a known model's licence asks for besides."""

import re
from pathlib import Path
from typing import Final

from llama_edge.bundle.manifest import Manifest
from llama_edge.checkpoints import split_adapters
from llama_edge.checkpoints.hub import is_hub_id, parse_hub_id
from llama_edge.checkpoints.known_models import KNOWN_MODELS, Licence
from llama_edge.core.errors import LlamaEdgeError
from llama_edge.core.files import write_bytes, write_text
from llama_edge.core.regular import read_regular
from llama_edge.core.walk import walk

NOTICE_FILE: Final = "NOTICE"
#: As people name them, with letters that every file system and app has.
_NAME: Final = re.compile(
    r"(licen[cs]e|notice|copying|use[_-]?policy)([._-][A-Za-z0-9._-]{1,60})?", re.IGNORECASE
)
_MAX_BYTES: Final = 1 << 20
_MAX_FILES: Final = 16


def copy_licences(source: Path, bundle: Path) -> tuple[str, ...]:
    """Copy a model's licence texts into a bundle that is being written.

    A text that cannot be read is left out: it is not the model.

    Args:
        source: The model's folder.
        bundle: A folder without manifest yet.

    Returns:
        Their names.
    """
    names = sorted(e.name for e in walk(source, depth=1) if _NAME.fullmatch(e.name))
    copied = []
    for name in names[:_MAX_FILES]:
        try:
            data = read_regular(source / name, _MAX_BYTES)
        except LlamaEdgeError:
            continue
        write_bytes(bundle / name, data)
        copied.append(name)
    return tuple(copied)


def known_licence(source: str) -> Licence | None:
    """The licence of a model that the table has.

    Args:
        source: As `Model.source` of a manifest: an id, with or without choice and adapters.
    """
    base, _ = split_adapters(source)
    if not is_hub_id(base):
        return None
    name = parse_hub_id(base).name.lower()
    return next((row.licence for row in KNOWN_MODELS.values() if row.id.lower() == name), None)


def write_notice(source: str, bundle: Path) -> None:
    """Write the file NOTICE that a known model's licence asks for, unless one was copied."""
    licence = known_licence(source)
    if licence is not None and licence.notice and not (bundle / NOTICE_FILE).exists():
        write_text(bundle / NOTICE_FILE, licence.notice + "\n")


def missing_notice(manifest: Manifest) -> str | None:
    """What the licence of a known model asks for and the bundle does not have."""
    licence = known_licence(manifest.model.source)
    if licence is None or not licence.notice:
        return None
    if any(file.path.upper().startswith(NOTICE_FILE) for file in manifest.files):
        return None
    return (
        f"{licence.name} asks for a file {NOTICE_FILE} with copies of the model, and the bundle "
        f'has none: "{licence.notice}"'
    )
