"""The full-precision model as a writer of calibration text: many sequences in step.

A step multiplies each weight with one token of every sequence, so it costs little more than one
token alone would. Shape legend: B sequences, T tokens of one, K key/value heads, H head_dim.
"""

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.models.network import COS, SIN
from llama_edge.models.reference import KVCache
from llama_edge.models.sources import FullPrecisionSource, MatrixSource
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.quantize.arithmetic import Arithmetic, FastReference

#: Keys and values of the sequences that are written together. More sequences go one after another.
CACHE_BYTES: Final = 2 << 30


class _ResidentSource:
    """`MatrixSource`: every weight in bfloat16 on the device, read once; a tied table is one."""

    def __init__(self, source: MatrixSource, device: torch.device, *, tied: bool) -> None:
        self._source = source
        self._device = device
        self._tied = tied
        self._kept: dict[str, Tensor] = {}

    def matrix(self, name: str) -> Tensor:
        """See `MatrixSource`; bfloat16."""
        if self._tied and name == LM_HEAD:
            name = EMBEDDING
        if name not in self._kept:
            self._kept[name] = self._source.matrix(name).to(self._device, torch.bfloat16)
        return self._kept[name]

    def vector(self, name: str) -> Tensor:
        """See `MatrixSource`."""
        if name not in self._kept:
            self._kept[name] = self._source.vector(name).to(self._device)
        return self._kept[name]

    def embedding_rows(self, tokens_T: Tensor) -> Tensor:
        """See `MatrixSource`."""
        return self.matrix(EMBEDDING)[tokens_T].float()


class _Writer(FastReference):
    """Whose cache has its place from the start: one that grows is copied with every token."""

    def __init__(
        self, config: ModelConfig, source: MatrixSource, arithmetic: Arithmetic, length: int
    ) -> None:
        super().__init__(config, source, arithmetic)
        self._length = length
        #: token that is written now
        self.position = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._tables = self.angles(length)

    def start(self, sequences: int) -> None:
        """Forget what was written."""
        config = self.config
        device = self.arithmetic.device
        shape = (sequences, config.num_key_value_heads, self._length, config.head_dim)
        layers = range(config.num_hidden_layers)
        self._keys, self._values = (
            [torch.empty(shape, dtype=torch.bfloat16, device=device) for _ in layers]
            for _ in ("keys", "values")
        )
        self.position = 0

    def _angles(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        cos, sin = self._tables[COS], self._tables[SIN]
        return cos[start : start + count], sin[start : start + count]

    def attend(self, layer: int, normed_TD: Tensor, cache: KVCache) -> Tensor:
        """See `Reference`; one token of each sequence, and a cache of its own."""
        parts = self.queries_keys_values(layer, normed_TD, self.position)
        queries, keys, values = (part.bfloat16() for part in parts)
        end = self.position + 1
        self._keys[layer][:, :, self.position : end] = keys
        self._values[layer][:, :, self.position : end] = values
        # Heads that share keys are as many positions of one head: all of them see every key.
        together = queries.reshape(*keys.shape[:2], -1, keys.shape[-1])
        out = F.scaled_dot_product_attention(
            together, self._keys[layer][:, :, :end], self._values[layer][:, :, :end]
        )
        return out.reshape(len(out), 1, -1).float()


@torch.no_grad()
def continue_prompts(
    checkpoint: Checkpoint,
    prompts: list[list[int]],
    length: int,
    seed: int,
    arithmetic: Arithmetic,
    progress: Progress,
) -> Tensor:
    """Each prompt and what the model says after it at temperature 1, int64 (N, length).

    A sequence takes its own prompt's tokens until they end and samples from there on, so prompts of
    different lengths need no padding. A sequence that ends a turn goes on.

    Args:
        checkpoint: Full precision.
        prompts: Token ids, each with at least one and at most `length`.
        length: Tokens of a sequence.
        seed: Decides what is sampled.
        arithmetic: Of products, and where they are computed.
        progress: Advances with each token of the sequences that are written together.
    """
    config = checkpoint.config
    full = FullPrecisionSource(config, checkpoint.weights)
    source = _ResidentSource(full, arithmetic.device, tied=config.tie_word_embeddings)
    writer = _Writer(config, source, arithmetic, length)
    chances = torch.rand(len(prompts), length, generator=torch.Generator().manual_seed(seed))
    rows = torch.zeros(len(prompts), length, dtype=torch.int64)
    given = torch.tensor([len(prompt) for prompt in prompts])
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    width = config.num_key_value_heads * config.head_dim
    bytes_each = 2 * 2 * config.num_hidden_layers * width * length
    batches = -(-len(prompts) * bytes_each // CACHE_BYTES)
    size = -(-len(prompts) // batches)
    progress.start("write calibration text", -(-len(prompts) // size) * (length - 1))
    for begin in range(0, len(prompts), size):
        together = slice(begin, begin + size)
        written = rows[together]
        writer.start(len(written))
        for step in range(length - 1):
            tokens = written[:, step : step + 1].to(arithmetic.device)
            predicted = writer.logits(tokens)[:, 0].softmax(-1)
            chance = chances[together, step : step + 1].to(predicted.device)
            sampled = drawn(predicted, chance).cpu()
            is_given = step + 1 < given[together]
            written[:, step + 1] = torch.where(is_given, written[:, step + 1], sampled)
            writer.position += 1
            progress.advance()
    return rows


def drawn(predicted_BV: Tensor, chances_B1: Tensor) -> Tensor:
    """The token at which the summed probabilities pass a chance from 0 to 1, int64 (B,)."""
    sums = predicted_BV.cumsum(-1)
    found = torch.searchsorted(sums, chances_B1 * sums[:, -1:], right=True)
    return found[:, 0].clamp(max=predicted_BV.shape[1] - 1)
