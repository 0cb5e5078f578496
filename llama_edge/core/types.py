"""Frozen values that cross from one stage to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from llama_edge.core.errors import ConfigError
from llama_edge.core.mixed_precision import MixedPrecision
from llama_edge.core.model_config import ModelConfig

if TYPE_CHECKING:  # torch takes seconds to import; `llama-edge --help` must not
    from torch import Tensor

    from llama_edge.core.given_codes import GivenCodes, ScaleRounding
    from llama_edge.core.packing import QuantizedTensor


class Rotation(StrEnum):
    """The rotations of SpinQuant (section 3) that a recipe can ask for."""

    R1 = "R1"
    R2 = "R2"
    R4 = "R4"


class Rounding(StrEnum):
    """How codes are chosen once their scales are."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    #: the checkpoint came with codes, and they stay
    GIVEN = "given"


class Scales(StrEnum):
    """How a group's scale is chosen: clipping nothing, or losing least squared error."""

    WIDEST = "widest"
    SEARCHED = "searched"
    #: the checkpoint came with scales, and they stay, rounded to bfloat16
    GIVEN = "given"


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


class PrefillLengths(StrEnum):
    """How many tokens one call of a written graph takes."""

    #: any number up to a limit
    FLEXIBLE = "flexible"
    #: one or `Artifact.max_prefill`, each a function of its own with every size fixed
    FIXED = "fixed"


class Device(StrEnum):
    """Where rotations are learned."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAssets:
    """Everything between a person's text and token ids.

    `tokenizer_json` is the `tokenizers` library's serialization, whatever form the source had.
    """

    tokenizer_json: str
    chat_template: str | None
    bos_token_id: int | None
    #: every id that ends a turn, sorted: generation_config, tokenizer and template together
    eos_token_ids: tuple[int, ...]
    #: whether encoding a raw prompt puts `bos_token_id` first
    add_bos: bool
    #: generation_config's temperature, top_p and the like, as the model's author set them
    generation_defaults: Mapping[str, float | int | bool]


class Weights(Protocol):
    """Full-precision weights under canonical names, read when asked for."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor, float32.

        Raises:
            CheckpointError: It is damaged or holds NaN or infinity.
        """
        ...


#: What `Checkpoint.precision` says of a model in full precision.
FULL_PRECISION: Final = "full precision"
#: What a model that came as codes is measured against; nothing more precise is in the checkpoint.
OWN_CODES: Final = "the checkpoint's own codes and scales with float32 activations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A full-precision model. `source` is how the user named it: a built-in name, id or path.

    With `codes`, there is no full precision: `weights` are the codes times the checkpoint's own
    scales, and `config` has the rotation that they were rounded behind.
    """

    source: str
    config: ModelConfig
    weights: Weights
    text: TextAssets
    #: codes that the author chose, to be kept
    codes: GivenCodes | None = None
    #: what a report should say of how it was read
    note: str | None = None

    @property
    def precision(self) -> str:
        """What its weights are, as reports name what they measure against."""
        return FULL_PRECISION if self.codes is None else OWN_CODES


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationLearning:
    """How R1 and R2 are learned from their Hadamard start (SpinQuant, section 3.2)."""

    iterations: int
    #: calibration sequences that one iteration sees
    sequences: int
    #: falls linearly to zero
    learning_rate: float
    #: what an iteration keeps of the step before it
    momentum: float

    def __post_init__(self) -> None:
        for field in ("iterations", "sequences"):
            count = getattr(self, field)
            if not isinstance(count, int) or count < 1:
                raise ConfigError(f"rotation learning: {field} is {count!r}; at least 1 is needed")
        rate, momentum = self.learning_rate, self.momentum
        if not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
            raise ConfigError(
                f"rotation learning: learning_rate is {rate!r}; a positive number is needed"
            )
        if not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
            raise ConfigError(
                f"rotation learning: momentum is {momentum!r}; a number from 0 to below 1 is needed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is quantized. One value of this type per name in `quantize.RECIPES`."""

    name: str
    summary: str
    weight_bits: int = 4
    group_size: int = 32
    #: embedding and lm_head: in int8 one scale per row, in int4 one per group
    table_bits: int = 8
    #: of what a linear multiplies; None keeps it in floating point (weight-only)
    activation_bits: int | None = 8
    #: bytes that 8-bit block linears may add, as a share of what all block linears take without
    extra_bytes: float = 0.0
    scales: Scales = Scales.WIDEST
    rounding: Rounding = Rounding.NEAREST
    #: merged into the weights before rounding; R4 also runs online
    rotations: tuple[Rotation, ...] = ()
    #: None keeps R1 and R2 as they are drawn
    rotation_learning: RotationLearning | None = None
    #: of the rotations' random signs
    seed: int = 0
    #: mean KL (nats) to full precision above which an artifact counts as not faithful
    max_fidelity_kl: float = 1.0

    def __post_init__(self) -> None:
        for field in ("weight_bits", "table_bits"):
            bits = getattr(self, field)
            if bits not in (4, 8):
                raise ConfigError(f"recipe {self.name}: {field} is {bits!r}; 4 or 8 is possible")
        if self.activation_bits not in (8, None):
            raise ConfigError(
                f"recipe {self.name}: activation_bits is {self.activation_bits!r}; 8, or null for "
                "activations in floating point, is possible"
            )
        if self.rotation_learning:
            self._check_learning()
        group = self.group_size
        if not isinstance(group, int) or group < 2 or group % 2:
            raise ConfigError(
                f"recipe {self.name}: group_size is {group!r}; an even number is needed, since "
                "two codes share a byte"
            )
        if not isinstance(self.extra_bytes, (int, float)) or not 0 <= self.extra_bytes <= 1:
            raise ConfigError(
                f"recipe {self.name}: extra_bytes is {self.extra_bytes!r}; a share from 0 to 1 of "
                "the block linears' bytes is needed"
            )
        if self.extra_bytes and (self.weight_bits != 4 or self.rounding is not Rounding.GPTQ):
            raise ConfigError(
                f"recipe {self.name}: extra_bytes {self.extra_bytes} makes 8-bit linears of 4-bit "
                "ones by what calibration text says, so weight_bits 4 and rounding gptq are "
                f"needed; they are {self.weight_bits} and {self.rounding.value}"
            )
        if not isinstance(self.max_fidelity_kl, (int, float)) or not self.max_fidelity_kl > 0:
            raise ConfigError(
                f"recipe {self.name}: max_fidelity_kl is {self.max_fidelity_kl!r}; "
                "a positive number of nats is needed"
            )

    def _check_learning(self) -> None:
        if not {Rotation.R1, Rotation.R2} <= set(self.rotations):
            raise ConfigError(
                f"recipe {self.name}: rotation_learning needs R1 and R2 among its rotations, which "
                f"are: {', '.join(self.rotations) or 'none'}"
            )
        if self.rounding is not Rounding.GPTQ:
            raise ConfigError(
                f"recipe {self.name}: rotation_learning needs calibration text, which goes with "
                f"rounding gptq; it is {self.rounding.value}"
            )
        if self.activation_bits is None:
            raise ConfigError(
                f"recipe {self.name}: rotation_learning lowers what rounding activations costs, "
                "so activation_bits 8 is needed; they are in floating point"
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A field is absent, unknown or out of range.
        """
        try:
            fields = {**value}
            fields["scales"] = Scales(fields["scales"])
            fields["rounding"] = Rounding(fields["rounding"])
            fields["rotations"] = tuple(Rotation(name) for name in fields["rotations"])
            if fields.get("rotation_learning") is not None:
                fields["rotation_learning"] = RotationLearning(**fields["rotation_learning"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"recipe: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Every parameter, for `quantization.json` and the manifest."""
        return asdict(self)


class QuantizedWeights(Protocol):
    """Codes and scales under canonical names, from a checkpoint folder or read out of an artifact.

    `lm_head.weight` is always there; in a tied model it equals `model.embed_tokens.weight`.
    """

    def quantized_names(self) -> tuple[str, ...]:
        """Names of all quantized matrices in canonical order: embedding, blocks, lm_head."""
        ...

    def quantized(self, name: str) -> QuantizedTensor:
        """Codes and scales of one matrix."""
        ...

    def vector(self, name: str) -> Tensor:
        """A weight that is not quantized, float32: a norm (D,), or the head's rotation (D, D)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """Which text a model was calibrated on: its hash stands for the token ids, int64 row-major."""

    origin: str
    sequences: int
    length: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """For `quantization.json` and the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedCheckpoint:
    """One set of codes and scales for every backend; `root` holds it on disk."""

    root: Path
    config: ModelConfig
    recipe: Recipe
    weights: QuantizedWeights
    text: TextAssets
    #: SHA-256 over names, shapes and float32 values of the full-precision weights
    source_sha256: str
    #: None for a recipe that needs no text
    calibration: CalibrationRecord | None = None
    #: None where scales were chosen here
    scale_rounding: ScaleRounding | None = None
    #: `Checkpoint.note`
    note: str | None = None
    #: None for a recipe without `extra_bytes`
    mixed_precision: MixedPrecision | None = None


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
