"""`prompt_state.safetensors`: the KV cache after a fixed system prompt, in the bundle.

The file has one array for each part of the cache (`core.cache_state`), only the rows that are in
use, and `tokens`, the ids that were read. Its metadata says what it was made with: the hashes of
the artifact's files and of the tokenizer's, the runtime, and the system prompt itself. The manifest
lists it as every other file.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_edge.backends import BACKENDS
from llama_edge.bundle.finding_codes import ContractCheckError, ContractFinding
from llama_edge.bundle.manifest import Manifest
from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.cache_state import CacheState, cache_arrays
from llama_edge.core.errors import ArtifactError, UsageError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.regular import open_inside
from llama_edge.formats.quantized_checkpoint import write_safetensors
from llama_edge.runtimes import choose_runtime
from llama_edge.text.special_tokens import TOKENIZER_CONFIG_FILE
from llama_edge.text.text_assets import TOKENIZER_FILE

STATE_FILE: Final = "prompt_state.safetensors"
#: Says in the metadata who made the file.
FORMAT: Final = "llama-edge prompt state"
FORMAT_VERSION: Final = 1
#: Of a system prompt, in UTF-8: some hundred thousand tokens.
MAX_SYSTEM_BYTES: Final = 1 << 20
#: A system prompt, escaped, and a line for each of some hundred arrays.
_MAX_HEADER_BYTES: Final = 8 << 20
_TOKENS: Final = "tokens"
#: safetensors' names.
_DTYPES: Final[Mapping[str, str]] = {
    "float32": "F32",
    "float16": "F16",
    "int8": "I8",
    "int32": "I32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a state was made with."""

    #: of the names and hashes of the artifact's files
    artifact_sha256: str
    #: of the names and hashes of the files of the tokenizer and the chat template
    text_sha256: str
    #: by its name
    runtime: str
    #: of the libraries that ran it
    runtime_version: str
    max_context: int
    system: str
    #: what the chat template was told, where it writes the current day
    day: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptState:
    """A system prompt that need not be read again."""

    origin: Origin
    #: what every dialog with it begins with
    tokens: tuple[int, ...]
    cache: CacheState


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As it is in the file, where every value is a text."""

    format: str
    format_version: int
    artifact_sha256: str
    text_sha256: str
    runtime: str
    runtime_version: str
    kv_cache: KVCacheDtype
    max_context: int
    system: Annotated[str, msgspec.Meta(max_length=MAX_SYSTEM_BYTES)]
    day: date | None = None


def runtime_version(backend: str) -> str:
    """Names and versions of the libraries that run a backend's artifacts here."""
    return ", ".join(f"{name} {version(name)}" for name in BACKENDS[backend].libraries)


def artifact_sha256(manifest: Manifest, artifact: Artifact) -> str:
    """One hash of all files of the artifact, by what the manifest says of them."""
    return _files_sha256(manifest, artifact.files)


def text_sha256(manifest: Manifest) -> str:
    """One hash of the files that make tokens of a dialog, by what the manifest says of them."""
    return _files_sha256(manifest, (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE))


def _files_sha256(manifest: Manifest, names: Iterable[str]) -> str:
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    lines = (f"{listed.get(name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_prompt_state(path: Path, state: PromptState) -> None:
    """Write a new file; the same state gives the same bytes."""
    arrays = {_TOKENS: np.array(state.tokens, np.int32), **state.cache.arrays}
    layout = {name: (_DTYPES[array.dtype.name], array.shape) for name, array in arrays.items()}
    fields = {**asdict(state.origin), "kv_cache": state.cache.kv_cache.value}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        **{name: str(value) for name, value in fields.items() if value is not None},
    }
    write_safetensors(path, layout, _tensors(arrays), metadata)


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, Tensor]]:
    for name, array in arrays.items():
        # A copy: torch takes no array that cannot be written.
        yield name, torch.from_numpy(np.array(array, order="C"))


def is_listed(manifest: Manifest) -> bool:
    """Whether the bundle has a state."""
    return any(entry.path == STATE_FILE for entry in manifest.files)


def is_own(folder: Path) -> bool:
    """Whether the file in `folder` was written by `write_prompt_state`, damaged or not."""
    try:
        with open_inside(folder, STATE_FILE) as stream:
            return FORMAT.encode() in stream.read(_MAX_HEADER_BYTES)
    except ArtifactError:
        return False


def read_prompt_state(folder: Path, manifest: Manifest, artifact: Artifact) -> PromptState | None:
    """The state of a bundle, which is untrusted; None: it has none.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        artifact: Of the bundle.

    Raises:
        ContractCheckError: It cannot be read; or it was made for other files.
    """
    if not is_listed(manifest):
        return None
    try:
        state = _read(folder, artifact)
    except ArtifactError as error:
        found = str(error).removeprefix(f"{folder / STATE_FILE}: ")
        raise _refused("state.unreadable", folder, "a prompt state", found) from error
    for what, wanted, found in (
        ("the artifact's files", artifact_sha256(manifest, artifact), state.origin.artifact_sha256),
        ("the tokenizer and the template", text_sha256(manifest), state.origin.text_sha256),
    ):
        if wanted != found:
            expected = f"a state for {what}, whose SHA-256 is {wanted}"
            raise _refused("state.binding", folder, expected, found[:64])
    return state


def why_unusable(state: PromptState, runtime: str, backend: str) -> str | None:
    """Why a state is of no use to a runtime on this machine; None: it can be restored.

    Args:
        state: Of a bundle.
        runtime: The name of the one that will run.
        backend: The artifact's.
    """
    origin = state.origin
    if runtime != origin.runtime:
        return f"it was made with the runtime {origin.runtime}, and this is {runtime}"
    installed = runtime_version(backend)
    if installed != origin.runtime_version:
        return (
            f"it was made with {origin.runtime_version}, and {installed} is installed; run "
            "llama-edge warm again"
        )
    return None


def check_prompt_state(
    folder: Path, manifest: Manifest, artifact: Artifact
) -> Iterator[ContractFinding]:
    """What is wrong with the state of a bundle, where it has one; nothing is run."""
    try:
        read_prompt_state(folder, manifest, artifact)
    except ContractCheckError as error:
        yield error.finding


def _refused(code: str, folder: Path, expected: str, found: str) -> ContractCheckError:
    finding = ContractFinding(code=code, where=STATE_FILE, expected=expected, found=found)
    return ContractCheckError(finding, folder / STATE_FILE)


class _StateFile(Protocol):
    """What is used of safetensors' `safe_open`, whose own stubs have no types."""

    def metadata(self) -> dict[str, str] | None: ...

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str) -> Any: ...  # noqa: ANN401

    def get_tensor(self, name: str) -> NDArray[Any]: ...


def _read(folder: Path, artifact: Artifact) -> PromptState:
    path = folder / STATE_FILE
    _check_size(folder, artifact)
    try:
        file: _StateFile = safe_open(path, framework="np")
        metadata = _metadata(file, path)
        if metadata.max_context != artifact.max_context:
            raise ArtifactError(
                f"{path}: is of a cache for {metadata.max_context} tokens; the model has one for "
                f"{artifact.max_context}"
            )
        _check_layout(file, path, artifact.config, metadata)
        choose_runtime(artifact.backend, metadata.runtime)
        tokens = tuple(map(int, file.get_tensor(_TOKENS)))
        arrays = {
            array.name: file.get_tensor(array.name)
            for array in cache_arrays(artifact.config, metadata.kv_cache)
        }
    except UsageError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors: {error}") from error
    _check_values(path, tokens, arrays, artifact.config.vocab_size)
    return PromptState(
        origin=Origin(
            artifact_sha256=metadata.artifact_sha256,
            text_sha256=metadata.text_sha256,
            runtime=metadata.runtime,
            runtime_version=metadata.runtime_version,
            max_context=metadata.max_context,
            system=metadata.system,
            day=metadata.day,
        ),
        tokens=tokens,
        cache=CacheState(kv_cache=metadata.kv_cache, tokens=len(tokens), arrays=arrays),
    )


def _check_size(folder: Path, artifact: Artifact) -> None:
    """Before anything is allocated for it."""
    row_bytes = max(kind.bytes_per_token(artifact.config) for kind in KVCacheDtype)
    limit = _MAX_HEADER_BYTES + artifact.max_context * (row_bytes + 4)
    path = folder / STATE_FILE
    with open_inside(folder, STATE_FILE) as stream:
        start = stream.read(8)
        size = stream.seek(0, 2)
    if size > limit:
        raise ArtifactError(f"{path}: has {size} bytes; this model's cache has at most {limit}")
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < header <= min(_MAX_HEADER_BYTES, size - 8):
        raise ArtifactError(
            f"{path}: has a header of {header} bytes; at most {_MAX_HEADER_BYTES}, all of them in "
            "the file, are read"
        )


def _metadata(file: _StateFile, path: Path) -> _Metadata:
    given = file.metadata() or {}
    form = given.get("format"), given.get("format_version")
    if form != (FORMAT, str(FORMAT_VERSION)):
        raise ArtifactError(
            f"{path}: says format {form[0]!r:.100}, version {form[1]!r:.100}; {FORMAT!r}, version "
            f"{FORMAT_VERSION}, is read here"
        )
    try:
        return msgspec.convert(given, _Metadata, strict=False)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path}: its metadata is damaged: {error}") from error


def _check_layout(file: _StateFile, path: Path, config: ModelConfig, metadata: _Metadata) -> None:
    """Names, dtypes and shapes, before any array is read."""
    names = set(file.keys())
    shape = tuple(file.get_slice(_TOKENS).get_shape()) if _TOKENS in names else ()
    if len(shape) != 1 or not 0 < shape[0] < metadata.max_context:
        raise ArtifactError(
            f"{path}: its tokens have shape {shape}; one to {metadata.max_context - 1} of them are "
            "needed"
        )
    heads = config.num_key_value_heads
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        array.name: (_DTYPES[array.dtype.name], (shape[0], heads, array.width))
        for array in cache_arrays(config, metadata.kv_cache)
    }
    wanted[_TOKENS] = "I32", shape
    for name in sorted({*wanted, *names}):
        view = file.get_slice(name) if name in names else None
        found = None if view is None else (str(view.get_dtype()), tuple(view.get_shape()))
        if found != wanted.get(name):
            raise ArtifactError(
                f"{path}: {name[:100]!a} is {found or 'missing'}; a {metadata.kv_cache} cache of "
                f"this model has {wanted.get(name) or 'nothing of that name'}"
            )


def _check_values(
    path: Path, tokens: tuple[int, ...], arrays: Mapping[str, NDArray[Any]], vocab_size: int
) -> None:
    outside = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise ArtifactError(
            f"{path}: has the token {outside}; the vocabulary has {vocab_size} tokens"
        )
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"{path}: {name} holds NaN or infinity")
