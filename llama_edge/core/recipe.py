"""Every parameter of a quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from llama_edge.core.errors import ConfigError


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

    ABSMAX = "widest"
    MSE = "searched"
    #: the checkpoint came with scales, and they stay, rounded to bfloat16
    GIVEN = "given"


class Device(StrEnum):
    """Where a recipe calibrates."""

    CPU = "cpu"
    CUDA = "cuda"
    #: Apple's GPU, which has no float64
    MPS = "mps"


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


#: Largest learning rate of a distillation: 10 % a step is far beyond what trains anything.
MAX_RATE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How the rounded network is trained towards full precision, its codes fixed.

    Scales and norm weights are multiplied by a factor whose logarithm is trained, so a learning
    rate is a relative change per step.
    """

    #: updates of the parameters
    steps: int
    #: calibration sequences that one step sees
    sequences: int
    #: how often the calibration text may be seen; a short text ends the training early
    max_epochs: int
    #: texts that the model writes itself, each with a seed of its own, where none is given
    texts: int
    #: of the group scales
    scale_rate: float
    #: of the norm weights; 0 keeps them
    norm_rate: float
    #: of the elements of the rotation before a tied head; 0 keeps it
    rotation_rate: float
    #: steps over which the learning rates rise from zero
    warm_up: int
    #: share of the parameters' running average that a step keeps; 0 takes the last step's values
    averaging: float

    def __post_init__(self) -> None:
        for field, least in (
            *(("steps", 1), ("sequences", 1), ("max_epochs", 1), ("texts", 1)),
            ("warm_up", 0),
        ):
            count = getattr(self, field)
            if not isinstance(count, int) or count < least:
                raise ConfigError(
                    f"distillation: {field} is {count!r}; a whole number of at least {least} is "
                    "needed"
                )
        for field in ("scale_rate", "norm_rate", "rotation_rate"):
            rate = getattr(self, field)
            if not isinstance(rate, (int, float)) or not 0 <= rate <= MAX_RATE:
                raise ConfigError(
                    f"distillation: {field} is {rate!r}; a number from 0 to {MAX_RATE} is needed"
                )
        if self.scale_rate == 0:
            raise ConfigError(
                "distillation: scale_rate is 0; a positive number is needed, since group scales "
                "are what is trained"
            )
        if not isinstance(self.averaging, (int, float)) or not 0 <= self.averaging < 1:
            raise ConfigError(
                f"distillation: averaging is {self.averaging!r}; a number from 0 to below 1 is "
                "needed"
            )


#: Recipes that describe what Meta did: learned R1 and R2, R4, and GPTQ; or training with rounding.
META_SPINQUANT: Final = "w4a8-meta-spinquant"


META_QAT: Final = "w4a8-meta-qat"


#: Of a recipe: programs that read JSON agree on integers up to here (RFC 8259, section 6).
MAX_SEED: Final = (1 << 53) - 1


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
    scales: Scales = Scales.ABSMAX
    rounding: Rounding = Rounding.NEAREST
    #: merged into the weights before rounding; R4 also runs online
    rotations: tuple[Rotation, ...] = ()
    #: neighbouring inputs of down_proj that R4 rotates among themselves; None: all of them
    r4_block: int | None = None
    #: None keeps R1 and R2 as they are drawn
    rotation_learning: RotationLearning | None = None
    #: None keeps scales and norm weights as rounding left them
    distillation: Distillation | None = None
    #: of all that is drawn at random: the rotations' signs, the text that the model writes for
    #: itself, the order in which learning sees it, labels of the mixed precision's choice
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
        if self.r4_block is not None:
            self._check_r4_block(self.r4_block)
        if self.rotation_learning:
            self._check_learning()
        self._check_distillation()
        self._check_seed()
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

    def _check_seed(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(
                f"recipe {self.name}: seed is {self.seed!r}; an integer from 0 to {MAX_SEED} is "
                "needed"
            )

    def _check_r4_block(self, block: object) -> None:
        if type(block) is not int or block < 2:
            raise ConfigError(
                f"recipe {self.name}: r4_block is {block!r}; the order of a Hadamard matrix from 2 "
                "on is needed, or null for one rotation of the whole width"
            )
        if Rotation.R4 not in self.rotations:
            raise ConfigError(
                f"recipe {self.name}: r4_block {block} needs R4 among its rotations, which are: "
                f"{', '.join(self.rotations) or 'none'}"
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

    @property
    def texts(self) -> int:
        """How many texts the model writes itself where it calibrates and none is given."""
        return 1 if self.distillation is None else self.distillation.texts

    def _check_distillation(self) -> None:
        if self.distillation and self.rounding is not Rounding.GPTQ:
            raise ConfigError(
                f"recipe {self.name}: distillation needs calibration text, which goes with "
                f"rounding gptq; it is {self.rounding.value}"
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
            if fields.get("distillation") is not None:
                fields["distillation"] = Distillation(**fields["distillation"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"recipe: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Every parameter, for `quantization.json` and the manifest.

        `r4_block` and `distillation` are left out where they are None, so that earlier versions
        read it.
        """
        value = asdict(self)
        for field in ("r4_block", "distillation"):
            if value[field] is None:
                del value[field]
        return value
