"""What the model writes, against the probabilities that transformers computes."""

from pathlib import Path

import pytest
import torch
import transformers

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import SilentProgress
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.quantize import text_writer
from llama_edge.quantize.arithmetic import EXACT, Arithmetic
from llama_edge.quantize.text_writer import continue_prompts
from tests.checkpoint_writers import write_huggingface

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15], [20, 21], [30, 31, 32]]
LENGTH, SEED = 24, 3


def written(checkpoint: Checkpoint) -> torch.Tensor:
    return continue_prompts(checkpoint, PROMPTS, LENGTH, SEED, EXACT, SilentProgress())


@torch.no_grad()
def test_each_token_is_where_its_chance_falls(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Between the summed probabilities of the tokens before it and those up to it."""
    weights = {name: debug_checkpoint.weights.read(name) for name in debug_checkpoint.weights}
    folder = write_huggingface(
        tmp_path / "hf", debug_checkpoint.config, weights, debug_checkpoint.text
    )
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = written(debug_checkpoint)
    sums = model(rows).logits.softmax(-1).cumsum(-1)
    chances = torch.rand(rows.shape, generator=torch.Generator().manual_seed(SEED))
    for row, prompt, theirs, drawn in zip(rows, PROMPTS, sums, chances, strict=True):
        assert row[: len(prompt)].tolist() == prompt
        for step in range(len(prompt) - 1, LENGTH - 1):
            token = int(row[step + 1])
            before = float(theirs[step, token - 1]) if token else 0.0
            # Weights and cache are bfloat16.
            assert before - 0.01 <= float(drawn[step]) <= float(theirs[step, token]) + 0.01


def test_everything_is_on_the_device(debug_checkpoint: Checkpoint) -> None:
    """The "meta" device refuses, like a GPU, tensors that are elsewhere."""
    meta, config = torch.device("meta"), debug_checkpoint.config
    full = FullPrecisionSource(config, debug_checkpoint.weights)
    source = text_writer._ResidentSource(full, meta, tied=config.tie_word_embeddings)
    arithmetic = Arithmetic(device=meta, products=torch.bfloat16)
    writer = text_writer._Writer(config, source, arithmetic, LENGTH)
    writer.start(len(PROMPTS))
    writer.position = 5
    tokens = torch.zeros(len(PROMPTS), 1, dtype=torch.int64, device=meta)
    assert writer.logits(tokens).device == meta


def test_sequences_that_do_not_fit_together_are_the_same(
    debug_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = written(debug_checkpoint)
    starts: list[int] = []

    def start(writer: text_writer._Writer, sequences: int) -> None:
        starts.append(sequences)
        real(writer, sequences)

    real = text_writer._Writer.start
    monkeypatch.setattr(text_writer._Writer, "start", start)
    config = debug_checkpoint.config
    width = config.num_key_value_heads * config.head_dim
    each = 4 * config.num_hidden_layers * width * LENGTH
    monkeypatch.setattr(text_writer, "CACHE_BYTES", 2 * each)
    assert torch.equal(written(debug_checkpoint), together)
    assert starts == [2, 2, 1]
