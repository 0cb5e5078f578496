"""What is read again from one prompt to the next, over a session that records its calls."""

from collections.abc import Sequence

import numpy as np
import pytest

from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.cache_state import CacheState
from llama_edge.core.errors import SessionError
from llama_edge.core.session import FloatArray, check_kept, check_tokens
from llama_edge.text.kept_cache import KeptCache, StoredBeginning
from tests.stateless import Stateless

CONTEXT = 8
BEGINNING = (1, 2, 3, 4)


class Recorded(Stateless):
    """The logits spell the sequence; a token 9 kills the runtime once."""

    max_context = CONTEXT

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.reads: list[list[int]] = []
        self.restored = 0

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        check_tokens(tokens, used=len(self.tokens), max_context=CONTEXT, vocab_size=10)
        self.reads.append(list(tokens))
        self.tokens += tokens
        if 9 in tokens:
            raise SessionError("died")
        return np.array(self.tokens, np.float32)

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        return self.prefill(tokens)[None]

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        check_kept(keep, len(self.tokens))
        del self.tokens[keep:]

    def restore(self, state: CacheState) -> None:
        self.restored += 1
        self.tokens = [*BEGINNING[: state.tokens]]

    def close(self) -> None: ...

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None: ...


def test_only_what_is_new_is_read() -> None:
    session = Recorded()
    cache = KeptCache(session)
    assert list(cache.prefill([1, 2, 3])) == [1, 2, 3]
    assert list(cache.decode(4)) == [1, 2, 3, 4]
    assert list(cache.prefill([1, 2, 3, 4, 5])) == [1, 2, 3, 4, 5]
    assert list(cache.prefill([1, 2, 7])) == [1, 2, 7]
    assert cache.read_tokens == 1
    assert list(cache.prefill([1, 2, 7])) == [1, 2, 7]  # one token at least is read
    assert list(cache.prefill([1])) == [1]
    assert list(cache.prefill([2, 2])) == [2, 2]
    assert session.reads == [[1, 2, 3], [4], [5], [7], [7], [1], [2, 2]]


@pytest.mark.parametrize("broken", [[9], [], [1, 10], list(range(1, 9)) * 2])
def test_after_a_failure_all_is_read_again(broken: list[int]) -> None:
    cache = KeptCache(Recorded())
    cache.prefill([1, 2])
    with pytest.raises(SessionError):
        cache.prefill(broken)
    assert list(cache.prefill([1, 2, 3])) == [1, 2, 3]
    assert cache.read_tokens == 3
    with pytest.raises(SessionError):
        cache.decode(9)
    assert list(cache.prefill([1, 2, 3])) == [1, 2, 3]
    assert cache.read_tokens == 3


def test_a_stored_beginning_is_restored_where_it_spares_half_of_its_tokens() -> None:
    state = CacheState(kv_cache=KVCacheDtype.FLOAT32, tokens=len(BEGINNING), arrays={})
    session = Recorded()
    cache = KeptCache(session, StoredBeginning(BEGINNING, state))
    prompts = (
        # prompt, how many of its tokens are read, how often the state was restored until then
        ([5, 6], 2, 0),
        ([*BEGINNING, 5], 1, 1),
        ([*BEGINNING, 5, 6], 1, 1),  # the cache still holds it
        ([1, 2, 3, 5], 1, 1),
        ([1, 7], 1, 1),
        ([1, 2, 7], 2, 1),  # one token would be spared
        ([6], 1, 1),
        ([1, 2, 7], 1, 2),
        ([8], 1, 2),
        ([*BEGINNING], 1, 3),
    )
    for prompt, read, restored in prompts:
        assert list(cache.prefill(prompt)) == prompt
        assert (cache.read_tokens, session.restored) == (read, restored)
