"""Logits, and which tokens may be chosen with which probability; the draw differs by language."""

import random
from collections.abc import Iterator
from typing import Final

import numpy as np

from llama_edge.text.generate import SamplingConfig, token_probabilities
from tests.app_fixtures.files import Case, Files

#: temperature, top_p, top_k; the coldest leaves no token so little that NumPy's sum is 1 before it
_SETTINGS: Final = (
    ("plain", 1.0, 1.0, 0),
    ("hot", 2.5, 1.0, 0),
    ("cold", 0.4, 1.0, 0),
    ("top-k", 1.0, 1.0, 5),
    ("top-k-of-all", 1.0, 1.0, 10_000),
    ("top-1", 0.7, 1.0, 1),
    ("top-p", 1.0, 0.9, 0),
    ("top-p-of-one", 0.6, 0.01, 0),
    ("top-p-of-top-k", 0.6, 0.9, 20),
)
#: vocabulary, and how many different logits there are: few make equal ones
_SIZES: Final = ((8, 65536), (64, 65536), (64, 6))


def sampling_cases() -> Iterator[tuple[Case, Files]]:
    """Every setting over every size."""
    numbers = random.Random(56)
    for size, values in _SIZES:
        # Multiples of 1/8192 from -5 to 3 are exact in JSON, in float32 and in float64.
        step = 65536 // values
        logits = [int(numbers.random() * values) * step / 8192 - 5 for _ in range(size)]
        for name, temperature, top_p, top_k in _SETTINGS:
            sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k)
            probabilities = token_probabilities(np.array(logits, np.float32), sampling)
            kept = [token for token in range(size) if probabilities[token] > 0]
            yield (
                {
                    "kind": "sampling",
                    "name": f"{name}-{size}-{values}",
                    "logits": logits,
                    "temperature": temperature,
                    "top_p": top_p,
                    "top_k": top_k,
                    "tokens": kept,
                    "probabilities": [float(probabilities[token]) for token in kept],
                },
                {},
            )
