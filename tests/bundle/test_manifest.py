import json
from dataclasses import replace
from typing import Any

import pytest

from llama_edge.bundle.manifest import MANIFEST_VERSION, Manifest
from llama_edge.core.errors import ArtifactError
from llama_edge.core.model_config import LinearRopeScaling
from llama_edge.text.tool_calls import CallFormat
from llama_edge.text.tool_form import ToolForm, ToolsIn


def plain(manifest: Manifest) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(manifest.to_json()))
    return value


def test_json_round_trip_keeps_every_field(debug_manifest: Manifest) -> None:
    assert Manifest.from_json(plain(debug_manifest), "m") == debug_manifest


def test_newer_version_is_refused_with_the_remedy(debug_manifest: Manifest) -> None:
    value = plain(debug_manifest) | {"format_version": MANIFEST_VERSION + 1, "new_field": 1}
    with pytest.raises(ArtifactError, match="Update the app or llama-edge"):
        Manifest.from_json(value, "m")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), 0),
        (("verdict",), "perhaps"),
        (("surprise",), 1),
        (("model", "source"), "/home/someone/model"),
        (("model", "source_sha256"), "0" * 63),
        (("model", "config", "hidden_size"), -1),
        (("recipe", "group_size"), "32"),
        (("files",), []),
        (("files", 0, "path"), "/etc/passwd"),
        (("files", 0, "sha256"), "Z" * 64),
        (("artifact", "activation_quantization"), "int3"),
        (("artifact", "max_context"), 0),
        (("text", "eos_token_ids"), []),
        (("text", "golden_tokens", 0, "tokens"), [-1]),
        (("tensors", 0, "shape"), [1]),
        (("parity",), {}),
    ],
)
def test_schema_refuses(
    debug_manifest: Manifest, path: tuple[str | int, ...], value: object
) -> None:
    broken = plain(debug_manifest)
    place: Any = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match=r"^m: "):
        Manifest.from_json(broken, "m")


def test_a_manifest_of_linear_rope_scaling(debug_manifest: Manifest) -> None:
    scaling = LinearRopeScaling(factor=2.5)
    config = replace(debug_manifest.model.config, rope_scaling=scaling)
    linear = replace(debug_manifest, model=replace(debug_manifest.model, config=config))
    assert Manifest.from_json(plain(linear), "m") == linear


def test_what_is_unusual_is_optional(debug_manifest: Manifest) -> None:
    """Manifests of before have none, and what is usual is written as they have it."""
    assert not {"warnings", "tools"} & plain(debug_manifest).keys()
    assert "content_parts" not in plain(debug_manifest)["text"]
    unusual = replace(
        debug_manifest,
        warnings=("so it is",),
        tools=ToolForm(
            format=CallFormat.PYTHONIC,
            in_prompt=ToolsIn.SYSTEM,
            result_role="user",
            max_calls=2,
        ),
        text=replace(debug_manifest.text, content_parts=True),
    )
    assert Manifest.from_json(plain(unusual), "m") == unusual
    assert unusual.text.sha256() != debug_manifest.text.sha256()


@pytest.mark.parametrize(
    "field",
    sorted(Manifest.__dataclass_fields__.keys() - {"tools", "warnings"}),
)
def test_every_field_is_required(debug_manifest: Manifest, field: str) -> None:
    value = plain(debug_manifest)
    del value[field]
    with pytest.raises(ArtifactError, match=field):
        Manifest.from_json(value, "m")
