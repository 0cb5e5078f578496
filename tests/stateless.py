"""For sessions of tests in which nobody saves the cache."""

from llama_edge.core.cache_state import CacheState


class Stateless:
    def save(self) -> CacheState:
        raise NotImplementedError

    def restore(self, state: CacheState) -> None:
        raise NotImplementedError
