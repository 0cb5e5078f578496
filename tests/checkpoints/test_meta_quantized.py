"""Meta's int4 releases: read as Meta's own loader reads them, with every code where it was."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llama_edge.checkpoints.meta import load_meta
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.packing import MIN_SCALE
from llama_edge.formats.quantized_checkpoint import TABLES
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource, FullPrecisionSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD, block_weight
from tests.meta_quantized_writer import (
    LORA_RANK,
    LORA_SCALE,
    META_CONFIG,
    meta_int4_state,
    write_meta_int4,
)
from tests.meta_reference import import_meta_loader, import_meta_model

#: Both multiply the same float32 numbers in another order; logits are of order 3.
TOLERANCE = 2e-5
WQ, W1, W2 = (f"layers.0.{part}" for part in ("attention.wq", "feed_forward.w1", "feed_forward.w2"))
VARIANTS = {
    "spinquant": {"spinquant": True, "lora": False},
    "qat with adapters": {"spinquant": False, "lora": True},
    "qat": {"spinquant": False, "lora": False},
}


@pytest.fixture(autouse=True)
def _no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_edge.checkpoints.meta.read_meta_text", lambda _: None)


def logits(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    source = FullPrecisionSource(checkpoint.config, checkpoint.weights)
    return Reference(checkpoint.config, source).logits(tokens)


class _Transformed(nn.Module):
    """A linear after ExecuTorch's operator, as both of Meta's runners put it before `w2`."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        importlib.import_module("executorch.extension.llm.custom_ops.custom_ops")
        self.linear = linear

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401
        return self.linear(torch.ops.llama.fast_hadamard_transform(x.contiguous()))


def meta_logits(
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, Tensor],
    variant: dict[str, bool],
    tokens: Tensor,
) -> Tensor:
    """Meta's transformer after Meta's loader, strict; activations stay in floating point."""
    loader, model = import_meta_loader(monkeypatch), import_meta_model(monkeypatch)
    monkeypatch.setattr(
        "torchao.quantization.linear_quant_modules.per_token_dynamic_quant", lambda x, **_: x
    )
    config = META_CONFIG
    args = importlib.import_module("llama_models.llama3.args").ModelArgs(
        dim=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        multiple_of=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        use_scaled_rope=True,
        max_batch_size=1,
        max_seq_len=256,
        quantization_args={
            "scheme": "int4_weight_int8_dynamic_activation",
            "group_size": 32,
            "spinquant": variant["spinquant"],
        },
        # Meta's class takes the key for the thing: params.json without adapters has no such key.
        **({"lora_args": {"rank": LORA_RANK, "scale": LORA_SCALE}} if variant["lora"] else {}),
    )
    network = loader.convert_to_int4_quantized_model(model.Transformer(args), "")
    network.load_state_dict(dict(state), strict=True)
    network = network.float()
    if variant["spinquant"]:
        for layer in network.layers:
            layer.feed_forward.w2 = _Transformed(layer.feed_forward.w2)
    result: Tensor = network(tokens[None], 0)[0]
    return result


@pytest.mark.executorch
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_what_meta_computes(
    variant: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = meta_int4_state(META_CONFIG, lora=variant["lora"], zeros=not variant["spinquant"])
    folder = write_meta_int4(tmp_path / "meta", META_CONFIG, state, **variant)
    checkpoint = load_meta(folder, "x")
    tokens = torch.randint(256, (100,), generator=torch.Generator().manual_seed(3))
    theirs = meta_logits(monkeypatch, state, variant, tokens)
    ours = logits(checkpoint, tokens)
    assert (ours - theirs).abs().max() < TOLERANCE
    assert theirs.std() > 0.5


@pytest.fixture
def state() -> dict[str, Tensor]:
    return meta_int4_state(META_CONFIG)


@pytest.fixture
def spinquant(state: dict[str, Tensor], tmp_path: Path) -> Path:
    return write_meta_int4(tmp_path / "meta", META_CONFIG, state, spinquant=True)


def test_without_the_order_of_gate_and_up_it_would_be_another_network(
    spinquant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.arange(50)
    right = logits(load_meta(spinquant, "x"), tokens)
    monkeypatch.setattr(
        "llama_edge.checkpoints.meta_quantized.walsh_hadamard_order", lambda _: torch.arange(256)
    )
    wrong = logits(load_meta(spinquant, "x"), tokens)
    assert (right - wrong).abs().max() > 1e3 * TOLERANCE


def rows(tensor: Tensor) -> list[bytes]:
    return sorted(row.numpy().tobytes() for row in tensor.contiguous())


@pytest.mark.parametrize("spinquant", [True, False])
def test_codes_are_kept_and_only_rows_move(
    spinquant: bool, state: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = write_meta_int4(tmp_path / "meta", META_CONFIG, state, spinquant=spinquant)
    checkpoint = load_meta(folder, "x")
    codes = checkpoint.codes
    assert codes is not None
    assert codes.recipe == ("w4a8-meta-spinquant" if spinquant else "w4a8-meta-qat")
    assert checkpoint.precision.startswith("the checkpoint's own codes")
    assert checkpoint.config.down_proj_rotation == ((16, 16) if spinquant else None)
    assert checkpoint.note is None
    stay = {EMBEDDING: "tok_embeddings", LM_HEAD: "output"}
    move = {}
    for part, name in {"v_proj": "wv", "o_proj": "wo"}.items():
        stay[block_weight(1, f"self_attn.{part}")] = f"layers.1.attention.{name}"
    stay[block_weight(1, "mlp.down_proj")] = "layers.1.feed_forward.w2"
    for part, name in {"q_proj": "wq", "k_proj": "wk"}.items():
        move[block_weight(1, f"self_attn.{part}")] = f"layers.1.attention.{name}"
    for part, name in {"gate_proj": "w1", "up_proj": "w3"}.items():
        place = move if spinquant else stay
        place[block_weight(1, f"mlp.{part}")] = f"layers.1.feed_forward.{name}"
    for name, theirs in (stay | move).items():
        tensor, weight = codes.quantized(name), state[f"{theirs}.weight"]
        scales = state[f"{theirs}.scales"]
        if name in stay:
            assert torch.equal(tensor.codes, weight), name
            assert torch.equal(codes.own_scales(name), scales), name
        else:
            assert not torch.equal(tensor.codes, weight), name
            both = torch.cat((tensor.codes.float(), codes.own_scales(name)), 1)
            assert rows(both) == rows(torch.cat((weight.float(), scales), 1)), name
        assert torch.equal(tensor.scales, codes.own_scales(name).bfloat16()), name
        assert (tensor.bits, tensor.group_size) == ((8, 64) if name in TABLES else (4, 32))
    assert torch.equal(
        codes.vector(block_weight(0, "input_layernorm")),
        state["layers.0.attention_norm.weight"].float(),
    )


def test_a_head_that_is_the_embedding_is_tied(state: dict[str, Tensor], tmp_path: Path) -> None:
    for part in ("weight", "scales"):
        state[f"output.{part}"] = state[f"tok_embeddings.{part}"].clone()
    checkpoint = load_meta(write_meta_int4(tmp_path / "meta", META_CONFIG, state), "x")
    assert checkpoint.config == replace(META_CONFIG, tie_word_embeddings=True)
    assert checkpoint.codes is not None
    assert torch.equal(checkpoint.codes.quantized(LM_HEAD).codes, state["output.weight"])
    source = DequantizedSource(checkpoint.codes)
    assert source.matrix(LM_HEAD).shape == (256, 64)


def test_scales_that_no_backend_holds_are_raised(state: dict[str, Tensor], tmp_path: Path) -> None:
    state[f"{W2}.weight"][0, :32] = 0
    state[f"{W2}.scales"][0, 0] = 0  # exact in any case
    state[f"{W2}.scales"][1, 0] = 1e-7  # over codes
    folder = write_meta_int4(tmp_path / "meta", META_CONFIG, state)
    codes = load_meta(folder, "x").codes
    assert codes is not None
    tensor = codes.quantized(block_weight(0, "mlp.down_proj"))
    assert tensor.scales[:2, 0].tolist() == [MIN_SCALE, MIN_SCALE]
    assert torch.equal(tensor.codes, state[f"{W2}.weight"])


def test_merged_adapter_leave_a_plain_checkpoint_that_says_so(tmp_path: Path) -> None:
    state = meta_int4_state(META_CONFIG, lora=True)
    folder = write_meta_int4(tmp_path / "meta", META_CONFIG, state, lora=True)
    checkpoint = load_meta(folder, "x")
    assert checkpoint.codes is None
    assert checkpoint.config == META_CONFIG
    assert checkpoint.precision == "full precision"
    assert checkpoint.note is not None
    assert "LoRA adapters (rank 4, scale 2) merged" in checkpoint.note
    product = state[f"{W2}.adaptor.B.weight"].float() @ state[f"{W2}.adaptor.A.weight"].float()
    scales = state[f"{W2}.scales"].repeat_interleave(32, 1)
    expected = state[f"{W2}.weight"] * scales + LORA_SCALE * product
    found = checkpoint.weights.read(block_weight(0, "mlp.down_proj"))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    def damage(state: dict[str, Tensor]) -> None:
        del state[name]

    return damage


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop(f"{WQ}.scales"), "q_proj.weight has no scales"),
        (drop(f"{WQ}.weight"), r"q_proj.weight has shape \(\)"),
        (drop("tok_embeddings.scales"), "embed_tokens.weight has no scales"),
        (drop("layers.1.feed_forward.w3.weight"), r"up_proj.weight has shape \(\)"),
        (put(f"{WQ}.weight", torch.zeros(64, 64)), "q_proj.weight is torch.float32; int8 codes"),
        (put(f"{WQ}.weight", torch.zeros(64, 32, dtype=torch.int8)), "has shape"),
        (put("norm.weight", torch.zeros(64, dtype=torch.int8)), "floating"),
        (put(f"{WQ}.scales", torch.ones(64, 4)), r"scales of .*q_proj.weight is .* \(64, 2\)"),
        (put(f"{WQ}.scales", torch.ones(64, 2, dtype=torch.int8)), "scales of .*is torch.int8"),
        (put("output.scales", torch.ones(64, 4)), r"\(256, 1\) is needed"),
        (put(f"{WQ}.zeros", torch.ones(64, 2)), "zero points other than 0"),
        (put(f"{WQ}.zeros", torch.zeros(64, 3)), "zeros of"),
        (put(f"{WQ}.adaptor.A.weight", torch.ones(4, 64)), "params.json says nothing of"),
        (put(f"{WQ}.bias", torch.ones(64)), "bias unexpected"),
        (put("norm.scales", torch.ones(64)), "norm.weight has scales"),
    ],
)
def test_a_layout_that_is_not_metas_is_refused_at_once(
    damage: Callable[[dict[str, Tensor]], None],
    message: str,
    state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    damage(state)
    folder = write_meta_int4(tmp_path / "meta", META_CONFIG, state)
    with pytest.raises(CheckpointError, match=message):
        load_meta(folder, "x")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"{W2}.weight", 8, "run from -8 to 8; 4 bits hold -8 to 7"),
        (f"{W2}.weight", -9, "run from -9 to 7"),
        (f"{W2}.scales", float("nan"), "a scale of .*down_proj.weight is nan"),
        (f"{W2}.scales", -0.5, "is -0.5"),
        (f"{W2}.scales", 1e6, "from 0 to 65280"),
        ("output.scales", float("inf"), "lm_head.weight is inf"),
    ],
)
def test_numbers_out_of_range_are_refused_when_read(
    name: str, value: float, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state[name].view(-1)[5] = value
    checkpoint = load_meta(write_meta_int4(tmp_path / "meta", META_CONFIG, state), "x")
    assert checkpoint.codes is not None
    weight = LM_HEAD if name.startswith("output") else block_weight(0, "mlp.down_proj")
    for read in (checkpoint.codes.quantized, checkpoint.weights.read):
        with pytest.raises(CheckpointError, match=message):
            read(weight)


def test_an_adapter_of_another_rank_or_with_nan_is_refused(tmp_path: Path) -> None:
    state = meta_int4_state(META_CONFIG, lora=True)
    name = f"{W1}.adaptor.A.weight"
    good = state[name]
    state[name] = torch.ones(8, 64)
    with pytest.raises(CheckpointError, match=r"adaptor.A.weight of .*gate_proj.* \(4, 64\)"):
        load_meta(write_meta_int4(tmp_path / "a", META_CONFIG, state, lora=True), "x")
    state[name] = torch.full_like(good, torch.nan)
    checkpoint = load_meta(write_meta_int4(tmp_path / "b", META_CONFIG, state, lora=True), "x")
    with pytest.raises(CheckpointError, match="holds nan"):
        checkpoint.weights.read(block_weight(0, "mlp.gate_proj"))
    del state[name]
    with pytest.raises(CheckpointError, match=r"gate_proj.weight has no adaptor.A.weight"):
        load_meta(write_meta_int4(tmp_path / "c", META_CONFIG, state, lora=True), "x")


INT4 = "int4_weight_int8_dynamic_activation"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_args": {"scheme": "int8", "group_size": 32}}, "names the scheme 'int8'"),
        ({"quantization_args": {"scheme": INT4}}, "group_size None"),
        ({"quantization_args": {"scheme": INT4, "group_size": 256}}, "group_size 256"),
        ({"quantization_args": "yes"}, "an object is needed"),
        (
            {"quantization_args": {"scheme": INT4, "group_size": 32, "spinquant": "R4"}},
            "spinquant is 'R4'",
        ),
        ({"lora_args": {"rank": 4, "scale": 2.0}}, "both spinquant and lora_args"),
        ({"vision_model": {"dim": 3}}, "vision_model"),
    ],
)
def test_params_that_nobody_published_are_refused(
    changes: dict[str, object], message: str, spinquant: Path
) -> None:
    path = spinquant / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        load_meta(spinquant, "x")


@pytest.mark.parametrize("lora", [{"rank": 0, "scale": 1.0}, {"rank": 4}, {"scale": 2.0}, 16])
def test_lora_args_that_are_wrong(lora: object, state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_meta_int4(tmp_path / "meta", META_CONFIG, state)
    path = folder / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_args": lora}))
    with pytest.raises(CheckpointError, match=r"rank|scale|lora_args"):
        load_meta(folder, "x")


def test_a_width_that_metas_transform_does_not_have(tmp_path: Path) -> None:
    config = replace(META_CONFIG, intermediate_size=192)
    folder = write_meta_int4(tmp_path / "meta", config, meta_int4_state(config), spinquant=True)
    with pytest.raises(CheckpointError, match=r"intermediate_size 192; .* a power of two"):
        load_meta(folder, "x")


def test_two_files_are_refused(spinquant: Path) -> None:
    (spinquant / "consolidated.01.pth").write_bytes(
        (spinquant / "consolidated.00.pth").read_bytes()
    )
    with pytest.raises(CheckpointError, match="has 2 files"):
        load_meta(spinquant, "x")


def test_codes_without_quantization_args_are_refused(spinquant: Path) -> None:
    path = spinquant / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_args": None}))
    with pytest.raises(CheckpointError, match=r"int8.*where params\.json has quantization_args"):
        load_meta(spinquant, "x")
