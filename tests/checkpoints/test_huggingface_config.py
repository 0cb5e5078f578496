"""config.json, compared with what transformers' config classes make of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from llama_edge.checkpoints.huggingface_config import read_config
from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import ModelConfig

#: Of every kind that is read, with the least that is in such a file.
LEAST: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "llama, old spelling": {"model_type": "llama", "architectures": ["LLaMAForCausalLM"]},
    "llama, nothing else": {"model_type": "llama"},
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": None,
    },
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}


def read(tmp_path: Path, value: dict[str, Any]) -> ModelConfig:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value))
    return read_config(path)


def assert_as_transformers(read: ModelConfig, folder: Path) -> None:
    theirs = transformers.AutoConfig.from_pretrained(folder)
    for name in (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("intermediate_size", "vocab_size", "rms_norm_eps", "max_position_embeddings"),
        *("tie_word_embeddings", "head_dim"),
    ):
        expected = getattr(theirs, name, None)
        if name == "head_dim" and expected is None:
            expected = theirs.hidden_size // theirs.num_attention_heads
        assert getattr(read, name) == expected, name
    assert read.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": None},
        {"num_attention_heads": 16, "num_key_value_heads": 4},
        {"hidden_size": 512, "head_dim": 32, "num_attention_heads": 32},
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_absent_fields(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    if kind == "mistral" and changes.get("num_key_value_heads", 1) is None:
        pytest.skip("transformers refuses it")
    assert_as_transformers(read(tmp_path, {**LEAST[kind], **changes}), tmp_path)


@pytest.mark.parametrize(
    ("window", "positions", "fits"),
    [
        (4096, 4096, True),
        (4096, 2048, True),
        (4096, 4097, False),
        ("absent", 4096, True),
        ("absent", 4097, False),
        (None, 10**6, True),
    ],
)
def test_a_sliding_window(tmp_path: Path, window: object, positions: int, fits: bool) -> None:
    value = {**LEAST["mistral"], "max_position_embeddings": positions, "sliding_window": window}
    if window == "absent":
        del value["sliding_window"]
    if fits:
        assert read(tmp_path, value).family == "llama"
        return
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, value)
    assert str(caught.value).endswith(
        "sliding_window is 4096, below max_position_embeddings 4097; attention with a sliding "
        "window is not supported. Up to 4096 positions the window changes nothing: set "
        "max_position_embeddings to 4096"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mlp_bias": True}, "mlp_bias is True; only False is supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": "LlamaForCausalLM"}, "is not supported; these are: 'llama' with Llama"),
        ({"model_type": "gemma3"}, "model_type 'gemma3' with architectures"),
        ({"layer_types": ["sliding_attention"]}, "layer_types is"),
        ({"hidden_act": {"a": 1}}, "hidden_act is an object; only 'silu' is supported"),
    ],
)
def test_what_the_network_does_not_have(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, {**LEAST["llama"], **changes})
    assert said in str(caught.value)
