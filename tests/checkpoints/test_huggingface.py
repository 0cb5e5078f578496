import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError, LlamaEdgeError, TokenizerError
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from tests.checkpoint_writers import shard_huggingface

UP = "model.layers.1.mlp.up_proj.weight"


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path) | changes
    save_file({name: value for name, value in weights.items() if value is not None}, path)


def test_one_file(
    hf_folder: Path, debug_checkpoint: Checkpoint, debug_weights: dict[str, Tensor]
) -> None:
    checkpoint = load_checkpoint(str(hf_folder))
    assert checkpoint.config == debug_checkpoint.config
    assert checkpoint.text == debug_checkpoint.text
    assert list(checkpoint.weights) == list(debug_weights)
    for name, weight in debug_weights.items():
        read = checkpoint.weights.read(name)
        assert read.dtype == torch.float32
        assert checkpoint.weights.shape(name) == tuple(read.shape)
        assert torch.equal(read, weight.float())


def test_shards_through_links_as_in_the_hub_s_cache(
    hf_folder: Path, debug_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    shard_huggingface(hf_folder, debug_weights, 3)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(hf_folder.glob("*.safetensors")):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    checkpoint = load_checkpoint(str(hf_folder))
    for name, weight in debug_weights.items():
        assert torch.equal(checkpoint.weights.read(name), weight.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes(
    hf_folder: Path, debug_weights: dict[str, Tensor], dtype: torch.dtype
) -> None:
    change_weights(hf_folder, **{name: value.to(dtype) for name, value in debug_weights.items()})
    read = load_checkpoint(str(hf_folder)).weights.read(UP)
    assert torch.equal(read, debug_weights[UP].to(dtype).float())


def test_a_tensor_is_read_only_when_asked_for(
    hf_folder: Path, debug_weights: dict[str, Tensor]
) -> None:
    """A NaN in one weight does not hinder the reading of another."""
    broken = debug_weights[UP].clone()
    broken[3, 5] = torch.nan
    change_weights(hf_folder, **{UP: broken})
    weights = load_checkpoint(str(hf_folder)).weights
    weights.read(EMBEDDING)
    with pytest.raises(CheckpointError, match=r"1\.mlp\.up_proj\.weight holds nan at \(3, 5\)"):
        weights.read(UP)


def test_no_file_stays_mapped(hf_folder: Path) -> None:
    """Mapped pages that were read count as memory in use: 6.4 GB of a 3B."""
    weights = load_checkpoint(str(hf_folder)).weights
    for name in weights:
        weights.read(name)
    assert str(hf_folder) not in Path("/proc/self/maps").read_text()


def test_infinity_is_refused_and_a_large_sum_is_not(
    hf_folder: Path, debug_weights: dict[str, Tensor]
) -> None:
    large = torch.full_like(debug_weights[UP], 3e38)
    change_weights(hf_folder, **{UP: large})
    assert torch.equal(load_checkpoint(str(hf_folder)).weights.read(UP), large.float())
    large[0, 0] = torch.inf
    change_weights(hf_folder, **{UP: large})
    with pytest.raises(CheckpointError, match="holds inf"):
        load_checkpoint(str(hf_folder)).weights.read(UP)


def test_a_stored_copy_of_the_tied_head_is_accepted(
    hf_folder: Path, debug_weights: dict[str, Tensor]
) -> None:
    copy = debug_weights[EMBEDDING].clone()
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    change_weights(hf_folder, **{LM_HEAD: copy}, **inv_freq)
    checkpoint = load_checkpoint(str(hf_folder))
    assert checkpoint.config.tie_word_embeddings
    assert LM_HEAD not in list(checkpoint.weights)
    copy[0, 0] += 1
    change_weights(hf_folder, **{LM_HEAD: copy})
    with pytest.raises(CheckpointError, match="although tie_word_embeddings is true"):
        load_checkpoint(str(hf_folder))


def test_an_untied_head(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    change_config(hf_folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing\. If the model's head"):
        load_checkpoint(str(hf_folder))
    head = debug_weights[EMBEDDING] * 2
    change_weights(hf_folder, **{LM_HEAD: head})
    assert torch.equal(load_checkpoint(str(hf_folder)).weights.read(LM_HEAD), head.float())


def test_config_of_transformers_5(hf_folder: Path, debug_checkpoint: Checkpoint) -> None:
    config = json.loads((hf_folder / "config.json").read_text())
    rope = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    (hf_folder / "config.json").write_text(
        json.dumps(config | {"rope_parameters": rope, "head_dim": None, "pretraining_tp": 1})
    )
    assert load_checkpoint(str(hf_folder)).config == debug_checkpoint.config


def test_config_with_defaults_only(hf_folder: Path) -> None:
    change_config(hf_folder, rope_scaling=None, rope_theta=None, rms_norm_eps=None)
    config = load_checkpoint(str(hf_folder)).config
    assert (config.rope_scaling, config.rope_theta, config.rms_norm_eps) == (None, 10000.0, 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["MllamaForConditionalGeneration"]}, "Mllama"),
        ({"attention_bias": True}, r"q_proj\.bias and 5 more missing"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'; true or false"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "longrope"}}, "type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor is None"),
        ({"rope_scaling": "llama3"}, "an object is needed"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": "96"}, "hidden_size"),
        ({"hidden_size": None}, r"the config asks for \(256, 4096\)"),
        ({"hidden_size": 128, "head_dim": 16}, "shape"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 3}, "9 more missing|and 8 more missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"vocab_size": 300}, "shape"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(
    hf_folder: Path, changes: dict[str, object], message: str
) -> None:
    change_config(hf_folder, **changes)
    with pytest.raises(LlamaEdgeError, match=message) as caught:
        load_checkpoint(str(hf_folder))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("part", ["self_attn.q_proj", "input_layernorm"])
def test_a_bias_is_an_unexpected_weight(part: str, hf_folder: Path) -> None:
    """R1 after a norm with a bias would compute another network, and nothing would say so."""
    change_weights(hf_folder, **{f"model.layers.0.{part}.bias": torch.ones(96)})
    with pytest.raises(CheckpointError, match=rf"{part}\.bias unexpected"):
        load_checkpoint(str(hf_folder))


def test_integer_weights_are_refused(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    change_weights(hf_folder, **{UP: debug_weights[UP].to(torch.int8)})
    with pytest.raises(CheckpointError, match="I8"):
        load_checkpoint(str(hf_folder))


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1, -5000])
def test_a_truncated_file_is_refused(hf_folder: Path, size: int) -> None:
    path = hf_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_checkpoint(str(hf_folder))


def test_a_header_that_claims_too_much_is_refused(hf_folder: Path) -> None:
    path = hf_folder / "model.safetensors"
    path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_checkpoint(str(hf_folder))


def test_a_shard_that_is_not_there(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    shard_huggingface(hf_folder, debug_weights, 2)
    (hf_folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: the shard is missing"):
        load_checkpoint(str(hf_folder))


def change_index(folder: Path, **changes: object) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def test_a_weight_that_its_shard_lacks(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    shard_huggingface(hf_folder, debug_weights, 2)
    change_index(hf_folder, **{"model.extra": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"model\.extra is missing"):
        load_checkpoint(str(hf_folder))


def test_a_weight_in_two_shards(hf_folder: Path, debug_weights: dict[str, Tensor]) -> None:
    shard_huggingface(hf_folder, debug_weights, 2)
    save_file({UP: debug_weights[UP]}, hf_folder / "again.safetensors")
    change_index(hf_folder, **{UP: "again.safetensors"})
    with pytest.raises(CheckpointError, match="as well"):
        load_checkpoint(str(hf_folder))


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/passwd", "a/../../b", "..", "", "c:\\x", "a\\b", "a\0b", 7],
)
def test_an_index_may_not_leave_its_folder(
    hf_folder: Path, debug_weights: dict[str, Tensor], shard: object
) -> None:
    save_file(dict(debug_weights), hf_folder.parent / "outside.safetensors")
    shard_huggingface(hf_folder, debug_weights, 2)
    change_index(hf_folder, **{UP: shard})
    with pytest.raises(CheckpointError, match="must be a file of this folder"):
        load_checkpoint(str(hf_folder))


def test_no_weights_at_all_or_an_empty_index(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: none of model\.safetensors, "):
        load_checkpoint(str(hf_folder))
    (hf_folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match="weight_map"):
        load_checkpoint(str(hf_folder))


def test_a_config_that_is_no_json(hf_folder: Path) -> None:
    for content in ("[1]", "{", "[" * 100_000):
        (hf_folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(str(hf_folder))


def test_the_tokenizer_of_another_model(hf_folder: Path, smollm2: Checkpoint) -> None:
    (hf_folder / "tokenizer.json").write_text(smollm2.text.tokenizer_json)
    (hf_folder / "tokenizer_config.json").unlink()
    with pytest.raises(TokenizerError, match="49152 tokens and the model 256"):
        load_checkpoint(str(hf_folder))


#: Implied by the debug vocabulary and its template, whatever the files name.
IMPLIED_ENDS = {0, 2}


def ends_in_transformers(folder: Path) -> set[int]:
    """What `generate` of transformers waits for."""
    ends = LlamaForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    return {*ends} if isinstance(ends, list) else set() if ends is None else {ends}


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        ({"eos_token_id": 60}, {"eos_token_id": 5}),
        ({"eos_token_id": 60}, {"eos_token_id": [60, 5]}),
        ({"eos_token_id": [60, 61]}, {"eos_token_id": 5}),
        ({"eos_token_id": [60, 61]}, {}),
        (None, {"eos_token_id": 5}),
        (None, {"eos_token_id": [5, 6]}),
        (None, {"eos_token_id": None}),
        (None, {}),
    ],
)
def test_end_tokens_as_in_transformers(
    hf_folder: Path, generation: dict[str, object] | None, config: dict[str, object]
) -> None:
    plant_ends(hf_folder, generation, config)
    ends = set(load_checkpoint(str(hf_folder)).text.eos_token_ids)
    assert ends == ends_in_transformers(hf_folder) | IMPLIED_ENDS


@pytest.mark.parametrize("generation", [{"do_sample": False}, {"eos_token_id": None}])
@pytest.mark.parametrize("ends", [5, [5, 6]])
def test_a_generation_config_without_end_tokens(
    hf_folder: Path, generation: dict[str, object], ends: object
) -> None:
    """transformers never stops then. We do as it does without the file: config.json names them."""
    plant_ends(hf_folder, generation, {"eos_token_id": ends})
    assert ends_in_transformers(hf_folder) == set()
    read = set(load_checkpoint(str(hf_folder)).text.eos_token_ids)
    (hf_folder / "generation_config.json").unlink()
    assert read == ends_in_transformers(hf_folder) | IMPLIED_ENDS


def plant_ends(
    folder: Path, generation: dict[str, object] | None, config: dict[str, object]
) -> None:
    change_config(folder, **config)
    path = folder / "generation_config.json"
    path.unlink() if generation is None else path.write_text(json.dumps(generation))
