"""The model's graph, compared with transformers: names, shapes and logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers
from torch import Tensor

from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.models.blocks import Add, Attention, Linear, RMSNorm
from llama_edge.models.network import COS, SIN, TOKENS, Network, Node, network_of
from llama_edge.models.rope import rope_tables
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from tests.checkpoint_writers import write_huggingface
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text

SCALING: Final = RopeScaling(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
CONFIGS: Final = {
    "tied": DEBUG_CONFIG,
    "untied": replace(DEBUG_CONFIG, tie_word_embeddings=False),
    "one head for all": replace(DEBUG_CONFIG, num_key_value_heads=1),
    "a head for each": replace(DEBUG_CONFIG, num_key_value_heads=6),
    "scaled rope": replace(DEBUG_CONFIG, rope_scaling=SCALING),
    "Qwen2.5": replace(DEBUG_CONFIG, family="qwen2"),
    "Qwen3": replace(DEBUG_CONFIG, family="qwen3"),
    "Qwen3, untied, wide heads": replace(
        DEBUG_CONFIG, family="qwen3", tie_word_embeddings=False, head_dim=32
    ),
}


def theirs(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> Any:  # noqa: ANN401
    write_huggingface(folder, config, weights, debug_text())
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_graph_computes_what_transformers_does(tmp_path: Path, kind: str) -> None:
    config = CONFIGS[kind]
    weights = {name: tensor.float() for name, tensor in MemoryWeights(config).tensors.items()}
    reference = theirs(tmp_path / "model", config, weights)
    network = network_of(config)
    shapes = {name: shape for node in network.nodes for name, shape in node.shapes.items()}
    expected = {name: tuple(value.shape) for name, value in reference.state_dict().items()}
    assert shapes == expected

    def run(node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
        if not node.has_weight:
            out: Tensor = node.block(*inputs)
            return out
        tied = config.tie_word_embeddings and node.weight == LM_HEAD
        given = {"weight": weights[EMBEDDING if tied else node.weight]}
        if node.bias is not None:
            given["bias"] = weights[node.bias]
        product: Tensor = torch.func.functional_call(node.block, given, inputs)
        return product

    tokens = torch.randint(0, config.vocab_size, (97,), generator=torch.Generator().manual_seed(3))
    cos, sin = rope_tables(config, 0, len(tokens))
    with torch.no_grad():
        logits = network.walk({TOKENS: tokens, COS: cos, SIN: sin}, run)
        wanted = reference(tokens[None]).logits[0]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_values_are_let_go_after_their_last_use() -> None:
    network = network_of(DEBUG_CONFIG)
    values: dict[str, int] = {TOKENS: 0, COS: 0, SIN: 0}
    most = 0

    def count(node: Node, inputs: tuple[int, ...]) -> int:
        nonlocal most
        most = max(most, len(values))
        return len(inputs)

    network.walk(values, count)
    assert list(values) == ["lm_head"]
    # In attention: the stream, queries, keys, values, and RoPE's tables for the layers to come.
    assert most == 6


def test_what_shares_an_input_and_what_is_fused_comes_from_the_graph() -> None:
    network = network_of(DEBUG_CONFIG)
    block = network.in_layer(1)
    assert [node.part for node in network.users(block["input_layernorm"].name)] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    attention = block["attention"]
    assert isinstance(attention.block, Attention)
    assert [node.part for node in network.linears_before(attention)] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    assert [node.part for node in network.linears_before(block["swiglu"])] == [
        "gate_proj",
        "up_proj",
    ]
    assert [node.part for node in network.users(block["attention_residual"].name)] == [
        "post_attention_layernorm",
        "mlp_residual",
    ]


def test_linears_share_an_input_where_those_of_transformers_do(tmp_path: Path) -> None:
    weights = {name: value.float() for name, value in MemoryWeights(DEBUG_CONFIG).tensors.items()}
    reference = theirs(tmp_path / "model", DEBUG_CONFIG, weights)
    seen: list[tuple[str, Tensor]] = []
    for name, module in reference.model.layers[1].named_modules(prefix="model.layers.1"):
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.append((name, x[0])))
    with torch.no_grad():
        reference(torch.arange(5)[None])
    inputs = list({id(x): x for _, x in seen}.values())
    wanted = [[name for name, x in seen if x is shared] for shared in inputs]
    groups = network_of(DEBUG_CONFIG).linears_by_input(1)
    assert [[node.name for node in group] for group in groups] == wanted
    assert list(map(len, wanted)) == [3, 1, 2, 1]


def test_operands_of_an_attention_are_one_product() -> None:
    groups = network_of(DEBUG_CONFIG).stacked_linears(1)
    assert [[node.part for node in group] for group in groups] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj"],
        ["up_proj"],
        ["down_proj"],
    ]


def test_rotations_are_blocks_of_their_own() -> None:
    rotated = replace(DEBUG_CONFIG, down_proj_rotation=(20, 8), head_rotation=True)
    plain, turned = network_of(DEBUG_CONFIG), network_of(rotated)
    added = [node.name for node in turned.nodes if node.name not in plain.by_name]
    assert added == [
        "model.layers.0.mlp.down_rotation",
        "model.layers.1.mlp.down_rotation",
        "lm_head_rotation",
    ]
    assert turned.in_layer(0)["down_proj"].inputs == (added[0],)
    assert turned.nodes[-1].inputs == (added[-1],)


def test_a_network_is_traced_once() -> None:
    again = ModelConfig.from_json(DEBUG_CONFIG.to_json())
    assert network_of(again) is network_of(DEBUG_CONFIG)


def test_the_counts_of_a_real_model() -> None:
    config = replace(DEBUG_CONFIG, num_hidden_layers=30)
    network: Network = network_of(config)
    counts = {kind: len(list(network.of_kind(kind))) for kind in (Linear, RMSNorm, Attention, Add)}
    assert counts == {Linear: 30 * 7 + 1, RMSNorm: 61, Attention: 30, Add: 60}
