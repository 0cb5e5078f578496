"""The eager session: one pass, chunks and token by token agree; bad tokens are refused."""

import numpy as np
import pytest
import torch

from llama_edge.core.errors import SessionError
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession
from tests.conftest import DEBUG_CONFIG, MemoryWeights

TOKENS = [(7 * position + 3) % 256 for position in range(40)]


@pytest.fixture
def model() -> Reference:
    return Reference(DEBUG_CONFIG, FullPrecisionSource(DEBUG_CONFIG, MemoryWeights(DEBUG_CONFIG)))


def test_prefill_then_decode_is_one_pass(model: Reference) -> None:
    expected = model.logits(torch.tensor(TOKENS)).numpy()
    with EagerSession(model, max_context=40) as session:
        np.testing.assert_allclose(session.prefill_logits(TOKENS[:30]), expected[:30], atol=1e-5)
        for position in range(30, 39):
            np.testing.assert_allclose(
                session.decode(TOKENS[position]), expected[position], atol=1e-5
            )
        np.testing.assert_allclose(session.prefill(TOKENS[39:]), expected[39], atol=1e-5)


def test_reset_forgets(model: Reference) -> None:
    session = EagerSession(model, max_context=40)
    first = session.prefill(TOKENS)
    session.reset()
    np.testing.assert_array_equal(session.prefill(TOKENS), first)


def test_context_and_vocabulary_are_limits(model: Reference) -> None:
    session = EagerSession(model, max_context=4)
    with pytest.raises(SessionError, match="no token"):
        session.prefill([])
    with pytest.raises(SessionError, match=r"0 tokens in the cache and 5 new ones .* context of 4"):
        session.prefill([1, 2, 3, 4, 5])
    session.prefill([1, 2, 3, 4])
    with pytest.raises(SessionError, match="4 tokens in the cache and 1 new"):
        session.decode(1)
    session.reset()
    for token in (-1, 256):
        with pytest.raises(SessionError, match=f"token {token} at position 1 .* vocabulary of 256"):
            session.prefill([3, token])
