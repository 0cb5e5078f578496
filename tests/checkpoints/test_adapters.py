"""Adapters that PEFT itself made: our merge against its own."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llama_edge.checkpoints import load_checkpoint, load_config, split_adapters
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.text.tokenizer import Tokenizer
from tests.conftest import DEBUG_CONFIG

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: What `LoraConfig` is given.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all": {"target_modules": LINEARS, "lora_alpha": 32},
    "rslora": {"target_modules": LINEARS, "use_rslora": True},
    "dora": {"target_modules": LINEARS, "use_dora": True},
    "ranks": {
        "target_modules": LINEARS,
        "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"v_proj": 3, "model.layers.0.self_attn.v_proj": 5},
    },
    "one-layer": {"target_modules": LINEARS, "layers_to_transform": [1]},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "tables-saved": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "tables": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding-saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "head-saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 77]},
}


def peft_model(folder: Path, **kind: Any) -> Any:  # noqa: ANN401
    """The model in a folder with an adapter of random values."""
    torch.manual_seed(3)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, **kind})
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save(model: Any, folder: Path) -> Path:  # noqa: ANN401
    model.save_pretrained(folder)
    return folder


def weights_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.weights.read(name) for name in checkpoint.weights}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, debug_folder: Path, tmp_path: Path) -> Path:
    """The debug model, with a head of its own or without."""
    if request.param:
        return debug_folder
    folder = tmp_path / "untied"
    model = transformers.AutoModelForCausalLM.from_pretrained(debug_folder, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.flip(model.lm_head.weight, [0]) * 1.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((debug_folder / name).read_bytes())
    return folder


def reloaded(base: Path, *adapters: Path) -> Any:  # noqa: ANN401
    """What PEFT makes of the files, which is not always what it had in memory."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for adapter in adapters[:-1]:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return peft.PeftModel.from_pretrained(model, adapters[-1]).eval()


def logits_of(checkpoint: Checkpoint, base: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of our merged weights, in transformers' own model."""
    config = transformers.AutoConfig.from_pretrained(base)
    config.tie_word_embeddings = checkpoint.config.tie_word_embeddings
    config.vocab_size = checkpoint.config.vocab_size
    model = transformers.LlamaForCausalLM(config)
    assert not model.load_state_dict(weights_of(checkpoint), strict=False).unexpected_keys
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


IDS = torch.arange(0, 250, 7)[None]


@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_pefts(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = save(peft_model(base, **KINDS[kind]), tmp_path / "adapter")
    merged = load_checkpoint(f"{base}+{adapter}")
    model = reloaded(base, adapter)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    found = logits_of(merged, base, IDS)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    # With tied tables PEFT's merge adds the change of one table to both, and says that it may.
    if merged.config.tie_word_embeddings or load_config(str(base)).tie_word_embeddings is False:
        state = model.merge_and_unload().state_dict()
        for name, weight in weights_of(merged).items():
            torch.testing.assert_close(weight, state[name], rtol=1e-6, atol=1e-6)


def test_the_base_is_another_model_without_its_adapter(debug_folder: Path, tmp_path: Path) -> None:
    """The check above would fail without the merge."""
    adapter = save(peft_model(debug_folder, **KINDS["all"]), tmp_path / "adapter")
    with torch.no_grad():
        expected = reloaded(debug_folder, adapter)(input_ids=IDS).logits
    plain = logits_of(load_checkpoint(str(debug_folder)), debug_folder, IDS)
    assert (plain - expected).abs().max() > 0.1


def test_several_are_merged_in_order(debug_folder: Path, tmp_path: Path) -> None:
    first = save(peft_model(debug_folder, **KINDS["dora"]), tmp_path / "first")
    second = save(peft_model(debug_folder, **KINDS["dora"], r=2), tmp_path / "second")
    model = reloaded(debug_folder, first, second).merge_and_unload()
    both = load_checkpoint(f"{debug_folder}+{first}+{second}")
    for name, weight in weights_of(both).items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-6, atol=1e-6)
    assert both.note == "with the adapter first; with the adapter second"
    other = load_checkpoint(f"{debug_folder}+{second}+{first}")
    assert not torch.allclose(other.weights.read(QUERY), both.weights.read(QUERY), atol=1e-3)


def test_a_torch_file_and_wrapped_names(debug_folder: Path, tmp_path: Path) -> None:
    adapter = save(peft_model(debug_folder, **KINDS["all"]), tmp_path / "adapter")
    expected = weights_of(load_checkpoint(f"{debug_folder}+{adapter}"))
    tensors = load_file(adapter / WEIGHTS)
    (adapter / WEIGHTS).unlink()
    named = {name.replace(".weight", ".default.weight"): t for name, t in tensors.items()}
    torch.save(named, adapter / "adapter_model.bin")
    found = weights_of(load_checkpoint(f"{debug_folder}+{adapter}"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_rows_for_new_tokens(debug_folder: Path, tmp_path: Path) -> None:
    """A tokenizer with two tokens more, and tables with a row for each."""
    adapter = tmp_path / "adapter"
    tokenizer = transformers.AutoTokenizer.from_pretrained(debug_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|more|>"]})
    torch.manual_seed(4)
    base = transformers.AutoModelForCausalLM.from_pretrained(debug_folder, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(base, config)
    model.save_pretrained(adapter, save_embedding_layers=True)
    tokenizer.save_pretrained(adapter)
    merged = load_checkpoint(f"{debug_folder}+{adapter}")
    assert merged.config.vocab_size == DEBUG_CONFIG.vocab_size + 2
    assert merged.config.tie_word_embeddings
    assert load_config(f"{debug_folder}+{adapter}") == merged.config
    state = model.merge_and_unload().state_dict()
    for name, weight in weights_of(merged).items():
        torch.testing.assert_close(weight, state[name], rtol=1e-6, atol=1e-6)
    text = Tokenizer(merged.text)
    ids = text.encode_rendered("in<|tool|>the<|im_end|>")
    assert ids == tokenizer.encode("in<|tool|>the<|im_end|>", add_special_tokens=False)
    assert merged.text.eos_token_ids == load_checkpoint(str(debug_folder)).text.eos_token_ids


QUERY = "model.layers.0.self_attn.q_proj.weight"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(debug_folder: Path, tmp_path: Path) -> Path:
    return save(peft_model(debug_folder, **KINDS["all"]), tmp_path / "adapter")


def change(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(base: Path | str, adapter: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(f"{base}+{adapter}")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"peft_type": "IA3"}, "of PEFT's type 'IA3'"),
        ({"peft_type": None}, "of PEFT's type None"),
        ({"use_dora": True}, "has no magnitude, although use_dora is true"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; true or false"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "OLoRA"}, "changes the base model's weights too"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"alora_invocation_tokens": [1]}, "acts after certain tokens"),
        ({"target_parameters": ["x"]}, "target_parameters is set"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object"),
        ({"alpha_pattern": {"(a+)+": 1}}, "which is no module's name"),
        ({"alpha_pattern": {"(": 1}}, "which is no module's name"),
        ({"alpha_pattern": {"q_proj": "x"}}, "q_proj is 'x'"),
        ({"trainable_token_indices": "x"}, "holds no token ids"),
    ],
)
def test_what_cannot_be_merged_is_named(
    values: dict[str, object], says: str, debug_folder: Path, adapter: Path
) -> None:
    change(adapter, **values)
    assert says in refusal(debug_folder, adapter)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("base_model.model.model.layers.9.mlp.up_proj.weight", torch.ones(3, 3), "does not have"),
        ("base_model.model.model.layers.0.mlp.up_proj.ia3_l", torch.ones(3), "is no part of"),
        ("base_model.model.lm_head.lora_A.weight", torch.ones(3, 3), "one factor of its change"),
        (f"base_model.model.{QUERY}", torch.ones(3, 3), "has shape (3, 3); (96, 96) fits"),
        (
            f"base_model.model.{QUERY}".replace("weight", "lora_A.weight"),
            torch.ones(0, 96),
            "rank 0",
        ),
        (
            f"base_model.model.{QUERY}".replace("weight", "lora_A.weight"),
            torch.ones(4, 9),
            "(4, 9)",
        ),
        (f"base_model.model.{QUERY}", torch.ones(96, 96, dtype=torch.int8), "is I8"),
        (f"base_model.model.{EMBEDDING}", torch.ones(256, 9), "(256, 9)"),
        (f"base_model.model.{LM_HEAD}", torch.ones(300, 96), "(300, 96)"),
        (
            f"base_model.model.{QUERY}".replace("weight", "lora_magnitude_vector"),
            torch.ones(96),
            "has a magnitude (DoRA)",
        ),
    ],
)
def test_tensors_of_another_model(
    name: str, tensor: torch.Tensor, says: str, debug_folder: Path, adapter: Path
) -> None:
    save_file({**load_file(adapter / WEIGHTS), name: tensor}, adapter / WEIGHTS)
    assert says in refusal(debug_folder, adapter)


def test_a_base_of_another_name(debug_folder: Path, adapter: Path) -> None:
    change(adapter, base_model_name_or_path="meta-llama/Llama-3.2-1B-Instruct")
    load_checkpoint(f"{debug_folder}+{adapter}")  # a folder has no name of a publisher
    assert (
        "was trained on meta-llama/Llama-3.2-1B-Instruct, and the model is "
        "HuggingFaceTB/SmolLM2-135M-Instruct"
    ) in refusal("smollm2-135m", adapter)
    change(adapter, base_model_name_or_path="unsloth/SmolLM2-135M-Instruct-bnb-4bit")
    assert "it is an adapter of another model" in refusal("smollm2-135m", adapter)  # by its shapes


def test_what_is_no_adapter(debug_folder: Path, adapter: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(debug_folder, tmp_path / "none")
    assert "has no adapter_config.json" in refusal(debug_folder, debug_folder)
    (adapter / WEIGHTS).unlink()
    assert "has no adapter_model.safetensors or" in refusal(debug_folder, adapter)


def test_values_that_are_no_numbers(debug_folder: Path, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = f"base_model.model.{QUERY}".replace("weight", "lora_B.weight")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    merged = load_checkpoint(f"{debug_folder}+{adapter}")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        merged.weights.read(QUERY)


def test_paths_may_have_the_sign(tmp_path: Path) -> None:
    base, adapter = tmp_path / "a+b", tmp_path / "c+d"
    base.mkdir()
    adapter.mkdir()
    assert split_adapters(f"{base}+{adapter}+{adapter}") == (str(base), [str(adapter)] * 2)
    assert split_adapters("owner/name") == ("owner/name", [])
    assert split_adapters("owner/name+here") == ("owner/name", ["here"])
