"""Random checkpoints of a published shape, as Hugging Face's `save_pretrained` lays them out.

Weights are drawn from raw bits, which NumPy keeps the same in every version (NEP 19), through a
table of the normal distribution's quantiles, so that the same seed gives the same bytes. Each
tensor has a stream of its own: a checkpoint of two layers begins as one of sixteen does.
"""

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_edge.checkpoints.recognise import CONFIG_FILE, INDEX_FILE
from llama_edge.checkpoints.synthetic_text import synthetic_text
from llama_edge.core.errors import ConfigError
from llama_edge.core.files import require_free_space, write_json
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.text_assets import TextAssets
from llama_edge.formats.quantized_checkpoint import write_safetensors
from llama_edge.models.weights import weight_shapes
from llama_edge.text.text_assets import write_text_assets
from llama_edge.text.tokenizer import Tokenizer

#: A shard is closed before it gets larger; a larger tensor has one of its own.
MAX_SHARD_BYTES: Final = 1 << 30
#: As the published config.json has it.
_INITIALIZER_RANGE: Final = 0.02
#: Variance of a matrix times the model's width. Source: "Transformers without Tears" (Nguyen and
#: Salazar, 2019): SmallInit gives attention the variance 2 / (d + 4d) that Xavier's normal gives a
#: feed-forward of width 4d (the authors' `layers.py` says so). Here every matrix has it. With
#: 0.02 at every width a random 1B amplified rounding until nothing of its logits was left: 3.5 nats
#: between w4a8-rtn and full precision.
_VARIANCE: Final = 2 / 5
#: Rows of a matrix differ in size, log-normally: trained weights have longer tails than a normal.
_ROW_SPREAD: Final = 0.25
_NORM_SPREAD: Final = 0.2
#: One channel in this many of the residual stream stands out, the same in every layer, by this.
_OUTLIER_EVERY: Final = 512
_OUTLIER: Final = 8.0
#: Linears that write into the residual stream start smaller by sqrt(2 layers). Source: GPT-2,
#: section 2.3. Llama 3.2 1B's 16 layers, whatever is asked for, so that layers stay as they are.
_RESIDUAL: Final = 1 / math.sqrt(2 * 16)
_RESIDUAL_WRITERS: Final = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_BF16_BYTES: Final = 2
#: Values drawn at a time: 4 MiB of float32 stay in the cache.
_CHUNK: Final = 1 << 20
#: tokenizer.json and what else is small.
_TEXT_BYTES: Final = 32 << 20

_NOTE: Final = """\
# Random weights in the shape of {name}

Written by `llama-edge synth`, seed {seed}, {layers} layers, vocabulary {vocab}. Nobody trained it:
text that it writes means nothing, and neither does any quality measured on it. What is real is the
shape: sizes, names and dtypes are those of the published model, so time, memory and file sizes are.

{text}
"""
_MADE_UP: Final = """\
The tokenizer is made up as well: Llama 3's form, with its control tokens at the end of the
vocabulary as Llama 3 has them, and none of Meta's own tokens."""
_GIVEN: Final = "Tokenizer and dialog format are real: they were given, and have their licence."


def write_synthetic(
    folder: Path,
    name: str,
    config: ModelConfig,
    seed: int,
    progress: Progress,
    text: TextAssets | None = None,
) -> None:
    """Write a checkpoint into the existing, empty `folder`, holding one tensor at a time.

    Args:
        folder: Where to.
        name: Of the shape, for the note next to the weights.
        config: The shape; small ones serve tests.
        seed: Another one gives other weights.
        progress: Told of each tensor.
        text: A real tokenizer and dialog format; by default they are made up.

    Raises:
        ConfigError: The vocabulary is too small for Llama 3's control tokens, or for `text`.
        OutputError: The disk has no room for it.
    """
    about = _MADE_UP if text is None else _GIVEN
    if text is None:
        text = synthetic_text(config.vocab_size)
    elif (tokens := Tokenizer(text).vocab_size) > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokens} tokens and {name} a vocabulary of {config.vocab_size}; "
            "give the tokenizer of that model"
        )
    shapes = weight_shapes(config)
    total = sum(_BF16_BYTES * math.prod(shape) for shape in shapes.values())
    require_free_space(folder, total + _TEXT_BYTES)
    shards = _shards(shapes)
    progress.start("write random weights", len(shapes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        layout = {name: ("BF16", shapes[name]) for name in names}
        tensors = _tensors(layout, seed, progress)
        write_safetensors(folder / file, layout, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX_FILE, index)
    write_json(folder / CONFIG_FILE, _huggingface_config(config, text))
    write_text_assets(folder, text)
    note = _NOTE.format(
        name=name,
        seed=seed,
        layers=config.num_hidden_layers,
        vocab=config.vocab_size,
        text=about,
    )
    (folder / "README.md").write_text(note, encoding="utf-8")


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names in canonical order, cut where the next tensor would not fit."""
    shards: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = _BF16_BYTES * math.prod(shape)
        if size > room or not shards:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _huggingface_config(config: ModelConfig, text: TextAssets) -> dict[str, Any]:
    """`config.json` as transformers 4.4x, which the published ones are of, writes it."""
    value = config.to_json()
    for ours in ("down_proj_rotation", "head_rotation"):
        del value[ours]
    if config.rope_scaling is not None:
        value["rope_scaling"].setdefault("rope_type", "llama3")
    return {
        **value,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": list(text.eos_token_ids),
        "hidden_act": "silu",
        "initializer_range": _INITIALIZER_RANGE,
        "mlp_bias": False,
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _tensors(
    layout: dict[str, tuple[str, tuple[int, ...]]], seed: int, progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    for name, (_, shape) in layout.items():
        yield name, random_weight(name, shape, seed)
        progress.advance()


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A norm (D,) or a matrix (O, I), bfloat16, as `seed` and `name` have it."""
    if len(shape) == 1:
        factors = _log_normal(_stream(seed, name), shape[0], _NORM_SPREAD)
        return torch.from_numpy(factors * _outliers(seed, shape[0])).bfloat16()
    return _random_matrix(name, (shape[0], shape[1]), seed)


def _random_matrix(name: str, shape: tuple[int, int], seed: int) -> Tensor:
    rows, columns = shape
    writes = name.endswith(_RESIDUAL_WRITERS)
    std = math.sqrt(_VARIANCE / (rows if writes else columns)) * (_RESIDUAL if writes else 1.0)
    # The mean square of a log-normal factor is exp(2 spread^2).
    std /= math.exp(_ROW_SPREAD**2)
    scale_O1 = (
        np.float32(std) * _log_normal(_stream(seed, f"{name} rows"), rows, _ROW_SPREAD)[:, None]
    )
    quantiles = _normal_quantiles()
    stream = _stream(seed, name)
    weight_OI = torch.empty(shape, dtype=torch.bfloat16)
    at_once = max(1, _CHUNK // columns)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        values = quantiles[_draw(stream, count * columns)].reshape(count, columns)
        values *= scale_O1[first : first + count]
        weight_OI[first : first + count] = torch.from_numpy(values)
    return weight_OI


def _stream(seed: int, name: str) -> np.random.SFC64:
    digest = hashlib.sha256(name.encode()).digest()
    words = np.frombuffer(digest, "<u4").tolist()
    return np.random.SFC64(np.random.SeedSequence([seed, *words]))


def _draw(stream: np.random.SFC64, count: int) -> NDArray[np.uint16]:
    """`count` numbers of 16 bits; whole words of the stream are taken."""
    words: NDArray[np.uint64] = stream.random_raw((count + 3) // 4)
    return words.astype("<u8", copy=False).view("<u2")[:count]


@cache
def _normal_quantiles() -> NDArray[np.float32]:
    """The middle of each of 65,536 equal slices of a normal distribution; the last is at 4.2."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((k + 0.5) / 65536) for k in range(65536)], np.float32)


def _log_normal(stream: np.random.SFC64, count: int, spread: float) -> NDArray[np.float32]:
    """Factors around one, rounded to bfloat16: so no library's `exp` decides about a bit."""
    normal = _normal_quantiles()[_draw(stream, count)].tolist()
    factors = torch.tensor([math.exp(spread * value) for value in normal])
    rounded: NDArray[np.float32] = factors.bfloat16().float().numpy()
    return rounded


def _outliers(seed: int, width: int) -> NDArray[np.float32]:
    """A factor per channel of the residual stream: one, or `_OUTLIER` for a few."""
    factors = np.ones(width, np.float32)
    count = max(1, width // _OUTLIER_EVERY)
    factors[_draw(_stream(seed, "outlier channels"), count) % width] = _OUTLIER
    return factors
