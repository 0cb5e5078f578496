"""What a backend wrote, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llama_edge.core.model_config import ModelConfig


class ActivationQuantization(StrEnum):
    """What an artifact's linears do to their input before the integer product."""

    NONE = "none"
    #: asymmetric int8, one scale and zero point per token (XNNPACK's qdint8)
    INT8_PER_TOKEN = "int8_per_token"
    #: symmetric int8, one scale per block of 32 inputs (ONNX Runtime's accuracy_level 4)
    INT8_PER_BLOCK = "int8_per_block"


class KVCacheDtype(StrEnum):
    """How an artifact keeps keys and values between calls."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    #: queries and keys turned by R3; queries, keys and values rounded to asymmetric int8, one step
    #: and one zero point per token and head
    INT8 = "int8"

    @property
    def rotates_heads(self) -> bool:
        """Whether queries and keys are rotated (R3) and rounded, with values, row by row."""
        return self is KVCacheDtype.INT8

    def row_bytes(self, head_dim: int) -> int:
        """Of one token's key or value of one head; an int8 row has a scale and a zero point."""
        item, beside = {"float32": (4, 0), "float16": (2, 0), "int8": (1, 4 + 1)}[self.value]
        return item * head_dim + beside

    def bytes_per_token(self, config: ModelConfig) -> int:
        """What one token takes in the caches of all layers."""
        rows = 2 * config.num_hidden_layers * config.num_key_value_heads
        return rows * self.row_bytes(config.head_dim)


class PrefillLengths(StrEnum):
    """How many tokens one call of a written graph takes."""

    #: any number up to a limit
    FLEXIBLE = "flexible"
    #: one or `Artifact.max_prefill`, each a function of its own with every size fixed
    FIXED = "fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which share of an artifact runs on the accelerated path of its backend."""

    linears: int
    linears_delegated: int
    weight_bytes: int
    weight_bytes_delegated: int
    operators: int
    operators_delegated: int
    #: names of the operators that are left to the portable path, with their counts
    portable: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBytes:
    """A share of an artifact's files."""

    #: of its elements; empty where it is no tensor, or several kinds
    dtype: str
    what: str
    size_bytes: int
    #: why it is stored so; empty where the file's format leaves no choice
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A written model file (or files) of one backend, relative to `root`."""

    backend: str
    root: Path
    #: every file, relative to `root`; the first is the one to open
    files: tuple[str, ...]
    config: ModelConfig
    activation: ActivationQuantization
    #: tokens that the KV cache holds
    max_context: int
    #: most tokens that one prefill call takes
    max_prefill: int
    kv_cache: KVCacheDtype = KVCacheDtype.FLOAT32

    @property
    def path(self) -> Path:
        """The file to open."""
        return self.root / self.files[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum((self.root / name).stat().st_size for name in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of an artifact's graph; a symbolic dimension is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What an app passes to the written graph and gets from it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    #: where keys and values live and in which layout, in one line
    cache: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOperator:
    """A node, an instruction, or a stored constant that is no weight (kind "constant")."""

    #: the format's own name of it
    kind: str
    #: what tells it apart within its file: a name, or its place
    name: str
    #: what it computes with, as text; for a constant its shape and SHA-256
    attributes: Mapping[str, str]
