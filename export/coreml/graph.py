"""Building blocks as MIL operators (opset iOS 18).

Shape legend: T tokens of this call, S tokens that the cache holds, D hidden, N query heads, K
key/value heads, R = N / K, H head_dim, Q = N * H, V vocab, F intermediate, L layers.

What multiplies weights or fills the cache is fp16. The residual stream, norms, RoPE and rotations
are fp32: activations as large as SmolLM2's (|x| up to 23328) overflow when squared in fp16, and
RoPE's tables rounded to fp16 put its attention 4e-4 off (median over layers of the worst token,
8e-4 at most), where the gate's limit is 1e-4. All but the rotations take work in proportion to the
activations alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import Var
from coremltools.converters.mil.mil.types.type_int import np_int4_dtype
from numpy.typing import NDArray

from llama_edge.backends.coreml.deferred import DeferredArray
from llama_edge.core.errors import ExportError
from llama_edge.core.hadamard import hadamard
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.models.blocks import NOT_COMPUTED, OutputRows

#: Added to the scores of tokens that must not be seen; an infinity would make NaN of `0 * inf`.
_MASKED = np.float16(-65504)
_MAX_FP16 = 65504.0


def quantized_matrix(
    name: str, weight: QuantizedTensor, again: Callable[[], QuantizedTensor]
) -> Var:
    """Codes (O, I), int4 or int8, and fp16 scales (O, G): an fp16 matrix, stored as codes.

    Args:
        name: The matrix's.
        weight: The matrix; it is not kept.
        again: Reads it once more, when its codes are written.

    Raises:
        ExportError: A code times its scale is no finite fp16 number.
    """
    scales = weight.scales.to(torch.float16)
    # Within the range that `QuantizedTensor` keeps to, every bfloat16 is an fp16.
    assert torch.equal(scales.float(), weight.scales.float()), name
    largest = _largest(weight)
    if largest > _MAX_FP16:
        raise ExportError(
            f"{name}: a weight is {largest:g}; Core ML computes in fp16, which ends at "
            f"{_MAX_FP16:g}: this model needs another target"
        )
    kind = np_int4_dtype if weight.bits == 4 else np.dtype(np.int8)
    codes = DeferredArray.of(name, weight.shape, kind, lambda: again().codes.numpy())
    matrix = mb.constexpr_blockwise_shift_scale(data=codes, scale=scales.numpy(), name=name)
    # Constants that look alike are made one; those of different keys are not compared.
    matrix.op.data.op.weight_key = name
    return matrix


def _largest(weight: QuantizedTensor) -> float:
    """The largest magnitude of a weight, without the weights: a 3B's table is 1.6 GB of them."""
    groups = weight.codes.view(*weight.scales.shape, weight.group_size)
    low, high = groups.amin(dim=-1).float(), groups.amax(dim=-1).float()
    return float((torch.maximum(-low, high) * weight.scales.float()).max())


@dataclass(frozen=True, slots=True)
class Call:
    """What every block of one call shares."""

    #: fp32 (1, 1, T, H / 2)
    cos: Var
    sin: Var
    #: fp16 (1, 1, R * T, S): zero where a query may look
    mask: Var
    #: int32 (1,): the first position of this call, and the one after its last
    start: Var
    end: Var


@dataclass(slots=True)
class Cache:
    """A state (L, 1, K, S, H), read once; each layer's update goes on from the one before.

    A second read of the same state is what coremltools' passes and a runtime may reorder.
    """

    state: Var
    live: Var

    @classmethod
    def read(cls, state: Var) -> "Cache":
        """Start from what the calls before left."""
        return cls(state, mb.read_state(input=state))

    def write(self, layer: int, rows: Var, call: Call) -> Var:
        """Put rows (1, K, T, H) where this call's tokens belong; the layer's (1, K, S, H)."""
        _, _, heads, length, width = self.live.shape
        zero = np.array([0], np.int32)
        begin = mb.concat(values=[np.array([layer, 0, 0], np.int32), call.start, zero], axis=0)
        behind = np.array([layer + 1, 1, heads], np.int32)
        end = mb.concat(values=[behind, call.end, np.array([width], np.int32)], axis=0)
        update = mb.expand_dims(x=rows, axes=[0])
        updated = mb.slice_update(x=self.live, update=update, begin=begin, end=end)
        self.live = mb.coreml_update_state(state=self.state, value=updated)
        return mb.slice_by_index(
            x=self.live,
            begin=[layer, 0, 0, 0, 0],
            end=[layer + 1, 1, heads, length, width],
            squeeze_mask=[True, False, False, False, False],
        )


@dataclass(frozen=True, slots=True)
class Graph:
    """Adds operators to the program that is being built; constants are shared by their name."""

    config: ModelConfig
    weights: QuantizedWeights
    _constants: dict[str, Var] = field(default_factory=dict)

    def constant(self, name: str, value: NDArray[np.generic]) -> Var:
        """A constant, stored once under its name."""
        if name not in self._constants:
            self._constants[name] = mb.const(val=value, name=name)
        return self._constants[name]

    def vector(self, name: str) -> Var:
        """A weight that is not quantized, fp32."""
        return self.constant(name, self.weights.vector(name).numpy())

    def matrix(self, name: str) -> Var:
        """A quantized matrix, stored once under its name."""
        if name not in self._constants:
            self._constants[name] = quantized_matrix(
                name, self.weights.quantized(name), lambda: self.weights.quantized(name)
            )
        return self._constants[name]

    def linear(self, x: Var, name: str, output: str) -> Var:
        """A quantized matrix (O, I) times fp16 (1, T, I): fp16 (1, T, O)."""
        weight = self.matrix(name)
        rows = weight.shape[0]
        # Left out, the bias would be stored with every linear.
        bias = self.constant(f"zeros_{rows}", np.zeros(rows, np.float16))
        return mb.linear(x=x, weight=weight, bias=bias, name=output)

    def add_bias(self, x: Var, name: str, output: str) -> Var:
        """A product fp16 (1, T, O) and its bias, fp32: Qwen2.5's keys have biases of hundreds."""
        return mb.add(x=mb.cast(x=x, dtype="fp32"), y=self.vector(name), name=output)

    def head_norm(self, x: Var, name: str, output: str) -> Var:
        """RMSNorm of each head of (1, T, heads * H), fp32."""
        split = mb.reshape(
            x=mb.cast(x=x, dtype="fp32"),
            shape=[1, -1, x.shape[-1] // self.config.head_dim, self.config.head_dim],
        )
        return mb.reshape(x=self.rms_norm(split, name), shape=[1, -1, x.shape[-1]], name=output)

    def begin_call(
        self, tokens: Var, position: Var, tables: tuple[torch.Tensor, torch.Tensor]
    ) -> Call:
        """RoPE, mask and places of T tokens from `position` on; `tables` are fp32 (S, H / 2).

        No shape depends on the position's value, so a runtime can plan with T alone.
        """
        ones = mb.fill_like(ref_tensor=tokens, value=np.int32(1))
        steps = mb.cumsum(x=ones, axis=1, exclusive=True)
        positions = mb.add(x=steps, y=position, name="positions")
        cos, sin = (
            self._rope_rows(name, table, positions)
            for name, table in zip(("rope_cos", "rope_sin"), tables, strict=True)
        )
        count = mb.slice_by_size(x=mb.shape(x=tokens), begin=[1], size=[1])
        end = mb.add(x=position, y=count, name="end_position")
        return Call(cos, sin, self._mask(positions, len(tables[0])), position, end)

    def _rope_rows(self, name: str, table: torch.Tensor, positions: Var) -> Var:
        stored = self.constant(name, table.numpy())
        rows = mb.gather(x=stored, indices=positions, axis=0, batch_dims=0, validate_indices=False)
        return mb.expand_dims(x=rows, axes=[1])

    def _mask(self, positions: Var, max_context: int) -> Var:
        places = self.constant("places", np.arange(max_context, dtype=np.int32)[None, None])
        asks = mb.expand_dims(x=positions, axes=[2])
        hidden = mb.cast(x=mb.greater(x=places, y=asks), dtype="fp16")
        mask = mb.expand_dims(x=mb.mul(x=hidden, y=_MASKED), axes=[1])
        repeats = self.config.num_attention_heads // self.config.num_key_value_heads
        return mb.tile(x=mask, reps=[1, 1, repeats, 1], name="mask")

    def embedding(self, tokens: Var, name: str, output: str) -> Var:
        """Rows of a quantized table: the residual stream, fp32 (1, T, D)."""
        rows = mb.gather(
            x=self.matrix(name), indices=tokens, axis=0, batch_dims=0, validate_indices=False
        )
        return mb.cast(x=rows, dtype="fp32", name=output)

    def rms_norm(self, x: Var, name: str) -> Var:
        """`x / rms(x) * weight`, fp32."""
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        inverse = mb.rsqrt(x=mean, epsilon=np.float32(self.config.rms_norm_eps))
        return mb.mul(x=mb.mul(x=x, y=inverse), y=self.vector(name))

    def heads(self, x: Var, count: int) -> Var:
        """(1, T, count * H) as (1, count, T, H)."""
        split = mb.reshape(x=x, shape=[1, -1, count, self.config.head_dim])
        return mb.transpose(x=split, perm=[0, 2, 1, 3])

    def rope(self, x: Var, call: Call) -> Var:
        """Turn the first half of each head against its second, in fp32; fp16 (1, heads, T, H)."""
        first, second = mb.split(x=mb.cast(x=x, dtype="fp32"), num_splits=2, axis=-1)
        turned_first = mb.sub(x=mb.mul(x=first, y=call.cos), y=mb.mul(x=second, y=call.sin))
        turned_second = mb.add(x=mb.mul(x=second, y=call.cos), y=mb.mul(x=first, y=call.sin))
        turned = mb.concat(values=[turned_first, turned_second], axis=-1)
        return mb.cast(x=turned, dtype="fp16")

    def attention(self, queries: Var, keys: Var, values: Var, call: Call, output: str) -> Var:
        """Grouped-query attention over the whole cache, masked: fp16 (1, T, Q).

        The R query heads of one key head ask together, as R * T rows: no key or value is copied.
        """
        config = self.config
        shape = [1, config.num_key_value_heads, -1, config.head_dim]
        attended = mb.scaled_dot_product_attention(
            query=mb.reshape(x=queries, shape=shape), key=keys, value=values, attn_mask=call.mask
        )
        shape = [1, config.num_attention_heads, -1, config.head_dim]
        split = mb.transpose(x=mb.reshape(x=attended, shape=shape), perm=[0, 2, 1, 3])
        return mb.reshape(x=split, shape=[1, -1, config.query_size], name=output)

    def output_rows(self, x: Var, block: OutputRows, output: str) -> Var:
        """fp16 (1, T, R) to (1, T, V): one more column, then a gather."""
        first = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[0, 0, 1], end_mask=[True, True, False])
        fill = mb.add(x=mb.mul(x=first, y=np.float16(0)), y=np.float16(NOT_COMPUTED))
        places = self.constant("output_places", block.places().numpy().astype(np.int32))
        return mb.gather(
            x=mb.concat(values=[x, fill], axis=-1),
            indices=places,
            axis=2,
            batch_dims=0,
            validate_indices=False,
            name=output,
        )

    def swiglu(self, gate: Var, up: Var, output: str, *, wide: bool) -> Var:
        """`silu(gate) * up` (1, T, F); `wide`: in fp32, as a rotation after it needs it."""
        if wide:
            gate, up = mb.cast(x=gate, dtype="fp32"), mb.cast(x=up, dtype="fp32")
        return mb.mul(x=mb.silu(x=gate), y=up, name=output)

    def rotate_product(self, product: Var, orders: tuple[int, ...], output: str) -> Var:
        """R4 (`core.hadamard.rotate_product`) of fp32 (1, T, F), as fp16."""
        *others, last = orders
        width = self.config.intermediate_size
        turned = mb.reshape(x=product, shape=[1, -1, width // last, last])
        turned = mb.matmul(x=turned, y=self._hadamard(last))
        for order in others:
            turned = mb.transpose(x=turned, perm=[0, 1, 3, 2])
            turned = mb.matmul(x=turned, y=self._hadamard(order))
        turned = mb.reshape(x=turned, shape=[1, -1, width])
        return mb.cast(x=turned, dtype="fp16", name=output)

    def _hadamard(self, order: int) -> Var:
        return self.constant(f"hadamard_{order}", hadamard(order).T.contiguous().numpy())

    def add(self, x: Var, branch: Var, output: str | None = None) -> Var:
        """The residual stream fp32 (1, T, D), and a branch fp16 of the same shape."""
        names: Mapping[str, str] = {} if output is None else {"name": output}
        return mb.add(x=x, y=mb.cast(x=branch, dtype="fp32"), **names)
