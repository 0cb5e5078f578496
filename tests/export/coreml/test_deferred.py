import numpy as np
import pytest

from llama_edge.backends.coreml.deferred import DeferredArray
from llama_edge.core.errors import ExportError

NUMBERS = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)


def test_a_promise_has_shape_and_type_and_numbers_when_it_is_flattened() -> None:
    read: list[str] = []

    def numbers() -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
        read.append("once")
        return NUMBERS

    promised = DeferredArray.of("a", (3, 4), np.dtype(np.int8), numbers)
    assert isinstance(promised, np.ndarray)
    assert (promised.shape, promised.size, promised.dtype) == ((3, 4), 12, np.dtype(np.int8))
    assert promised.base is not None
    assert promised.base.nbytes <= 12
    assert not read
    assert promised.flatten().tolist() == list(range(-6, 6))
    assert len(read) == 1


def test_a_part_of_a_promise_is_not_written() -> None:
    promised = DeferredArray.of("a", (3, 4), np.dtype(np.int8), lambda: NUMBERS)
    for part in (promised[:2], promised.copy(), promised.reshape(4, 3)):
        with pytest.raises(ExportError, match="a part of a matrix of codes"):
            part.flatten()


def test_codes_of_another_shape_than_promised() -> None:
    promised = DeferredArray.of("a.weight", (3, 5), np.dtype(np.int8), lambda: NUMBERS)
    with pytest.raises(ExportError, match=r"a\.weight: has values \(3, 4\) now and had \(3, 5\)"):
        promised.flatten()
