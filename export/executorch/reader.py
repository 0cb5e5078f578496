"""Reading a `.pte` back: codes, scales and norms under canonical names, from the file alone."""

from dataclasses import dataclass
from typing import Final

import torch
from executorch.exir import schema
from torch import Tensor

from llama_edge.backends.executorch.attention import INT8_OPERATOR
from llama_edge.backends.executorch.lower import CONFIG_METHOD
from llama_edge.backends.executorch.weights import CODES, SCALES
from llama_edge.core.artifact import ActivationQuantization, Artifact, KVCacheDtype
from llama_edge.core.errors import ArtifactError, ConfigError
from llama_edge.core.json_files import parse_json_object
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, unpack_uint4
from llama_edge.core.recipe import Recipe
from llama_edge.formats.pte import PteFile
from llama_edge.formats.pte_stacks import STACK_JOINT, stacked_rows
from llama_edge.formats.quantized_checkpoint import matrix_shape, quantized_names
from llama_edge.models.weight_names import EMBEDDING
from llama_edge.models.weights import float_shapes

_EMBEDDING_OPERATOR: Final = "quantized_decomposed::embedding_byte"


def read_description(pte: PteFile) -> tuple[ModelConfig, Recipe]:
    """Model config and recipe that the file carries.

    Raises:
        ArtifactError: Not a file of ours, or its description is damaged.
    """
    try:
        description = parse_json_object(pte.text(CONFIG_METHOD), f"{pte.path}: {CONFIG_METHOD}")
        return ModelConfig.from_json(description["config"]), Recipe.from_json(description["recipe"])
    except (KeyError, TypeError, ConfigError) as error:
        raise ArtifactError(f"{pte.path}: {CONFIG_METHOD}: {error}") from error


def read_artifact(pte: PteFile) -> Artifact:
    """The artifact that is this file.

    Raises:
        ArtifactError: It is damaged, or not one of ours.
    """
    config, _ = read_description(pte)
    return Artifact(
        backend="executorch",
        root=pte.path.parent,
        files=(pte.path.name,),
        config=config,
        activation=ActivationQuantization.INT8_PER_TOKEN,
        max_context=pte.number("get_max_context_len"),
        max_prefill=pte.number("get_max_seq_len"),
        kv_cache=_cache_dtype(pte),
    )


def _cache_dtype(pte: PteFile) -> KVCacheDtype:
    """What the program does, not what somebody says of it."""
    operators = {operator.name for operator in pte.method("forward").operators}
    return KVCacheDtype.INT8 if INT8_OPERATOR in operators else KVCacheDtype.FLOAT32


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where a matrix lies: the key of the stack that holds it, and whose rows that has."""

    key: str
    names: tuple[str, ...]
    total: int


class PteWeights:
    """`QuantizedWeights` over a mapped file; each read touches one tensor."""

    def __init__(self, pte: PteFile) -> None:
        self._pte = pte
        self.config, self._recipe = read_description(self._pte)
        self._named = self._pte.named()
        self._rows = self._find_rows()

    def _find_rows(self) -> dict[str, _Rows]:
        """Stacks are keyed by their parts' names joined."""
        rows: dict[str, _Rows] = {}
        matrices, floats = set(quantized_names(self.config)), float_shapes(self.config)
        for key in self._named:
            stack = key.removesuffix(CODES)
            parts = stack.split(STACK_JOINT)
            if stack != key and matrices.issuperset(parts):
                total = sum(matrix_shape(self.config, part)[0] for part in parts)
            elif len(parts) > 1 and floats.keys() >= {*parts}:
                total = sum(floats[part][0] for part in parts)
            else:
                continue
            rows |= {part: _Rows(stack, tuple(parts), total) for part in parts}
        return rows

    def quantized_names(self) -> tuple[str, ...]:
        """See `QuantizedWeights`."""
        return quantized_names(self.config)

    def _data(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        if key not in self._named:
            raise ArtifactError(f"{self._pte.path}: named data {key!r} is missing")
        return self._tensor(key, self._pte.segment(self._named[key]), dtype, shape)

    def _tensor(
        self, what: str, data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> Tensor:
        count = 1
        for length in shape:
            count *= length
        if len(data) < count * dtype.itemsize:
            raise ArtifactError(
                f"{self._pte.path}: {what} has {len(data)} bytes; {dtype} {shape} needs "
                f"{count * dtype.itemsize}"
            )
        # A copy: the mapped file is read-only, and torch has no read-only tensors.
        return torch.frombuffer(bytearray(data[: count * dtype.itemsize]), dtype=dtype).view(shape)

    def _embedding(self) -> QuantizedTensor:
        """The operands of the embedding operator, through its values to the constant segment."""
        plan = self._pte.method("forward")
        for instruction in self._pte.instructions(plan):
            call = instruction.instr_args
            if (
                isinstance(call, schema.KernelCall)
                and self._pte.operator(plan, call) == _EMBEDDING_OPERATOR
            ):
                shape = self.config.vocab_size, self.config.hidden_size
                table, factors = (self._pte.argument(plan, call, place) for place in (0, 1))
                codes = self._constant(table, torch.int8, shape)
                scales = self._constant(factors, torch.float32, (shape[0], 1))
                return self._one_scale_per_row(EMBEDDING, codes, scales)
        raise ArtifactError(f"{self._pte.path}: has no {_EMBEDDING_OPERATOR}")

    def _constant(self, tensor: object, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(tensor, schema.Tensor) or tensor.data_buffer_idx == 0:
            raise ArtifactError(f"{self._pte.path}: the embedding's table is not a constant")
        constants = [*self._pte.constants()]
        data = self._pte.item(constants, tensor.data_buffer_idx, "constant")
        return self._tensor("the embedding", data, dtype, shape)

    def _one_scale_per_row(self, name: str, codes: Tensor, scales: Tensor) -> QuantizedTensor:
        rounded = scales.to(torch.bfloat16)
        if not torch.equal(rounded.float(), scales):
            raise ArtifactError(f"{self._pte.path}: {name}: its scales are not exact in bfloat16")
        return QuantizedTensor(
            codes=codes,
            scales=rounded,
            bits=8,
            group_size=codes.shape[1],
        )

    def quantized(self, name: str) -> QuantizedTensor:
        """See `QuantizedWeights`."""
        if name == EMBEDDING:
            return self._embedding()
        if name not in self._rows:
            raise ArtifactError(
                f"{self._pte.path}: {name} is in no named data: the file is damaged, or an earlier "
                "llama-edge wrote it; export it again"
            )
        columns = matrix_shape(self.config, name)[1]
        place = self._rows[name]
        read = self._int8 if self._is_int8(place, columns) else self._int4
        return read(place, columns).rows(stacked_rows(self.config, place.names)[name])

    def _is_int8(self, place: _Rows, columns: int) -> bool:
        """The file itself says how wide the codes are: a byte for each, or half of one."""
        size = len(self._pte.segment(self._named[place.key + CODES]))
        return size >= place.total * columns

    def _int8(self, place: _Rows, columns: int) -> QuantizedTensor:
        codes = self._data(place.key + CODES, torch.int8, (place.total, columns))
        scales = self._data(place.key + SCALES, torch.float32, (place.total, 1))
        return self._one_scale_per_row(place.key, codes, scales)

    def _int4(self, place: _Rows, columns: int) -> QuantizedTensor:
        group_size = self._recipe.group_size
        shape = place.total, columns // group_size
        packed = self._data(place.key + CODES, torch.uint8, (place.total, columns // 2))
        return QuantizedTensor(
            codes=unpack_uint4(packed),
            scales=self._data(place.key + SCALES, torch.bfloat16, shape),
            bits=4,
            group_size=group_size,
        )

    def vector(self, name: str) -> Tensor:
        """See `QuantizedWeights`."""
        if name in self._rows:
            place = self._rows[name]
            stacked = self._data(place.key, torch.float32, (place.total,))
            return stacked[stacked_rows(self.config, place.names)[name]]
        return self._data(name, torch.float32, float_shapes(self.config)[name])
