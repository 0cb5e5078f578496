"""Backends by name, and the targets that a user asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.backends.base import Exporter
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.errors import (
    ArtifactError,
    MissingComponentError,
    UnknownNameError,
    UsageError,
)
from llama_edge.core.recipe import Recipe
from llama_edge.core.walk import walk


def _executorch() -> Exporter:
    from llama_edge.backends.executorch.exporter import ExecuTorchExporter

    return ExecuTorchExporter()


def _onnx() -> Exporter:
    from llama_edge.backends.onnx.exporter import OnnxExporter

    return OnnxExporter()


def _coreml() -> Exporter:
    from llama_edge.backends.coreml.exporter import CoreMLExporter

    return CoreMLExporter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way to write a network, and what is known of it without its SDK."""

    #: what its main file, or package, ends with
    suffix: str
    #: packages whose versions can change what is written or measured
    libraries: tuple[str, ...]
    load: Callable[[], Exporter]
    #: whether its 4-bit linears have groups of the recipe's size
    takes_groups: Callable[[Recipe], bool]


def _onnx_groups(recipe: Recipe) -> bool:
    """Powers of two; with int8 activations, their blocks' own size."""
    group = recipe.group_size
    return group == 32 if recipe.activation_bits else group >= 16 and group.bit_count() == 1


BACKENDS: Final[Mapping[str, Backend]] = {
    "coreml": Backend(
        suffix=".mlpackage", libraries=("coremltools",), load=_coreml, takes_groups=lambda _: True
    ),
    "executorch": Backend(
        suffix=".pte",
        libraries=("executorch",),
        load=_executorch,
        takes_groups=lambda recipe: recipe.group_size % 32 == 0,
    ),
    "onnx": Backend(
        suffix=".onnx",
        libraries=("onnx", "onnxruntime"),
        load=_onnx,
        takes_groups=_onnx_groups,
    ),
}

#: The backend whose main file, or package, ends so.
SUFFIXES: Final[Mapping[str, str]] = {each.suffix: name for name, each in BACKENDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one backend writes for a target."""

    #: what `--format` calls it
    backend: str
    summary: str
    #: whether it runs weight-only recipes, whose activations stay in floating point
    float_activations: bool
    #: whether its backend holds embedding and lm_head in int4 groups as well
    int4_tables: bool = False
    #: how its caches are kept when nothing else is asked for
    kv_cache: KVCacheDtype
    #: what nobody has checked on such a device
    not_verified: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a bundle is meant to run."""

    name: str
    #: the first is what is written when none is asked for
    formats: tuple[Format, ...]


_PTE: Final = Format(
    backend="executorch",
    summary="ExecuTorch .pte on XNNPACK, as ExecuTorch's own LLM runner loads it",
    float_activations=False,
    kv_cache=KVCacheDtype.FLOAT32,
    not_verified="not run on a phone: speed, memory and Arm kernels are unmeasured",
)

TARGETS: Final[Mapping[str, Target]] = {
    "android": Target(name="android", formats=(_PTE,)),
    "ios": Target(
        name="ios",
        formats=(
            Format(
                backend="coreml",
                summary="stateful Core ML .mlpackage for iOS 18, activations in floating point",
                float_activations=True,
                int4_tables=True,
                kv_cache=KVCacheDtype.FLOAT16,
                not_verified=(
                    "run by an interpreter of ours, never by Apple's runtime: loading, placement "
                    "on the Neural Engine, speed and memory are unmeasured"
                ),
            ),
            _PTE,
        ),
    ),
    "onnx": Target(
        name="onnx",
        formats=(
            Format(
                backend="onnx",
                summary="ONNX folder with MatMulNBits, as onnxruntime-genai loads it",
                float_activations=True,
                kv_cache=KVCacheDtype.FLOAT32,
                not_verified="run on this machine's CPU provider only",
            ),
        ),
    ),
}


def get_exporter(backend: str) -> Exporter:
    """The backend of that name.

    Raises:
        UnknownNameError: There is none.
        MissingComponentError: Its packages are not installed.
    """
    if backend not in BACKENDS:
        raise UnknownNameError(f"backend {backend!r} is unknown; choose: {', '.join(BACKENDS)}")
    try:
        return BACKENDS[backend].load()
    except ModuleNotFoundError as error:
        raise MissingComponentError(
            f"backend {backend}: the package {error.name!r} is not installed; "
            f"pip install 'llama-edge[{backend}]'"
        ) from error


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in TARGETS:
        raise UnknownNameError(f"target {name!r} is unknown; choose from: {', '.join(TARGETS)}")
    return TARGETS[name]


def get_format(target: str, asked: str | None) -> Format:
    """What the target's bundle is written as: the format asked for, or the target's first.

    Raises:
        UnknownNameError: There is no such target.
        UsageError: The target has no such format.
    """
    formats = get_target(target).formats
    if asked is None:
        return formats[0]
    for known in formats:
        if known.backend == asked:
            return known
    raise UsageError(
        f"--format {asked}: the target {target} is written as "
        f"{' or '.join(known.backend for known in formats)}"
    )


def artifact_backend(path: Path) -> str:
    """Which backend wrote the file or package `path`, or the one main file in the folder `path`.

    Raises:
        ArtifactError: There is no such file, or more than one.
    """
    is_folder = path.is_dir() and path.suffix not in SUFFIXES
    files = [path / entry.name for entry in walk(path, depth=1)] if is_folder else [path]
    found = [file for file in files if file.suffix in SUFFIXES and file.exists()]
    if len(found) != 1:
        raise ArtifactError(
            f"{path}: {len(found)} files end with {' or '.join(SUFFIXES)}; give a bundle, a "
            "quantized checkpoint, or a folder with one model file"
        )
    return SUFFIXES[found[0].suffix]
