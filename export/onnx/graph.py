"""Building blocks as ONNX Runtime's operators; weights go to the data file as they come.

Values are float32 (batch, tokens, width). Block linears are `MatMulNBits`, attention with RoPE and
cache is one `GroupQueryAttention`, a residual add with the norm after it is one
`SkipSimplifiedLayerNormalization` (operator reference: ONNX Runtime's `docs/ContribOperators.md`).

Scales are stored as the bfloat16 numbers that they are and cast to float32 in the graph, which
ONNX Runtime folds once while it loads: half the bytes on disk and on the way to the phone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import onnx
import torch
from onnx import TensorProto, helper

from llama_edge.backends.onnx.external_data import ExternalDataWriter
from llama_edge.backends.onnx.metadata import ACTIVATIONS
from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.hadamard import hadamard
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.packing import QuantizedTensor, pack_uint4
from llama_edge.models.blocks import NOT_COMPUTED, OutputRows

MICROSOFT: Final = "com.microsoft"
#: RMSNormalization came with opset 23; `onnx.checker` knows no SimplifiedLayerNormalization.
OPSETS: Final = (helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1))
IR_VERSION: Final = 10

#: Kernels of ONNX Runtime beyond the ONNX standard: quantized linears and fused blocks.
FUSED_OPERATORS: Final = frozenset(
    {
        "GroupQueryAttention",
        "MatMulNBits",
        "QuickGelu",
        "SkipSimplifiedLayerNormalization",
    }
)
#: MatMulNBits' block of int8 codes, whose scale is a row's: the one in which ONNX Runtime quantizes
#: activations.
INT8_BLOCK: Final = 32

Attributes = Mapping[str, int | float | Sequence[int]]


def int8_blocks(weight: QuantizedTensor) -> torch.Tensor:
    """int8 codes as MatMulNBits' bytes: uint8 (O, blocks, block), code + 128."""
    codes = weight.codes.view(torch.uint8) ^ 0x80
    return codes.view(codes.shape[0], -1, INT8_BLOCK)


def int4_blocks(weight: QuantizedTensor) -> torch.Tensor:
    """int4 codes as MatMulNBits' bytes: uint8 (O, groups, group / 2), code + 8, low first."""
    packed = pack_uint4(weight.codes)
    return packed.view(packed.shape[0], -1, weight.group_size // 2)


@dataclass(frozen=True, slots=True)
class GraphBuilder:
    """Collects nodes and initializers; every method returns the name of the value it adds."""

    config: ModelConfig
    data: ExternalDataWriter
    accuracy_level: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Attributes | None = None,
    ) -> str:
        """One node, named after its first output."""
        domain = MICROSOFT if operator in FUSED_OPERATORS else ""
        node = helper.make_node(operator, inputs, outputs, name=outputs[0], domain=domain)
        for name, value in sorted((attributes or {}).items()):
            node.attribute.append(helper.make_attribute(name, value))
        self.nodes.append(node)
        return outputs[0]

    def store(self, name: str, tensor: torch.Tensor) -> str:
        """A weight in the data file."""
        self.initializers.append(self.data.write(name, tensor))
        return name

    def constant(self, name: str, values: Sequence[int] | int) -> str:
        """A few int64 numbers inside the graph, where shape inference sees them."""
        dims = [] if isinstance(values, int) else [len(values)]
        content = [values] if isinstance(values, int) else values
        self.initializers.append(helper.make_tensor(name, TensorProto.INT64, dims, content))
        return name

    def store_scales(self, name: str, weight: QuantizedTensor) -> str:
        """A matrix's scales (O, G), stored as bfloat16, as a float32 value."""
        stored = self.store(f"{name}.scales", weight.scales)
        return self.add("Cast", [stored], [f"{name}.scales.float"], {"to": TensorProto.FLOAT})

    def linear(self, x: str, name: str, weight: QuantizedTensor, output: str) -> str:
        """A block linear: int4 codes in groups along the input, or int8 with one scale per row."""
        if weight.bits == 8:
            return self.int8_linear(x, self.int8_matrix(name, weight), weight.shape, output)
        codes = self.store(f"{name}.codes", int4_blocks(weight))
        scales = self.store_scales(name, weight)
        rows, columns = weight.shape
        shape = {"N": rows, "K": columns, "bits": weight.bits, "block_size": weight.group_size}
        return self._matmul([x, codes, scales], output, shape)

    def _matmul(self, inputs: Sequence[str], output: str, shape: Mapping[str, int]) -> str:
        attributes = {**shape, "accuracy_level": self.accuracy_level}
        return self.add("MatMulNBits", inputs, [output], attributes)

    def int8_matrix(self, name: str, weight: QuantizedTensor) -> tuple[str, str]:
        """int8 codes with one scale per row: names of the codes and float32 scales."""
        return self.store(f"{name}.codes", int8_blocks(weight)), self.store_scales(name, weight)

    def embedding(self, tokens: str, table: tuple[str, str], output: str) -> str:
        """Rows of codes times their scales; only the rows asked for are touched."""
        codes, scales = table
        rows = self.add("Gather", [codes, tokens], [f"{output}.codes"], {"axis": 0})
        row_scales = self.add("Gather", [scales, tokens], [f"{output}.scales"], {"axis": 0})
        return self._dequantize((rows, row_scales), [0, 0, -1], output)

    def _dequantize(self, table: tuple[str, str], shape: Sequence[int], output: str) -> str:
        """uint8 blocks, flattened to `shape`, minus 128, times one scale per row."""
        codes, scales = table
        shape_name = self.constant(f"{output}.shape", shape)
        codes = self.add("Reshape", [codes, shape_name], [f"{output}.flat"])
        codes = self.add("Cast", [codes], [f"{output}.float"], {"to": TensorProto.FLOAT})
        offset = self.store(f"{output}.offset", torch.tensor(128.0))
        codes = self.add("Sub", [codes, offset], [f"{output}.signed"])
        return self.add("Mul", [codes, scales], [output])

    def int8_linear(
        self, x: str, matrix: tuple[str, str], shape: tuple[int, int], output: str
    ) -> str:
        """lm_head, or a block linear, on an `int8_matrix` of this shape."""
        codes, scales = matrix
        rows, columns = shape
        if ACTIVATIONS[self.accuracy_level] is ActivationQuantization.NONE:
            # Without int8 activations MatMulNBits has no 8-bit kernel: it would dequantize the
            # matrix at every call (294 ms of SmolLM2's 320 ms a token, for the head). Here it is
            # done on load.
            weight = self._dequantize(matrix, [rows, columns], f"{output}.dequantized")
            weight = self.add("Transpose", [weight], [f"{output}.transposed"])
            return self.add("MatMul", [x, weight], [output])
        # The row's scale, repeated for each block while loading.
        blocks = self.constant(f"{output}.scales.shape", [rows, columns // INT8_BLOCK])
        scales = self.add("Expand", [scales, blocks], [f"{output}.scales.blocks"])
        attributes = {"N": rows, "K": columns, "bits": 8, "block_size": INT8_BLOCK}
        return self._matmul([x, codes, scales], output, attributes)

    def rotate_product(self, product: str, output: str) -> str:
        """R4 (`core.hadamard.rotate_product`); needs `store_rotations`."""
        assert self.config.down_proj_rotation is not None, "only such a network has this block"
        *others, last = self.config.down_proj_rotation
        matrix = self.add("Reshape", [product, "rotation.split"], [f"{output}.matrix"])
        turned = self.add("MatMul", [matrix, f"hadamard.{last}"], [f"{output}.half"])
        for order in others:
            swapped = [f"{output}.swapped"]
            turned = self.add("Transpose", [turned], swapped, {"perm": (0, 1, 3, 2)})
            turned = self.add("MatMul", [turned, f"hadamard.{order}"], [f"{output}.turned"])
        return self.add("Reshape", [turned, "rotation.join"], [output])

    def store_rotations(self) -> None:
        """The matrices and shapes that `rotate_product` uses in every block."""
        orders, width = self.config.down_proj_rotation, self.config.intermediate_size
        if orders is None:
            return
        self.constant("rotation.split", [0, 0, width // orders[-1], orders[-1]])
        self.constant("rotation.join", [0, 0, width])
        for order in dict.fromkeys(orders):
            self.store(f"hadamard.{order}", hadamard(order).T)

    def head_norm(self, x: str, weight: str, shape: tuple[int, int], output: str) -> str:
        """RMSNorm of each of `shape` (heads, H), of (B, T, heads * H)."""
        heads, head_dim = shape
        split = self.constant(f"{output}.split", [0, 0, heads, head_dim])
        join = self.constant(f"{output}.join", [0, 0, heads * head_dim])
        by_head = self.add("Reshape", [x, split], [f"{output}.heads"])
        normed = self.rms_norm(by_head, weight, f"{output}.normed")
        return self.add("Reshape", [normed, join], [output])

    def rms_norm(self, x: str, weight: str, output: str) -> str:
        """RMSNorm of a value that no residual is added to."""
        attributes = {"axis": -1, "epsilon": self.config.rms_norm_eps}
        return self.add("RMSNormalization", [x, weight], [output], attributes)

    def add_rms_norm(self, x: str, branch: str, weight: str, outputs: tuple[str, str]) -> str:
        """RMSNorm of `x + branch`; `outputs` names the norm and the sum."""
        normed, total = outputs
        return self.add(
            "SkipSimplifiedLayerNormalization",
            [x, branch, weight],
            [normed, "", "", total],
            {"epsilon": self.config.rms_norm_eps},
        )

    def sequence_lengths(self, attention_mask: str) -> tuple[str, str]:
        """GroupQueryAttention's view of the mask: (last position int32 (B,), length int32 ())."""
        last_axis = self.constant("attention_mask.last_axis", [1])
        one = self.constant("attention_mask.one", 1)
        length = self.add(
            "ReduceSum", [attention_mask, last_axis], ["attention_mask.sum"], {"keepdims": 0}
        )
        last = self.add("Sub", [length, one], ["attention_mask.last"])
        last = self.add("Cast", [last], ["seqlens_k"], {"to": TensorProto.INT32})
        shape = self.add("Shape", [attention_mask], ["attention_mask.shape"])
        total = self.add("Gather", [shape, one], ["attention_mask.length"], {"axis": 0})
        total = self.add("Cast", [total], ["total_sequence_length"], {"to": TensorProto.INT32})
        return last, total

    def attention(
        self, qkv: tuple[str, str, str], layer: int, lengths: tuple[str, str], output: str
    ) -> str:
        """RoPE (`rope.cos`, `rope.sin`), cache and causal attention.

        Queries, keys and values, or a packed value of all three and two empty names.
        """
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        return self.add(
            "GroupQueryAttention",
            [*qkv, *past, *lengths, "rope.cos", "rope.sin"],
            [output, *present],
            {
                "num_heads": self.config.num_attention_heads,
                "kv_num_heads": self.config.num_key_value_heads,
                "scale": self.config.head_dim**-0.5,
                "do_rotary": 1,
                "rotary_interleaved": 0,
            },
        )

    def output_rows(self, x: str, block: OutputRows, output: str) -> str:
        """(B, T, R) to (B, T, V): one more column, then a gather."""
        pads = self.constant(f"{output}.pads", [0, 0, 0, 0, 0, 1])
        fill = self.store(f"{output}.not_computed", torch.tensor(NOT_COMPUTED))
        padded = self.add("Pad", [x, pads, fill], [f"{output}.padded"])
        places = self.constant(f"{output}.places", block.places().tolist())
        return self.add("Gather", [padded, places], [output], {"axis": 2})

    def swiglu(self, gate: str, up: str, output: str) -> str:
        """`silu(gate) * up`; QuickGelu with alpha 1 is SiLU."""
        silu = self.add("QuickGelu", [gate], [f"{output}.silu"], {"alpha": 1.0})
        return self.add("Mul", [silu, up], [output])
