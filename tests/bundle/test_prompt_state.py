"""`prompt_state.safetensors`: written and read back, and every way in which it can be wrong."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_edge.bundle.finding_codes import ContractCheckError
from llama_edge.bundle.manifest import FileEntry, Manifest
from llama_edge.bundle.prompt_state import (
    STATE_FILE,
    Origin,
    PromptState,
    artifact_sha256,
    check_prompt_state,
    is_own,
    read_prompt_state,
    text_sha256,
    write_prompt_state,
)
from llama_edge.core.artifact import ActivationQuantization, Artifact, KVCacheDtype
from llama_edge.core.cache_state import CacheState, cache_arrays
from tests.conftest import DEBUG_CONFIG

CONTEXT, TOKENS = 16, (3, 17, 90)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(
        backend="executorch",
        root=tmp_path,
        files=("model.pte",),
        config=DEBUG_CONFIG,
        activation=ActivationQuantization.INT8_PER_TOKEN,
        max_context=CONTEXT,
        max_prefill=8,
    )


@pytest.fixture
def manifest(debug_manifest: Manifest) -> Manifest:
    names = ("model.pte", "tokenizer.json", "tokenizer_config.json", STATE_FILE)
    files = tuple(
        FileEntry(path=name, size_bytes=1, sha256=f"{index}" * 64)
        for index, name in enumerate(names)
    )
    return replace(debug_manifest, files=files)


def made(manifest: Manifest, artifact: Artifact, kv_cache: KVCacheDtype) -> PromptState:
    random = np.random.default_rng(0)
    heads = DEBUG_CONFIG.num_key_value_heads
    arrays = {
        array.name: (random.normal(size=(len(TOKENS), heads, array.width)) * 9).astype(array.dtype)
        for array in cache_arrays(DEBUG_CONFIG, kv_cache)
    }
    return PromptState(
        origin=Origin(
            artifact_sha256=artifact_sha256(manifest, artifact),
            text_sha256=text_sha256(manifest),
            runtime="executorch",
            runtime_version="executorch 1.2.3",
            max_context=CONTEXT,
            system="Be brief.\n\u0e01",
            day=date(2026, 11, 28),
        ),
        tokens=TOKENS,
        cache=CacheState(kv_cache=kv_cache, tokens=len(TOKENS), arrays=arrays),
    )


@pytest.mark.parametrize("kv_cache", KVCacheDtype)
@pytest.mark.parametrize("day", [None, date(2026, 11, 28)])
def test_read_as_it_was_written(
    manifest: Manifest, artifact: Artifact, kv_cache: KVCacheDtype, day: date | None
) -> None:
    state = made(manifest, artifact, kv_cache)
    state = replace(state, origin=replace(state.origin, day=day))
    path = artifact.root / STATE_FILE
    write_prompt_state(path, state)
    found = read_prompt_state(artifact.root, manifest, artifact)
    assert found is not None
    assert (found.origin, found.tokens) == (state.origin, TOKENS)
    assert found.cache.equals(state.cache)
    assert is_own(artifact.root)
    bytes_per_token = kv_cache.bytes_per_token(DEBUG_CONFIG)
    assert found.cache.size_bytes == len(TOKENS) * bytes_per_token, "only the rows in use"
    written = path.read_bytes()
    path.unlink()
    write_prompt_state(path, state)
    assert path.read_bytes() == written


def test_a_bundle_without_one(manifest: Manifest, artifact: Artifact) -> None:
    without = replace(manifest, files=manifest.files[:-1])
    assert read_prompt_state(artifact.root, without, artifact) is None
    assert not is_own(artifact.root)
    (finding,) = check_prompt_state(artifact.root, manifest, artifact)
    assert finding.code == "state.unreadable"
    assert "the file is missing" in finding.found


@pytest.mark.parametrize(("index", "what"), [(0, "artifact"), (1, "tokenizer"), (2, "tokenizer")])
def test_another_model_or_tokenizer_is_refused(
    manifest: Manifest, artifact: Artifact, index: int, what: str
) -> None:
    write_prompt_state(artifact.root / STATE_FILE, made(manifest, artifact, KVCacheDtype.FLOAT32))
    files = list(manifest.files)
    files[index] = replace(files[index], sha256="f" * 64)
    other = replace(manifest, files=tuple(files))
    with pytest.raises(ContractCheckError, match=f"made for another model.*a state for the {what}"):
        read_prompt_state(artifact.root, other, artifact)
    (finding,) = check_prompt_state(artifact.root, other, artifact)
    assert finding.code == "state.binding"


Arrays = dict[str, NDArray[Any]]


def forged(path: Path, metadata: Mapping[str, str], arrays: Arrays) -> None:
    """A file that follows safetensors' rules, by nobody's rules else."""
    names = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "int64": "I64"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    data = b""
    for name, array in arrays.items():
        end = len(data) + array.nbytes
        dtype = names[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _metadata(**changed: str | None) -> Callable[[dict[str, str], Arrays], None]:
    def change(metadata: dict[str, str], arrays: Arrays) -> None:
        del arrays
        for name, value in changed.items():
            if value is None:
                del metadata[name]
            else:
                metadata[name] = value

    return change


def _array(
    name: str, change: Callable[[NDArray[Any]], NDArray[Any] | None]
) -> Callable[[dict[str, str], Arrays], None]:
    def edit(metadata: dict[str, str], arrays: Arrays) -> None:
        del metadata
        value = change(arrays.get(name, np.zeros(1, np.float32)))
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value

    return edit


def _with_nan(array: NDArray[Any]) -> NDArray[Any]:
    array[0, 0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_metadata(format="other"), "says format 'other'"),
        (_metadata(format_version="2"), "version '2'"),
        (_metadata(format=None), "says format None"),
        (_metadata(system=None), "metadata is damaged: .*missing required field `system`"),
        (_metadata(more="1"), "metadata is damaged: .*unknown field `more`"),
        (_metadata(max_context="many"), "metadata is damaged"),
        (_metadata(max_context="99"), "a cache for 99 tokens; the model has one for 16"),
        (_metadata(day="today"), "metadata is damaged"),
        (_metadata(kv_cache="int4"), "metadata is damaged"),
        (_metadata(kv_cache="int8"), "a int8 cache of this model has"),
        (_metadata(runtime="onnx"), "--runtime onnx: the artifact's backend is executorch"),
        (_metadata(runtime="../x"), r"--runtime \.\./x"),
        (_array("tokens", lambda _: None), r"tokens have shape \(\)"),
        (_array("tokens", lambda a: a[:2]), r"'key\.0' is .*\(3, 2, 16\)\); a float32 cache"),
        (_array("tokens", lambda a: a.astype(np.int64)), "'tokens' is .*I64"),
        (_array("tokens", lambda a: np.zeros(CONTEXT, np.int32)), r"shape \(16,\); one to 15"),
        (_array("tokens", lambda a: a * 0 + 256), "the token 256; the vocabulary has 256"),
        (_array("tokens", lambda a: a * 0 - 1), "the token -1;"),
        (_array("value.1", lambda _: None), r"'value\.1' is missing"),
        (_array("value.2", lambda a: a), r"'value\.2' is .*nothing of that name"),
        (_array("key.1", lambda a: a.astype(np.float16)), r"'key\.1' is .*F16"),
        (_array("key.1", lambda a: a[:, :1]), r"'key\.1' is .*\(3, 1, 16\)"),
        (_array("key.1", _with_nan), r"key\.1 holds NaN or infinity"),
    ],
)
def test_what_is_wrong_is_named(
    manifest: Manifest,
    artifact: Artifact,
    change: Callable[[dict[str, str], Arrays], None],
    reason: str,
) -> None:
    state = made(manifest, artifact, KVCacheDtype.FLOAT32)
    origin = state.origin
    metadata = {
        "format": "llama-edge prompt state",
        "format_version": "1",
        "artifact_sha256": origin.artifact_sha256,
        "text_sha256": origin.text_sha256,
        "runtime": "executorch",
        "runtime_version": "executorch 1.2.3",
        "kv_cache": "float32",
        "max_context": str(CONTEXT),
        "system": origin.system,
        "day": "2026-11-28",
    }
    arrays = {"tokens": np.array(TOKENS, np.int32), **state.cache.arrays}
    path = artifact.root / STATE_FILE
    forged(path, metadata, arrays)
    assert read_prompt_state(artifact.root, manifest, artifact) is not None
    change(metadata, arrays)
    forged(path, metadata, arrays)
    with pytest.raises(ContractCheckError, match=f"not one that this program reads.*{reason}"):
        read_prompt_state(artifact.root, manifest, artifact)
    (finding,) = check_prompt_state(artifact.root, manifest, artifact)
    assert (finding.code, finding.where) == ("state.unreadable", STATE_FILE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a header of 0 bytes"),
        (b"\x00" * 8, "a header of 0 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", f"a header of {1 << 62} bytes"),
        (struct.pack("<Q", 2) + b"{}", "says format None"),
        (struct.pack("<Q", 2) + b"[]", "not readable as safetensors"),
        (bytes(9 << 20), "has 9437184 bytes; this model's cache has at most 8"),
    ],
)
def test_no_such_file(manifest: Manifest, artifact: Artifact, data: bytes, reason: str) -> None:
    (artifact.root / STATE_FILE).write_bytes(data)
    (finding,) = check_prompt_state(artifact.root, manifest, artifact)
    assert finding.code == "state.unreadable"
    assert reason in finding.found
    assert not is_own(artifact.root)
