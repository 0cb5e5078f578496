"""Writes one set of weights as a Hugging Face folder, a Meta folder and a GGUF file.

The way back of what the readers do, from the formats' own descriptions; sizes are those of a
Llama 3.2 that somebody shrank, with Meta's real tokenizer (from the `llama-models` package).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from llama_edge.checkpoints.huggingface_config import ARCHITECTURES
from llama_edge.checkpoints.names import GGUF_BLOCK_PARTS, GGUF_NAMES, META_BLOCK_PARTS, META_NAMES
from llama_edge.checkpoints.tiktoken import read_tiktoken
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.core.text_assets import TextAssets
from llama_edge.models.rope import inverse_frequencies, llama3_frequency_factors
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.models.weights import weight_shapes
from llama_edge.text.text_assets import write_text_assets

LLAMA32_CONFIG = ModelConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=256,
    vocab_size=128256,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    max_position_embeddings=131072,
    tie_word_embeddings=True,
)


def meta_tokenizer_path() -> Path:
    """Meta's `tokenizer.model`, found without importing the package."""
    spec = find_spec("llama_models")
    assert spec is not None, "llama-models is not installed; see `make setup`"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


@cache
def llama3_text() -> TextAssets:
    """Meta's real tokenizer, converted once (it takes seconds)."""
    return read_tiktoken(meta_tokenizer_path())


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """bfloat16 weights of a sensible size under canonical names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = (1 + 0.1 * noise if len(shape) == 1 else noise / shape[1] ** 0.5).bfloat16()
    return weights


def huggingface_config(config: ModelConfig) -> dict[str, object]:
    """`config.json` of transformers 4.4x, which the published Llama 3.2 has."""
    value = {**config.to_json(), "family": config.family}
    family = value.pop("family")
    if config.rope_scaling is not None:
        value["rope_scaling"] = {"rope_type": "llama3", **value["rope_scaling"]}
    return {
        **value,
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "attention_bias": False,
        "hidden_act": "silu",
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
    }


def write_huggingface(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], text: TextAssets
) -> Path:
    """One model.safetensors, config.json and the text files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(huggingface_config(config)))
    write_text_assets(folder, text)
    return folder


def shard_huggingface(folder: Path, weights: Mapping[str, Tensor], shards: int) -> None:
    """Replace model.safetensors by several files and their index."""
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in list(weights)[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Q or K rows from two halves (HF) to interleaved pairs (Meta, GGUF), written row by row."""
    rows = weight.shape[0] // heads
    order = [
        head * rows + half * rows // 2 + pair
        for head in range(heads)
        for pair in range(rows // 2)
        for half in range(2)
    ]
    return weight[order].contiguous()


def renamed(name: str, whole: Mapping[str, str], parts: Mapping[str, str], blocks: str) -> str:
    """The other format's name of a canonical name."""
    for theirs, ours in whole.items():
        if ours == name:
            return theirs
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    theirs = next(theirs for theirs, ours in parts.items() if ours == part)
    return f"{blocks}.{layer}.{theirs}.weight"


def in_their_layout(config: ModelConfig, name: str, weight: Tensor) -> Tensor:
    """Q and K interleaved, all else as it is."""
    if name.endswith("q_proj.weight"):
        return interleaved(weight, config.num_attention_heads)
    if name.endswith("k_proj.weight"):
        return interleaved(weight, config.num_key_value_heads)
    return weight


def meta_params(config: ModelConfig) -> dict[str, object]:
    """`params.json`; ffn_dim_multiplier is the one that gives the config's width."""
    params: dict[str, object] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": config.intermediate_size / int(8 * config.hidden_size / 3),
        "multiple_of": 32,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }
    if config.rope_scaling is not None:
        params["rope_scaling_factor"] = config.rope_scaling.factor
    return params


def meta_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under Meta's names and in its layout, the head stored in any case."""
    stored = {**weights, LM_HEAD: weights.get(LM_HEAD, weights[EMBEDDING]).clone()}
    return {
        renamed(name, META_NAMES, META_BLOCK_PARTS, "layers"): in_their_layout(config, name, weight)
        for name, weight in stored.items()
    }


def write_meta(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], shards: int = 1
) -> Path:
    """params.json, tokenizer.model and the model-parallel files."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = meta_weights(config, weights)
    for number in range(shards):
        part = {}
        for name, weight in stored.items():
            axis = 1 if name.endswith(("wo.weight", "w2.weight")) else 0
            sliced = weight if weight.dim() == 1 else weight.chunk(shards, axis)[number]
            part[name] = sliced.clone()
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    (folder / "params.json").write_text(json.dumps(meta_params(config)))
    (folder / "tokenizer.model").write_bytes(meta_tokenizer_path().read_bytes())
    return folder


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    text: TextAssets,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.BF16,
    pre: str = "llama-bpe",
    part_tensors: int = 0,
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """As llama.cpp's converter writes it: vectors as F32, matrices as `kind`.

    With `part_tensors`, as parts of so many tensors each, which the `gguf` package names. `edit`
    changes the metadata. A type that the package cannot quantize to gets random blocks.
    """
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=part_tensors)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    add_gguf_text(writer, text, pre)
    if isinstance(config.rope_scaling, RopeScaling):
        plain = inverse_frequencies(replace(config, rope_scaling=None))
        factors = llama3_frequency_factors(plain, config.rope_scaling)
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    for name, weight in weights.items():
        values = in_their_layout(config, name, weight).float().numpy()
        theirs = renamed(name, GGUF_NAMES, GGUF_BLOCK_PARTS, "blk")
        if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(theirs, values)
        else:
            writer.add_tensor(theirs, gguf_blocks(values, kind), raw_dtype=kind)
    edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_blocks(values: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """A matrix in blocks of a type; random blocks, with small scales, where nobody makes them."""
    try:
        return np.asarray(gguf.quants.quantize(values, kind))
    except NotImplementedError:
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        shape = (values.shape[0], values.shape[1] // block_values * block_bytes)
        return np.random.default_rng(0).integers(0, 0x34, shape, np.uint8)


def add_gguf_text(writer: gguf.GGUFWriter, text: TextAssets, pre: str) -> None:
    """Tokenizer and template out of a tokenizer.json."""
    value = json.loads(text.tokenizer_json)
    ids = dict(value["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in value["added_tokens"]}
    types = np.ones(len(ids), np.int32)
    for token in value["added_tokens"]:
        types[token["id"]] = 3 if token["special"] else 4
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types(types.tolist())
    writer.add_token_merges([" ".join(pair) for pair in value["model"]["merges"]])
    if text.bos_token_id is not None:
        writer.add_bos_token_id(text.bos_token_id)
    writer.add_eos_token_id(text.eos_token_ids[-1])
    writer.add_add_bos_token(text.add_bos)
    if text.chat_template is not None:
        writer.add_chat_template(text.chat_template)


def write_llama32_shaped(folder: Path) -> Path:
    """A small random Llama 3.2 in Hugging Face's form, with Meta's tokenizer."""
    return write_huggingface(folder, LLAMA32_CONFIG, random_weights(LLAMA32_CONFIG), llama3_text())
