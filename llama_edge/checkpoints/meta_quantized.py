"""Meta's own int4 releases (SpinQuant, QAT with LoRA) as they are in `consolidated.00.pth`.

A block linear is `weight`, int8 (O, I) with codes of 4 bits, and `scales` (O, I / 32); `zeros`, if
there at all, are 0. The embedding and the head are int8 with one scale per row. An adapter is
`adaptor.A.weight` (rank, I) and `adaptor.B.weight` (O, rank). Source: `llama3/quantization/
loader.py` in llama_models.

Only rows move on the way to canonical layout, codes and scales together, so no code changes: Q and
K from interleaved pairs to halves, and after SpinQuant gate and up into the order in which our R4
is the Walsh-Hadamard transform that Meta runs before `w2`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.checkpoints.base import unpermute_heads
from llama_edge.checkpoints.json_fields import Fields
from llama_edge.checkpoints.meta_file import canonical_name
from llama_edge.core.errors import CheckpointError
from llama_edge.core.hadamard import hadamard_factors, walsh_hadamard_order
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import MAX_SCALE, MIN_SCALE, QuantizedTensor
from llama_edge.core.recipe import META_QAT, META_SPINQUANT
from llama_edge.formats.quantized_checkpoint import TABLES, matrix_shape, quantized_names
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD

SCHEME: Final = "int4_weight_int8_dynamic_activation"
GROUP_SIZE: Final = 32
_MAX_LORA_RANK: Final = 4096
_FIELD: Final = re.compile(r"(.+?)\.(adaptor\.A\.weight|adaptor\.B\.weight|weight|scales|zeros)")
_ADAPTER_FIELDS: Final = ("adaptor.A.weight", "adaptor.B.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A block linear computes W x + scale * B A x."""

    rank: int
    scale: float

    @property
    def note(self) -> str:
        """What reports say of a model read in this way."""
        return (
            f"LoRA adapters (rank {self.rank}, scale {self.scale:g}) merged into the dequantized "
            "int4 weights; the sum is rounded again by the recipe"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """`quantization_args` and `lora_args` of params.json."""

    spinquant: bool
    lora: Lora | None


def read_scheme(fields: Fields) -> Scheme:
    """Read what params.json says of the codes.

    Raises:
        CheckpointError: Another scheme than Meta has published.
    """
    given = _section(fields, "quantization_args")
    scheme, group_size = given.values.get("scheme"), given.values.get("group_size")
    if scheme != SCHEME or group_size != GROUP_SIZE:
        raise CheckpointError(
            f"{fields.path}: quantization_args names the scheme {scheme!r} with group_size "
            f"{group_size!r}; only {SCHEME!r} with {GROUP_SIZE} is read: take the model's "
            "unquantized release"
        )
    spinquant = given.flag("spinquant", default=False)
    if fields.values.get("lora_args") is None:
        return Scheme(spinquant=spinquant, lora=None)
    if spinquant:
        raise CheckpointError(
            f"{fields.path}: has both spinquant and lora_args; Meta has published no such "
            "checkpoint, and its adapters could be before or after the rotation"
        )
    args = _section(fields, "lora_args")
    rank = args.integer("rank")
    if not 0 < rank <= _MAX_LORA_RANK:
        raise CheckpointError(
            f"{fields.path}: lora_args: rank is {rank}; from 1 to {_MAX_LORA_RANK} is possible"
        )
    return Scheme(spinquant=False, lora=Lora(rank=rank, scale=args.number("scale")))


def _section(fields: Fields, key: str) -> Fields:
    value = fields.values[key]
    if not isinstance(value, dict):
        raise CheckpointError(f"{fields.path}: {key} is {value!r}; an object is needed")
    return Fields(fields.path, value)


class QuantizedMetaTensors:
    """`StoredTensors` of the network that the codes and adapters stand for, and the codes."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], scheme: Scheme) -> None:
        self._folder = folder
        self._scheme = scheme
        self._parts: dict[str, dict[str, Tensor]] = {}
        for stored, tensor in tensors.items():
            # `load_shard` has given whole weights their canonical names already.
            found = _FIELD.fullmatch(stored)
            name, field = (
                (canonical_name(f"{found[1]}.weight"), found[2]) if found else (stored, "")
            )
            self._parts.setdefault(name, {})[field] = tensor
        head, embedding = self._parts.get(LM_HEAD), self._parts.get(EMBEDDING)
        self.tied = head is None or (embedding is not None and _same(head, embedding))
        if self.tied:
            self._parts.pop(LM_HEAD, None)
        #: rows of the embedding
        self.vocabulary = 0
        if embedding is not None and "weight" in embedding:
            self.vocabulary = embedding["weight"].shape[0] if embedding["weight"].dim() else 0
        self._config: ModelConfig | None = None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `StoredTensors`."""
        return {
            name: tuple(parts["weight"].shape) if "weight" in parts else ()
            for name, parts in self._parts.items()
        }

    def check(self, config: ModelConfig) -> None:
        """Hold every part's dtype and shape against the config; afterwards anything may be read.

        Raises:
            CheckpointError: Naming the first part that is wrong.
        """
        self._config = config
        if self._scheme.spinquant and config.intermediate_size.bit_count() != 1:
            raise CheckpointError(
                f"{self._folder}: spinquant with intermediate_size {config.intermediate_size}; "
                "the Walsh-Hadamard transform before w2 needs a power of two"
            )
        matrices = set(quantized_names(config))
        for name, parts in self._parts.items():
            if name in matrices:
                self._check_matrix(config, name, parts)
            else:
                self._require(name, parts, {"weight": tuple(parts["weight"].shape)}, ())

    def _check_matrix(self, config: ModelConfig, name: str, parts: Mapping[str, Tensor]) -> None:
        rows, columns = matrix_shape(config, name)
        if parts["weight"].dtype != torch.int8:
            raise CheckpointError(
                f"{self._folder}: {name} is {parts['weight'].dtype}; int8 codes are needed, as "
                "quantization_args says"
            )
        lora = self._scheme.lora
        if name in TABLES:
            flat = "scales" in parts and parts["scales"].dim() == 1
            shapes = {"weight": (rows, columns), "scales": (rows,) if flat else (rows, 1)}
            self._require(name, parts, shapes, ())
            return
        if columns % GROUP_SIZE:
            raise CheckpointError(
                f"{self._folder}: {name} has {columns} inputs, no multiple of group_size "
                f"{GROUP_SIZE}"
            )
        grid = (rows, columns // GROUP_SIZE)
        shapes = {"weight": (rows, columns), "scales": grid, "zeros": grid}
        if lora is not None:
            shapes |= dict(
                zip(_ADAPTER_FIELDS, ((lora.rank, columns), (rows, lora.rank)), strict=True)
            )
        self._require(name, parts, shapes, ("zeros",))
        if "zeros" in parts and parts["zeros"].count_nonzero():
            raise CheckpointError(
                f"{self._folder}: {name} has zero points other than 0; the codes of this scheme "
                "are symmetric, and no backend here holds others"
            )

    def _require(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        optional: tuple[str, ...],
    ) -> None:
        """Exactly these parts, and all but the codes floating."""
        for field in (*shapes, *parts):
            if field in parts and field not in shapes:
                raise CheckpointError(
                    f"{self._folder}: {name} has {field}, which params.json says nothing of"
                )
            if field not in parts and field not in optional:
                raise CheckpointError(f"{self._folder}: {name} has no {field}")
        for field, tensor in parts.items():
            is_codes = field == "weight" and len(shapes) > 1
            if tuple(tensor.shape) != shapes[field] or (tensor.dtype == torch.int8) != is_codes:
                raise CheckpointError(
                    f"{self._folder}: {field} of {name} is {tensor.dtype} {tuple(tensor.shape)}; "
                    f"{'int8' if is_codes else 'floating'} {shapes[field]} is needed"
                )

    def load(self, name: str) -> Tensor:
        """See `StoredTensors`: codes times their own scales, plus the adapters' product."""
        parts = self._parts[name]
        if "scales" not in parts:
            return parts["weight"]
        codes, scales = self._codes(name), self._scales(name)
        weight = (codes.float().view(*scales.shape, -1) * scales[..., None]).view(codes.shape)
        if "adaptor.A.weight" in parts and self._scheme.lora is not None:
            down, up = (parts[field].float() for field in _ADAPTER_FIELDS)
            weight = weight + self._scheme.lora.scale * (up @ down)
        return self._rows(name, weight)

    def codes(self, name: str) -> Tensor:
        """Codes in canonical layout, int8 (O, I).

        Raises:
            CheckpointError: One lies outside its range.
        """
        return self._rows(name, self._codes(name))

    def scales(self, name: str) -> Tensor:
        """Scales in canonical layout, float32 (O, G).

        Raises:
            CheckpointError: One is negative, not finite, or too large for a backend.
        """
        return self._rows(name, self._scales(name))

    def _codes(self, name: str) -> Tensor:
        codes = self._parts[name]["weight"]
        low, high = codes.aminmax()
        if name not in TABLES and (low < -8 or high > 7):
            raise CheckpointError(
                f"{self._folder}: the codes of {name} run from {low} to {high}; 4 bits hold -8 to 7"
            )
        return codes

    def _scales(self, name: str) -> Tensor:
        scales = self._parts[name]["scales"].float()
        scales = scales.view(len(scales), -1)
        inside = (scales >= 0) & (scales <= MAX_SCALE)  # false for NaN too
        if not inside.all():
            raise CheckpointError(
                f"{self._folder}: a scale of {name} is {scales[~inside][0]}; they must be from 0 "
                f"to {MAX_SCALE:g}, so the file is damaged or of another scheme"
            )
        return scales

    def _rows(self, name: str, tensor: Tensor) -> Tensor:
        """From Meta's order of rows to ours."""
        config = self._config
        assert config is not None, "check comes first"
        if name.endswith("q_proj.weight"):
            return unpermute_heads(tensor, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return unpermute_heads(tensor, config.num_key_value_heads)
        if self._scheme.spinquant and name.endswith(("gate_proj.weight", "up_proj.weight")):
            return tensor[walsh_hadamard_order(hadamard_factors(config.intermediate_size))]
        return tensor


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[field]) for field, tensor in first.items()
    )


class MetaCodes:
    """`GivenCodes` of a release without adapters."""

    def __init__(self, config: ModelConfig, stored: QuantizedMetaTensors, scheme: Scheme) -> None:
        self._config = config
        self._stored = stored
        self.recipe = META_SPINQUANT if scheme.spinquant else META_QAT

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self._config)

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`: the codes, and the scales as every backend can hold them."""
        codes, scales = self._stored.codes(self._stored_name(name)), self.own_scales(name)
        is_table = name in TABLES
        return QuantizedTensor(
            codes=codes.contiguous(),
            scales=scales.clamp(min=MIN_SCALE).to(torch.bfloat16),
            bits=8 if is_table else 4,
            group_size=codes.shape[1] if is_table else GROUP_SIZE,
        )

    def own_scales(self, name: str) -> Tensor:
        """See `GivenCodes`."""
        return self._stored.scales(self._stored_name(name))

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        return self._stored.load(name).float()

    def _stored_name(self, name: str) -> str:
        return EMBEDDING if name == LM_HEAD and self._config.tie_word_embeddings else name
