"""Layer by layer over all sequences and variants gives what each forward pass alone gives."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.progress import SilentProgress
from llama_edge.gate.teacher import Variant, final_hidden
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import FullPrecisionSource
from tests.conftest import DEBUG_CONFIG, MemoryWeights

SEQUENCES = [[1, 2, 3, 4, 5], [200, 100, 50]]


class CountingWeights(MemoryWeights):
    def __init__(self) -> None:
        super().__init__(DEBUG_CONFIG)
        self.reads: Counter[str] = Counter()

    def read(self, name: str) -> Tensor:
        self.reads[name] += 1
        return super().read(name)


@pytest.fixture
def weights() -> CountingWeights:
    return CountingWeights()


def test_each_variant_is_its_own_forward_pass(weights: CountingWeights) -> None:
    source = FullPrecisionSource(DEBUG_CONFIG, weights)
    models = [Reference(DEBUG_CONFIG, source, activation) for activation in ActivationQuantization]
    found = final_hidden([Variant(model=model) for model in models], SEQUENCES, SilentProgress())
    for model, states in zip(models, found, strict=True):
        for tokens, state in zip(SEQUENCES, states, strict=True):
            wanted = model.hidden(model.embed(torch.tensor(tokens)), KVCache())
            torch.testing.assert_close(state, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0][0], found[1][0])


def test_every_matrix_is_read_once_for_all(weights: CountingWeights) -> None:
    source = FullPrecisionSource(DEBUG_CONFIG, weights)
    model = Reference(DEBUG_CONFIG, source)
    variants = [Variant(model=model), Variant(model=model, disturbance=1e-6)]
    final_hidden(variants, SEQUENCES * 3, SilentProgress())
    blocks = {name: count for name, count in weights.reads.items() if "layers" in name}
    assert len(blocks) == 18
    assert set(blocks.values()) == {1}
    assert weights.reads["model.embed_tokens.weight"] == len(variants)


def test_the_disturbance_is_small_and_seeded(weights: CountingWeights) -> None:
    model = Reference(DEBUG_CONFIG, FullPrecisionSource(DEBUG_CONFIG, weights))

    def run(disturbance: float, seed: int = 0) -> Tensor:
        variant = Variant(model=model, disturbance=disturbance, seed=seed)
        return final_hidden([variant], SEQUENCES, SilentProgress())[0][0]

    plain, disturbed = run(0.0), run(1e-4)
    relative = float((disturbed - plain).norm() / plain.norm())
    assert 1e-5 < relative < 1e-3
    assert torch.equal(disturbed, run(1e-4))
    assert not torch.equal(disturbed, run(1e-4, seed=1))
