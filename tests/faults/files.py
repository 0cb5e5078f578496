"""Faults of files and of what a manifest promises."""

import os
from pathlib import Path
from typing import Final

import numpy as np

from llama_edge.bundle.folder import parse_manifest
from llama_edge.bundle.prompt_state import STATE_FILE, Origin, PromptState, write_prompt_state
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.cache_state import CacheState, cache_arrays
from tests.faults import forging as forge
from tests.faults.fault import DOWN, Fault, field, in_manifest, manifest
from tests.faults.forging import Json, put


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format_version": 1,')


def inflate_manifest(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as stream:
        stream.truncate(17 << 20)


def truncate_data(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(folder: Path) -> None:
    forge.edit_bytes(folder / "model.pte", 9000, lambda piece: bytes([piece[0] ^ 1]), 1)


def lose_file(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def link_outside(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    (folder / "model.onnx.data").rename(outside)
    (folder / "model.onnx.data").symlink_to(outside)


def link_unlisted(folder: Path) -> None:
    """A folder that the manifest says nothing of, and that is somebody else's."""
    (folder / "weights").symlink_to(folder.parent, target_is_directory=True)


def link_inside(folder: Path) -> None:
    (folder / "model.onnx.data").rename(folder / "model.data")
    (folder / "model.onnx.data").symlink_to("model.data")


def add_pipe(folder: Path) -> None:
    os.mkfifo(folder / "manifest.sig")


def rename_file(folder: Path) -> None:
    (folder / "parity.json").rename(folder / "parity $(id).json")

    def change(found: Json) -> None:
        entry = next(entry for entry in found["files"] if entry["path"] == "parity.json")
        put(entry, "path", "parity $(id).json")

    forge.edit_manifest(folder, change)


def add_empty_folder(folder: Path) -> None:
    (folder / "chat_template.jinja").mkdir()


def add_file(folder: Path) -> None:
    (folder / "plugin.so").write_bytes(b"\x7fELF")


def cut_program(folder: Path) -> None:
    path = folder / "model.pte"
    path.write_bytes(path.read_bytes()[:-4096])


def garble_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\xff" * 64)


def add_noise_for_a_state(folder: Path) -> None:
    (folder / STATE_FILE).write_bytes(b"\xff" * 64)


def add_state_of_another_model(folder: Path) -> None:
    """As it must be, but for what it was made for."""
    manifest = parse_manifest(folder).manifest
    config, kind = manifest.model.config, KVCacheDtype.FLOAT32
    arrays = {
        array.name: np.zeros((1, config.num_key_value_heads, array.width), array.dtype)
        for array in cache_arrays(config, kind)
    }
    origin = Origin(
        artifact_sha256="0" * 64,
        text_sha256="0" * 64,
        runtime="onnx",
        runtime_version="onnx 1",
        max_context=manifest.artifact.max_context,
        system="Be brief.",
        day=None,
    )
    cache = CacheState(kv_cache=kind, tokens=1, arrays=arrays)
    write_prompt_state(folder / STATE_FILE, PromptState(origin=origin, tokens=(1,), cache=cache))


FILES: Final = (
    Fault("lost manifest", "onnx", lose_manifest, "manifest.missing", "manifest.json"),
    Fault("half a manifest", "onnx", garble_manifest, "manifest.not_json", "manifest.json"),
    Fault("huge manifest", "onnx", inflate_manifest, "manifest.too_large", "manifest.json"),
    Fault(
        "manifest of a newer version",
        "onnx",
        manifest("format_version", 2),
        "manifest.version",
        "manifest.json: format_version",
    ),
    Fault(
        "context of nothing",
        "onnx",
        manifest("artifact.max_context", 0),
        "manifest.schema",
        "manifest.json: artifact.max_context",
    ),
    Fault(
        "path out of the folder",
        "onnx",
        in_manifest(lambda found: put(found["files"][0], "path", "../secret")),
        "files.outside",
        "manifest.json",
    ),
    Fault("link out of the folder", "onnx", link_outside, "files.symlink", "model.onnx.data"),
    Fault("unlisted link out of the folder", "onnx", link_unlisted, "files.symlink", "weights"),
    Fault("link inside of the folder", "onnx", link_inside, "files.symlink", "model.onnx.data"),
    Fault("named pipe for a signature", "onnx", add_pipe, "files.kind", "manifest.sig"),
    Fault("name for a shell", "android", rename_file, "files.name", "manifest.json: files"),
    Fault("empty folder", "onnx", add_empty_folder, "files.unlisted", "chat_template.jinja"),
    Fault("lost file", "android", lose_file, "files.missing", "generation_config.json"),
    Fault("truncated data file", "onnx", truncate_data, "files.size", "model.onnx.data"),
    Fault("flipped bit", "android", flip_bit, "files.sha256", "model.pte"),
    Fault("stowaway", "onnx", add_file, "files.unlisted", "plugin.so"),
    Fault("program cut off", "android", cut_program, "artifact.unreadable", "model.pte", "files"),
    Fault("graph of noise", "onnx", garble_graph, "artifact.unreadable", "model.onnx", "files"),
    Fault(
        "prompt state of noise",
        "onnx",
        add_noise_for_a_state,
        "state.unreadable",
        STATE_FILE,
        "files",
    ),
    Fault(
        "prompt state of another model",
        "onnx",
        add_state_of_another_model,
        "state.binding",
        STATE_FILE,
        "files",
    ),
)


def keep_three_languages(found: Json) -> None:
    put(found["text"], "golden_tokens", found["text"]["golden_tokens"][:3])


PROMISES: Final = (
    Fault(
        "failed verdict",
        "onnx",
        manifest("verdict", "failed"),
        "verdict.failed",
        "manifest.json: verdict",
    ),
    Fault(
        "measurements that failed",
        "onnx",
        field("parity.json", "passed", False),
        "verdict.measurements",
        "parity.json: passed",
        "files",
    ),
    Fault(
        "backend of another target",
        "onnx",
        manifest("target", "ios"),
        "target.backend",
        "manifest.json: target, backend",
    ),
    Fault(
        "runtime from the future",
        "onnx",
        manifest("versions.onnxruntime", "99.0"),
        "runtime.version",
        "manifest.json: versions.onnxruntime",
    ),
    Fault(
        "context beyond the model",
        "onnx",
        manifest("artifact.max_context", 1024),
        "context.exceeds_model",
        "manifest.json: artifact.max_context",
    ),
    Fault(
        "layer that the manifest calls 8-bit",
        "onnx",
        in_manifest(lambda found: forge.tensors(found)[DOWN].update(bits=8)),
        "codes.unquantized",
        f"manifest.json: tensors {DOWN}",
    ),
    Fault(
        "weight that the manifest leaves out",
        "onnx",
        in_manifest(lambda found: found["tensors"].remove(forge.tensors(found)[DOWN])),
        "codes.missing",
        f"manifest.json: tensors {DOWN}",
    ),
    Fault(
        "languages left out",
        "onnx",
        in_manifest(
            lambda found: put(found["text"], "golden_tokens", found["text"]["golden_tokens"][:3])
        ),
        "tokenizer.golden_tokens",
        "manifest.json: text.golden_tokens",
    ),
)
