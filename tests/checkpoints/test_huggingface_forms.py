"""The forms of a Hugging Face folder's weights; what is compared with is transformers' logits."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD

TOKENS = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(5))
INDEX = "pytorch_model.bin.index.json"


@torch.no_grad()
def their_logits(folder: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits: Tensor = model(TOKENS[None]).logits[0]
    return logits


@torch.no_grad()
def our_logits(folder: Path) -> Tensor:
    checkpoint = load_checkpoint(str(folder))
    source = FullPrecisionSource(checkpoint.config, checkpoint.weights)
    return Reference(checkpoint.config, source).logits(TOKENS)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_shards(folder: Path, weights: Mapping[str, Tensor], count: int, new: bool) -> None:
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = f"pytorch_model-{number + 1:05}-of-{count:05}.bin"
        part = dict(list(weights.items())[number::count])
        torch.save(part, folder / name, _use_new_zipfile_serialization=new)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_torch_files(
    hf_folder: Path, debug_weights: dict[str, Tensor], shards: int, new: bool
) -> None:
    """With the head and its embedding as two names of one tensor, as `torch.save` stores it."""
    theirs = their_logits(hf_folder)
    (hf_folder / "model.safetensors").unlink()
    weights = {**debug_weights, LM_HEAD: debug_weights[EMBEDDING]}
    if shards:
        write_shards(hf_folder, weights, shards, new)
    else:
        torch.save(weights, hf_folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    if new:
        assert torch.equal(their_logits(hf_folder), theirs)
    assert_same(our_logits(hf_folder), theirs)


def test_a_torch_file_of_a_trained_model(hf_folder: Path) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(hf_folder)
    (hf_folder / "model.safetensors").unlink()
    torch.save({"module": theirs.state_dict(), "step": 3}, hf_folder / "pytorch_model.bin")
    with torch.no_grad():
        assert_same(our_logits(hf_folder), theirs.float()(TOKENS[None]).logits[0])


def test_safetensors_are_taken_before_torch_files(hf_folder: Path) -> None:
    (hf_folder / "pytorch_model.bin").write_bytes(b"never read")
    assert_same(our_logits(hf_folder), their_logits(hf_folder))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_stale_file_beside_shards_is_named(
    hf_folder: Path, debug_weights: dict[str, Tensor], kind: str
) -> None:
    index = f"{kind}.index.json"
    if kind == "pytorch_model.bin":
        (hf_folder / "model.safetensors").unlink()
        torch.save(debug_weights, hf_folder / kind)
        write_shards(hf_folder, {name: value + 1 for name, value in debug_weights.items()}, 2, True)
    else:
        save_file({EMBEDDING: torch.zeros(1)}, hf_folder / "model-00001-of-00001.safetensors")
        weight_map = dict.fromkeys(debug_weights, "model-00001-of-00001.safetensors")
        (hf_folder / index).write_text(json.dumps({"weight_map": weight_map}))
    assert_same(our_logits(hf_folder), their_logits(hf_folder))
    assert load_checkpoint(str(hf_folder)).note == (
        f"the weights are those of {kind}, as transformers takes them; the shards that {index} "
        "lists were not read"
    )


def rename(folder: Path, weights: Mapping[str, Tensor], prefix: str, removed: str = "") -> None:
    renamed = {prefix + name.removeprefix(removed): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors")


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "model.", "base_model.model.", "module._orig_mod.", "_orig_mod.x."],
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_prefix_that_all_names_share(
    hf_folder: Path, debug_weights: dict[str, Tensor], prefix: str, tied: bool
) -> None:
    weights = {**debug_weights}
    if not tied:
        change_config(hf_folder, tie_word_embeddings=False)
        weights[LM_HEAD] = debug_weights[EMBEDDING] * 2
    rename(hf_folder, weights, "")
    theirs = their_logits(hf_folder)
    rename(hf_folder, weights, prefix)
    assert_same(our_logits(hf_folder), theirs)


def test_wrappers_inside_the_names(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    theirs = their_logits(hf_folder)
    wrapped = {
        name.replace(
            "layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."
        ): value
        for name, value in debug_weights.items()
    }
    assert wrapped.keys() != debug_weights.keys()
    save_file(wrapped, hf_folder / "model.safetensors")
    assert_same(our_logits(hf_folder), theirs)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_base_model_whose_head_is_its_embedding(
    hf_folder: Path, debug_weights: dict[str, Tensor], prefix: str
) -> None:
    theirs = their_logits(hf_folder)
    change_config(hf_folder, architectures=["LlamaModel"])
    rename(hf_folder, debug_weights, prefix, removed="model.")
    assert_same(our_logits(hf_folder), theirs)


def test_a_base_model_without_a_head(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    change_config(hf_folder, architectures=["LlamaModel"], tie_word_embeddings=False)
    rename(hf_folder, debug_weights, "", removed="model.")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(hf_folder))
    assert str(caught.value) == (
        f"{hf_folder}: lm_head.weight is missing. If the model's head is its embedding, as in "
        "Llama 3.2 1B, set tie_word_embeddings to true in config.json; if the model was saved "
        "without its head (LlamaModel), save it as LlamaForCausalLM"
    )


def test_a_prefix_that_some_names_lack(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    odd = {f"module.{name}": value for name, value in debug_weights.items()}
    odd["model.norm.weight"] = odd.pop("module.model.norm.weight")
    save_file(odd, hf_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight and \d+ more missing"):
        load_checkpoint(str(hf_folder))


def test_names_of_another_program(hf_folder: Path) -> None:
    save_file({"tok_embeddings.weight": torch.ones(2)}, hf_folder / "model.safetensors")
    said = r"the 1 weights that are there have other names, such as tok_embeddings\.weight"
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(str(hf_folder))


def test_two_names_that_become_one(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    both = {**debug_weights, f"_orig_mod.{EMBEDDING}": debug_weights[EMBEDDING] + 1}
    save_file(both, hf_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"_orig_mod\.model\.embed_tokens\.weight unexpected"):
        load_checkpoint(str(hf_folder))


def test_an_adapter_that_was_not_merged(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2)}
    save_file({**debug_weights, **lora}, hf_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="part of a LoRA adapter that was not merged"):
        load_checkpoint(str(hf_folder))


def test_mistral_without_a_window_that_matters(hf_folder: Path) -> None:
    llama = their_logits(hf_folder)
    change_config(
        hf_folder,
        model_type="mistral",
        architectures=["MistralForCausalLM"],
        sliding_window=None,
        attention_bias=None,
        mlp_bias=None,
    )
    theirs = their_logits(hf_folder)
    assert_same(theirs, llama)
    assert_same(our_logits(hf_folder), theirs)
    assert load_checkpoint(str(hf_folder)).config.family == "llama"


@pytest.mark.parametrize("tied", [True, False])
def test_an_index_that_lists_a_head_which_is_not_stored(
    hf_folder: Path, debug_weights: dict[str, Tensor], tied: bool
) -> None:
    theirs = their_logits(hf_folder)
    change_config(hf_folder, tie_word_embeddings=tied)
    (hf_folder / "model.safetensors").rename(hf_folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys([*debug_weights, LM_HEAD], "model-00001-of-00001.safetensors")
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if tied:
        assert_same(our_logits(hf_folder), theirs)
        return
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(hf_folder))
    assert str(caught.value) == (
        f"{hf_folder}/model-00001-of-00001.safetensors: lm_head.weight is missing, although the "
        "index lists it: the index and the shard are of different versions; download both from one"
    )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5e4}},
    ],
)
def test_linear_rope_scaling(hf_folder: Path, rope: dict[str, object]) -> None:
    llama3 = their_logits(hf_folder)
    change_config(hf_folder, **{"rope_scaling": None, "rope_theta": 5e4, **rope})
    theirs = their_logits(hf_folder)
    assert (theirs - llama3).abs().max() > 0.1
    assert_same(our_logits(hf_folder), theirs)


@pytest.fixture
def biased(hf_folder: Path, debug_weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Llama with `attention_bias` whose outputs' bias is zero, as a Qwen2 saved as one."""
    change_config(hf_folder, attention_bias=True)
    made = torch.Generator().manual_seed(4)
    weights = {**debug_weights}
    for name, value in debug_weights.items():
        if name.endswith("_proj.weight") and ".self_attn." in name:
            bias = torch.randn(len(value), generator=made)
            zero = ".o_proj." in name
            weights[name.replace(".weight", ".bias")] = torch.zeros(len(value)) if zero else bias
    save_file(weights, hf_folder / "model.safetensors")
    return weights


def test_attention_with_biases(hf_folder: Path, biased: dict[str, Tensor]) -> None:
    assert sum(name.endswith(".bias") for name in biased) == 8
    assert_same(our_logits(hf_folder), their_logits(hf_folder))


def test_a_bias_at_the_outputs_is_named(hf_folder: Path, biased: dict[str, Tensor]) -> None:
    biased["model.layers.1.self_attn.o_proj.bias"][3] = 1e-6
    save_file(biased, hf_folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(hf_folder))
    assert str(caught.value) == (
        f"{hf_folder}/model.safetensors: model.layers.1.self_attn.o_proj.bias is a bias at "
        "attention's outputs, which no backend here computes; queries, keys and values may have "
        "one, and one of zeros is left out"
    )
