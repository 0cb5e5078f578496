"""`genai_config.json`: what ONNX Runtime GenAI must know next to the graph.

Source: the files that its model builder writes (`src/python/py/models/builders/base.py`).
"""

from pathlib import Path
from typing import Any, Final

from llama_edge.backends.onnx.external_data import MODEL_FILE
from llama_edge.core.errors import ArtifactError
from llama_edge.core.files import write_json
from llama_edge.core.json_files import read_json_object
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.text_assets import TextAssets

CONFIG_FILE: Final = "genai_config.json"


def write_genai_config(
    out_dir: Path, config: ModelConfig, text: TextAssets, max_context: int
) -> None:
    """Write the file; search defaults are the model author's, greedy where there are none."""
    model: dict[str, Any] = {
        "type": "llama",
        "context_length": max_context,
        "decoder": _decoder(config),
        "eos_token_id": list(text.eos_token_ids),
        "pad_token_id": text.eos_token_ids[0],
        "vocab_size": config.vocab_size,
    }
    if text.bos_token_id is not None:
        model["bos_token_id"] = text.bos_token_id
    search: dict[str, Any] = {
        "do_sample": False,
        **text.generation_defaults,
        "max_length": max_context,
        "num_beams": 1,
        "past_present_share_buffer": True,
    }
    write_json(out_dir / CONFIG_FILE, {"model": model, "search": search})


def read_end_tokens(folder: Path) -> tuple[int, ...]:
    """`eos_token_id` of an untrusted file.

    Raises:
        ArtifactError: It is absent or not a list of ids.
    """
    model = read_json_object(folder / CONFIG_FILE).get("model")
    ids = model.get("eos_token_id") if isinstance(model, dict) else None
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise ArtifactError(f"{folder / CONFIG_FILE}: eos_token_id is {ids!r}; a list is needed")
    return tuple(ids)


def _decoder(config: ModelConfig) -> dict[str, Any]:
    return {
        "filename": MODEL_FILE,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
    }
