"""A suite that is small enough for the debug model, whose tokens are bytes."""

import json
from pathlib import Path
from typing import Any


def tiny_prompt(number: int, language: str) -> dict[str, Any]:
    return {
        "id": f"{language}-{number}",
        "language": language,
        "task": "summary",
        "messages": [{"role": "user", "content": f"Say {number}."}],
        "checks": [{"kind": "characters"}, {"kind": "ends_with", "phrase": "never said"}],
    }


TINY: dict[str, Any] = {
    "name": "tiny",
    "max_new_tokens": 12,
    "prompts": [tiny_prompt(number, language) for number in range(3) for language in ("en", "th")],
}


def write_tiny(folder: Path) -> Path:
    """A file in `folder`."""
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path
