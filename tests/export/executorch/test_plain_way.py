"""The written-down graph against ExecuTorch's own lowering of a PyTorch module, same codes."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor, nn
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8Tensor,
    IntxUnpackedToInt8TensorActivationQuantization,
)
from torchao.utils import unwrap_tensor_subclass

from llama_edge.core.artifact import Artifact
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.models.blocks import apply_rope, attention, rms_norm
from llama_edge.models.rope import rope_tables
from llama_edge.models.weight_names import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    block_weight,
)
from llama_edge.models.weights import block_linear_names
from llama_edge.runtimes.executorch import ExecuTorchRuntime
from tests.export.executorch.conftest import debug_pte

__all__ = ["debug_pte"]

PROMPT = [3, 17, 41, 99, 200, 7, 7, 63, 128, 5]


class PlainLlama(nn.Module):
    """One pass without a cache; linears carry torchao tensors with the given codes."""

    def __init__(self, checkpoint: QuantizedCheckpoint) -> None:
        super().__init__()
        self.config, weights = checkpoint.config, checkpoint.weights
        names = [*block_linear_names(self.config)]
        self.linears = nn.ModuleDict()
        for name in [*names, LM_HEAD]:
            tensor = weights.quantized(name)
            linear = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
            scales = tensor.scales.float()
            value = IntxUnpackedToInt8Tensor(
                tensor.codes,
                scales,
                torch.zeros_like(scales, dtype=torch.int8),
                getattr(torch, f"int{tensor.bits}"),
                (1, tensor.group_size),
                torch.float32,
                IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN,
            )
            linear.weight = nn.Parameter(value, requires_grad=False)
            self.linears[name.replace(".", "/")] = linear
        norms = [
            block_weight(layer, part)
            for layer in range(self.config.num_hidden_layers)
            for part in ("input_layernorm", "post_attention_layernorm")
        ]
        self.norms = {name: weights.vector(name) for name in [*norms, FINAL_NORM]}
        self.table = weights.quantized(EMBEDDING).dequantize()

    def linear(self, x: Tensor, layer: int, part: str) -> Tensor:
        result: Tensor = self.linears[block_weight(layer, part).replace(".", "/")](x)
        return result

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self.norms[name], self.config.rms_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        config, count = self.config, tokens.shape[0]
        cos, sin = rope_tables(config, 0, count)
        x = F.embedding(tokens, self.table)
        for layer in range(config.num_hidden_layers):
            h = self.norm(x, block_weight(layer, "input_layernorm"))
            q, k, v = (
                self.linear(h, layer, f"self_attn.{part}_proj")
                .view(count, -1, config.head_dim)
                .transpose(0, 1)
                for part in "qkv"
            )
            attended = attention(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)
            x = x + self.linear(attended, layer, "self_attn.o_proj")
            h = self.norm(x, block_weight(layer, "post_attention_layernorm"))
            gate = F.silu(self.linear(h, layer, "mlp.gate_proj"))
            x = x + self.linear(gate * self.linear(h, layer, "mlp.up_proj"), layer, "mlp.down_proj")
        head: Tensor = self.linears[LM_HEAD.replace(".", "/")](self.norm(x, FINAL_NORM)[-1:])
        return head


def test_both_ways_of_lowering_compute_the_same(
    debug_pte: Artifact, debug_quantized: QuantizedCheckpoint
) -> None:
    module = unwrap_tensor_subclass(PlainLlama(debug_quantized).eval())
    tokens = torch.tensor(PROMPT)
    with torch.no_grad():
        exported = torch.export.export(module, (tokens,), strict=False)
    edge = to_edge_transform_and_lower(
        exported,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    program = Runtime.get().load_program(edge.to_executorch().buffer)
    plain = program.load_method("forward").execute((tokens,))[0].numpy().reshape(-1)
    with ExecuTorchRuntime().open(debug_pte) as session:
        np.testing.assert_allclose(session.prefill(PROMPT), plain, atol=2e-5)
