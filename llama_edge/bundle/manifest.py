"""The manifest: what a bundle promises to the app that loads it.

`manifest.schema.json` next to this file is the contract in full; it is applied to every manifest
that is written or read. The apps read the same schema.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, ValuesView
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any, Final

import jsonschema

from llama_edge.bundle.finding_codes import ContractFinding, ContractViolationError
from llama_edge.core.artifact import Interface, Placement, TensorSpec
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.quantized import CalibrationRecord, MixedPrecision, ScaleRounding
from llama_edge.core.recipe import Recipe
from llama_edge.text.contract import GoldenChat, GoldenTokens, TextContract
from llama_edge.text.tool_calls import CallFormat
from llama_edge.text.tool_form import ToolForm, ToolsIn

MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"
MANIFEST_VERSION: Final = 1
#: Of `files`; the schema's pattern also says where a slash may be.
_PATH_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._/-]*")
#: A 3B manifest has some 10,000; the schema is applied to so many in a second or two.
_MAX_VALUES: Final = 200_000
#: Faults of the schema among which the one to tell is chosen: a hostile manifest has millions.
_MAX_ERRORS: Final = 100


class Verdict(StrEnum):
    """Whether every gate held for the files of this bundle."""

    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Where the weights came from."""

    #: a built-in name, a Hugging Face id, or the last part of a local path
    source: str
    #: SHA-256 over names, shapes and float32 values of the full-precision weights
    source_sha256: str
    config: ModelConfig
    #: how it was read, where that changed something
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the config's family is also outside it, where readers look."""
        return {
            "source": self.source,
            "source_sha256": self.source_sha256,
            "config": self.config.to_json(),
            "family": self.config.family,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the bundle; `path` is relative to the bundle, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One quantized matrix; the hashes are of `core.packing.tensor_sha256`."""

    name: str
    shape: tuple[int, int]
    bits: int
    group_size: int
    codes_sha256: str
    scales_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInterface:
    """How the written graph is called."""

    interface: Interface
    #: what its linears do to their input; a value of `ActivationQuantization`
    activation_quantization: str
    #: how keys and values are kept; a value of `KVCacheDtype`
    kv_cache: str
    max_context: int
    max_prefill: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of `manifest.json`."""

    verdict: Verdict
    model: Model
    recipe: Recipe
    #: None for a recipe that needs no text
    calibration: CalibrationRecord | None
    #: None for a recipe without `extra_bytes`
    mixed_precision: MixedPrecision | None
    target: str
    backend: str
    #: every file but the manifest itself; the first one is the one to open
    files: tuple[FileEntry, ...]
    artifact: ArtifactInterface
    text: TextContract
    tensors: tuple[TensorEntry, ...]
    placement: Placement
    #: summary of `parity.json`, which has the measurements in full
    parity: Mapping[str, Any]
    #: None when the full-precision model was not available
    fidelity: Mapping[str, Any] | None
    #: name and version of every library that wrote or ran the files
    versions: Mapping[str, str]
    #: None where scales were chosen by the recipe
    scale_rounding: ScaleRounding | None = None
    #: what is unusual about the checkpoint's text side and does not make the bundle wrong
    warnings: tuple[str, ...] = ()
    #: None for a model without a chat template, and in manifests of before there were tools
    tools: ToolForm | None = None
    format_version: int = field(default=MANIFEST_VERSION)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, checked against the schema."""
        fields = {
            **asdict(self),
            "model": self.model.to_json(),
            "recipe": self.recipe.to_json(),
            "text": self.text.to_json(),
        }
        if not self.warnings:
            del fields["warnings"]
        if self.tools is None:
            del fields["tools"]
        value: dict[str, Any] = json.loads(json.dumps(fields))
        check_schema(value, "manifest")
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "Manifest":
        """Read what `to_json` wrote; `where` names the file in messages.

        Raises:
            ContractViolationError: It breaks the schema, or a newer program wrote it.
            ConfigError: The model config is contradictory.
        """
        version = value.get("format_version")
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise ContractViolationError(
                ContractFinding(
                    code="manifest.version",
                    where=f"{MANIFEST_FILE}: format_version",
                    expected=f"at most {MANIFEST_VERSION}",
                    found=f"format_version {version}",
                ),
                where,
            )
        _check_count(value, where)
        _check_names(value, where)
        check_schema(value, where)
        _check_once(value, where)
        artifact = value["artifact"]
        return cls(
            verdict=Verdict(value["verdict"]),
            model=_model(value["model"], where),
            recipe=Recipe.from_json(value["recipe"]),
            calibration=(
                None if value["calibration"] is None else CalibrationRecord(**value["calibration"])
            ),
            mixed_precision=(
                None
                if value["mixed_precision"] is None
                else MixedPrecision.from_json(value["mixed_precision"])
            ),
            target=value["target"],
            backend=value["backend"],
            files=tuple(FileEntry(**entry) for entry in value["files"]),
            artifact=ArtifactInterface(
                **{**artifact, "interface": _interface(artifact["interface"])}
            ),
            text=_text(value["text"]),
            tensors=tuple(
                TensorEntry(**{**entry, "shape": tuple(entry["shape"])})
                for entry in value["tensors"]
            ),
            placement=Placement(**value["placement"]),
            parity=value["parity"],
            fidelity=value["fidelity"],
            versions=value["versions"],
            scale_rounding=(
                None
                if value["scale_rounding"] is None
                else ScaleRounding.from_json(value["scale_rounding"])
            ),
            warnings=tuple(value.get("warnings", ())),
            tools=_tools(value["tools"]) if "tools" in value else None,
        )


def _model(value: Mapping[str, Any], where: str) -> Model:
    fields = {**value, "config": ModelConfig.from_json(value["config"])}
    family, config = fields.pop("family"), fields["config"]
    if family != config.family:
        raise ContractViolationError(
            ContractFinding(
                code="manifest.schema",
                where=f"{MANIFEST_FILE}: model.family",
                expected=f"{config.family}, as model.config says",
                found=str(family),
            ),
            where,
        )
    return Model(**fields)


def _interface(value: Mapping[str, Any]) -> Interface:
    def specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=entry["name"], dtype=entry["dtype"], shape=tuple(entry["shape"]))
            for entry in entries
        )

    return Interface(
        inputs=specs(value["inputs"]), outputs=specs(value["outputs"]), cache=value["cache"]
    )


def _text(value: Mapping[str, Any]) -> TextContract:
    return TextContract(
        **{
            **value,
            "eos_token_ids": tuple(value["eos_token_ids"]),
            "golden_tokens": tuple(
                GoldenTokens(**{**entry, "tokens": tuple(entry["tokens"])})
                for entry in value["golden_tokens"]
            ),
            "golden_chats": tuple(
                GoldenChat(
                    messages=tuple(entry["messages"]),
                    text=entry["text"],
                    tokens=tuple(entry["tokens"]),
                )
                for entry in value["golden_chats"]
            ),
        }
    )


def _tools(value: Mapping[str, Any]) -> ToolForm:
    return ToolForm(
        format=CallFormat(value["format"]),
        in_prompt=ToolsIn(value["in_prompt"]),
        result_role=value["result_role"],
        max_calls=value["max_calls"],
    )


def _check_count(value: Mapping[str, Any], where: str) -> None:
    """More values than any model needs are hours of work for who applies the schema.

    Raises:
        ContractViolationError: There are more than `_MAX_VALUES`.
    """
    count = 0
    unseen: list[object] = [value]
    while unseen and count <= _MAX_VALUES:
        found = unseen.pop()
        inner = found.values() if isinstance(found, Mapping) else found
        if isinstance(inner, (list, ValuesView)):
            count += len(inner)
            unseen.extend(item for item in inner if isinstance(item, (dict, list)))
    if count > _MAX_VALUES:
        finding = ContractFinding(
            code="manifest.too_large",
            where=MANIFEST_FILE,
            expected=f"at most {_MAX_VALUES} values",
            found="more",
        )
        raise ContractViolationError(finding, where)


def _check_names(value: Mapping[str, Any], where: str) -> None:
    """Paths reach shells, file systems and reports: no character in them means anything to these.

    Raises:
        ContractViolationError: A path of `files` has a character that the schema's pattern forbids.
    """
    files = value.get("files")
    for entry in files if isinstance(files, list) else ():
        path = entry.get("path") if isinstance(entry, dict) else None
        if isinstance(path, str) and not _PATH_CHARACTERS.fullmatch(path):
            raise ContractViolationError(
                ContractFinding(
                    code="files.name",
                    where=f"{MANIFEST_FILE}: files",
                    expected="letters, digits and ._-/ alone",
                    found=ascii(path[:200]),
                ),
                where,
            )


def _check_once(value: Mapping[str, Any], where: str) -> None:
    """A file of two hashes has none, and a large one that is listed often is hashed as often.

    Raises:
        ContractViolationError: Two entries of `files` or `tensors` have the same name.
    """
    for field_name, key in (("files", "path"), ("tensors", "name")):
        counts = Counter(entry[key] for entry in value[field_name])
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            finding = ContractFinding(
                code="manifest.schema",
                where=f"{MANIFEST_FILE}: {field_name}",
                expected=f"each {key} once",
                found=f"{counts[twice]} times {twice[:200]!a}",
            )
            raise ContractViolationError(finding, where)


def _unique_items(
    validator: jsonschema.Draft202012Validator, unique: bool, items: object, schema: object
) -> Iterator[jsonschema.ValidationError]:
    """The keyword `uniqueItems` in linear time; the library compares objects pair by pair."""
    del validator, schema
    if not unique or not isinstance(items, list):
        return
    # JSON has one kind of number, so that 1.0 is 1.
    plain = (int(item) if isinstance(item, float) and item.is_integer() else item for item in items)
    if len({json.dumps(item, sort_keys=True) for item in plain}) != len(items):
        yield jsonschema.ValidationError("has an item twice")


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = resources.files("llama_edge.bundle").joinpath("manifest.schema.json").read_text("utf-8")
    linear = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, {"uniqueItems": _unique_items}
    )
    return linear(json.loads(text))


def check_schema(value: Mapping[str, Any], where: str) -> None:
    """Hold a manifest against `manifest.schema.json`.

    Raises:
        ContractViolationError: Naming the field that breaks it.
    """
    errors = islice(_validator().iter_errors(value), _MAX_ERRORS)
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        field = error.json_path.removeprefix("$").removeprefix(".")
        raise ContractViolationError(
            ContractFinding(
                code="manifest.schema",
                where=f"{MANIFEST_FILE}: {field}" if field else MANIFEST_FILE,
                expected="what the schema says",
                found=f"{field}: {error.message[:200]}" if field else error.message[:200],
            ),
            where,
        )
