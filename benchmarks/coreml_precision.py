"""How far a Core ML package of SmolLM2-135M is from its reference, exactly and rounded to float16.

    python benchmarks/coreml_precision.py [--recipe RECIPE] [--prompts N] [--prefill flexible|fixed]

The package is written, then run by the interpreter in both of its modes over the gate's prompts:
each is prefilled, and 64 more tokens are decoded one by one. The reference computes with the same
codes and scales in float32. Not Apple's runtime: rounding each result to float16 is an estimate.
A recipe with calibration takes minutes, once.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.artifact import PrefillLengths
from llama_edge.core.progress import SilentProgress
from llama_edge.gate.end_to_end import artifact_logits
from llama_edge.gate.metrics import compare
from llama_edge.gate.prompts import gate_prompts
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource, FullPrecisionSource
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.recipe_file import find_recipe
from llama_edge.runtimes import get_runtime
from llama_edge.text.tokenizer import Tokenizer

MODEL = "smollm2-135m"
RUNTIMES = ("coreml", "coreml-fp16")


def measure(recipe: str, count: int, prefill: PrefillLengths) -> list[tuple[str, ...]]:
    """Rows of the table: each prompt in each mode."""
    model = load_checkpoint(MODEL)
    precise = Reference(
        model.config, CachedSource(FullPrecisionSource(model.config, model.weights))
    )
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        codes, place = Path(folder, "codes"), Path(folder, "package")
        codes.mkdir()
        place.mkdir()
        quantized = quantize_with_cache(model, find_recipe(recipe), (), codes, SilentProgress())
        options = LowerOptions(prefill=prefill)
        artifact = CoreMLExporter().lower(quantized, place, options, SilentProgress())
        reference = Reference(quantized.config, CachedSource(DequantizedSource(quantized.weights)))
        vocab_size = quantized.config.vocab_size
        for prompt in gate_prompts(Tokenizer(model.text), artifact.max_context)[:count]:
            tokens = torch.tensor(prompt.sequence)
            with torch.no_grad():
                expected, full = reference.logits(tokens).numpy(), precise.logits(tokens).numpy()
            for name in RUNTIMES:
                with get_runtime(name).open(artifact) as session:
                    found = artifact_logits(session, prompt, vocab_size)
                error = np.abs(found - expected)
                same = (found.argmax(-1) == expected.argmax(-1)).mean()
                start = len(prompt.tokens)
                rows.append(
                    (
                        prompt.name,
                        name,
                        f"{start} + {len(prompt.continuation)}",
                        f"{error[:start].max():.2g}",
                        f"{error[start:].max():.2g}",
                        f"{same:.1%}",
                        f"{compare(full, found, prompt.sequence).kl.mean():.5f}",
                    )
                )
    return rows


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default=W4A8_RTN.name)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prefill", type=PrefillLengths, default=PrefillLengths.FLEXIBLE)
    arguments = parser.parse_args()
    rows = measure(arguments.recipe, arguments.prompts, arguments.prefill)
    table = Table(title=f"{MODEL}, recipe {arguments.recipe}, prefill {arguments.prefill.value}")
    for heading in (
        "prompt",
        "runtime",
        "tokens",
        "max |logit error|, prefill",
        "decode",
        "same top token",
        "KL to full precision",
    ):
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
