"""What a KV cache holds after some tokens, in an order of its own: each runtime has another one.

Shape legend: T tokens in the cache, K key/value heads, W values of a row: head_dim, or 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.errors import SessionError
from llama_edge.core.model_config import ModelConfig

KINDS: Final = ("key", "value")


@dataclass(frozen=True, slots=True)
class CacheArray:
    """One array of a layer's cache."""

    name: str
    dtype: np.dtype[Any]
    #: W
    width: int


def cache_arrays(config: ModelConfig, kv_cache: KVCacheDtype) -> tuple[CacheArray, ...]:
    """What a cache of that kind consists of: keys, then values, layer by layer."""
    layers = range(config.num_hidden_layers)
    return tuple(
        array
        for layer in layers
        for kind in KINDS
        for array in _rows(config, kv_cache, kind, layer)
    )


def _rows(
    config: ModelConfig, kv_cache: KVCacheDtype, kind: str, layer: int
) -> Iterator[CacheArray]:
    name = cache_name(kind, layer)
    if kv_cache is not KVCacheDtype.INT8:
        yield CacheArray(name, np.dtype(kv_cache.value), config.head_dim)
        return
    yield CacheArray(f"{name}.codes", np.dtype(np.int8), config.head_dim)
    yield CacheArray(f"{name}.zero_points", np.dtype(np.int8), 1)
    yield CacheArray(f"{name}.scales", np.dtype(np.float32), 1)


def cache_name(kind: str, layer: int) -> str:
    """The name of a layer's keys or values; those of an int8 cache have a part more."""
    return f"{kind}.{layer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheState:
    """The keys and values of a sequence, with the exact numbers that the runtime holds."""

    kv_cache: KVCacheDtype
    #: T
    tokens: int
    #: (T, K, W) each, by name
    arrays: Mapping[str, NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        """Of all arrays together."""
        return sum(array.nbytes for array in self.arrays.values())

    def rows(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Each layer's keys and values as numbers, float32 (T, K, head_dim)."""
        for name, array in self.arrays.items():
            if self.kv_cache is not KVCacheDtype.INT8:
                yield name, array.astype(np.float32)
            elif name.endswith(".codes"):
                whole = name.removesuffix(".codes")
                zero_points = self.arrays[f"{whole}.zero_points"].astype(np.float32)
                steps = array.astype(np.float32) - zero_points
                yield whole, steps * self.arrays[f"{whole}.scales"]

    def equals(self, other: "CacheState") -> bool:
        """Whether both hold the same bytes."""
        return (
            (self.kv_cache, self.tokens) == (other.kv_cache, other.tokens)
            and self.arrays.keys() == other.arrays.keys()
            and all(
                self.arrays[name].tobytes() == other.arrays[name].tobytes() for name in self.arrays
            )
        )

    def require(self, config: ModelConfig, kv_cache: KVCacheDtype, max_context: int) -> None:
        """Refuse a state that does not fit a model's cache.

        Raises:
            SessionError: Another kind of cache, more tokens than it holds, or arrays of other
                names, dtypes or shapes.
        """
        if self.kv_cache is not kv_cache:
            raise SessionError(
                f"the state is of a {self.kv_cache} cache, and the model has a {kv_cache} one; "
                "make it again with llama-edge warm"
            )
        if not 0 < self.tokens <= max_context:
            raise SessionError(
                f"the state has {self.tokens} tokens, and the cache holds {max_context}; make it "
                "again with llama-edge warm"
            )
        heads = config.num_key_value_heads
        wanted = {
            array.name: (array.dtype, (self.tokens, heads, array.width))
            for array in cache_arrays(config, kv_cache)
        }
        found = {name: (array.dtype, array.shape) for name, array in self.arrays.items()}
        wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        if wrong:
            raise SessionError(
                f"the state's {wrong[0][:200]!a} is {_form(found.get(wrong[0]))}, and the cache "
                f"has {_form(wanted.get(wrong[0]))}: it is of another model; make it again with "
                "llama-edge warm"
            )


def _form(form: tuple[np.dtype[Any], tuple[int, ...]] | None) -> str:
    return "nothing" if form is None else f"{form[0]} {form[1]}"
