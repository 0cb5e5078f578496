"""ExecuTorch's own runtime with XNNPACK, through the Python bindings of the `executorch` wheel."""

import importlib.metadata
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_edge.core.artifact import Artifact
from llama_edge.core.cache_state import CacheArray, CacheState, cache_arrays
from llama_edge.core.errors import SessionError
from llama_edge.core.session import (
    BlockTrace,
    ClosesOnExit,
    FloatArray,
    OperatorTrace,
    check_kept,
    check_saved,
    check_tokens,
)
from llama_edge.formats.pte_stacks import stacked_rows
from llama_edge.models.network import STACK, network_of
from llama_edge.runtimes.executorch_native import load_program, reset_thread_pool

_CACHES = ("key_cache", "value_cache")
#: what a method returns: float32, or int8 where a trace looks at codes
AnyArray = NDArray[Any]


class _Method:
    """The loaded `forward` method and how many tokens its cache holds."""

    def __init__(self, path: Path, artifact: Artifact) -> None:
        self._artifact = artifact
        try:
            # The program owns the mapped file that the method reads: keep both.
            self._program = load_program(path)
            self._method: Any = self._program.load_method("forward")
        except RuntimeError as error:
            raise SessionError(
                f"{path}: ExecuTorch refuses the file: {error}; it is damaged, or was written for "
                "another version of the runtime"
            ) from error
        self.used = 0

    def append(self, tokens: Sequence[int]) -> list[list[AnyArray]]:
        """Run tokens in calls of at most `max_prefill`; each call's outputs, copied."""
        artifact = self._artifact
        check_tokens(
            tokens,
            used=self.used,
            max_context=artifact.max_context,
            vocab_size=artifact.config.vocab_size,
        )
        outputs = []
        for start in range(0, len(tokens), artifact.max_prefill):
            piece = tokens[start : start + artifact.max_prefill]
            inputs = torch.tensor([piece]), torch.tensor([self.used])
            try:
                results = self._method(inputs)
            except RuntimeError as error:
                raise SessionError(
                    f"{artifact.path}: ExecuTorch failed at position {self.used}: {error}"
                ) from error
            outputs.append([result.numpy().copy() for result in results])
            self.used += len(piece)
        return outputs

    def cache(self, array: CacheArray) -> AnyArray:
        """One array of the cache, (T, K, W), of as many tokens as it holds; not a copy.

        Raises:
            SessionError: The file gives its caches no names.
        """
        try:
            found: AnyArray = self._method.get_attribute(array.name).numpy()
        except RuntimeError as error:
            raise SessionError(
                f"{self._artifact.path}: has no cache of the name {array.name}, so that its state "
                f"can be neither saved nor restored: {error}; export the model with this version "
                "of llama-edge"
            ) from error
        return found[:, :, 0].swapaxes(0, 1)


class ExecuTorchSession(ClosesOnExit):
    """A `Session`; the cache lives inside the method, `input_pos` says where to write."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._method: _Method | None = _Method(artifact.path, artifact)

    @property
    def max_context(self) -> int:
        """See `Session`."""
        return self._artifact.max_context

    def _loaded(self) -> _Method:
        if self._method is None:
            raise SessionError(f"{self._artifact.path}: the session is closed")
        return self._method

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`."""
        return self._loaded().append(tokens)[-1][0].reshape(-1)

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`; the method returns the last token's logits, so each is a call."""
        method = self._loaded()
        return np.stack([method.append([token])[0][0].reshape(-1) for token in tokens])

    def decode(self, token: int) -> FloatArray:
        """See `Session`."""
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        """See `Session`; stale cache rows lie after `input_pos`, where attention never looks."""
        method = self._loaded()
        check_kept(keep, method.used)
        method.used = keep

    def save(self) -> CacheState:
        """See `Session`."""
        method = self._loaded()
        check_saved(method.used)
        kv_cache = self._artifact.kv_cache
        arrays = {
            array.name: method.cache(array)[: method.used].copy()
            for array in cache_arrays(self._artifact.config, kv_cache)
        }
        return CacheState(kv_cache=kv_cache, tokens=method.used, arrays=arrays)

    def restore(self, state: CacheState) -> None:
        """See `Session`."""
        method, artifact = self._loaded(), self._artifact
        state.require(artifact.config, artifact.kv_cache, artifact.max_context)
        for array in cache_arrays(artifact.config, artifact.kv_cache):
            method.cache(array)[: state.tokens] = state.arrays[array.name]
        method.used = state.tokens

    def close(self) -> None:
        """See `Session`."""
        self._method = None


class ExecuTorchRuntime:
    """`Runtime` for `.pte` files.

    Args:
        threads: Of the whole process's pool; None leaves ExecuTorch's choice.
    """

    name = "executorch"

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            # Safe here: no method is loaded, so that nothing runs in the pool that is replaced.
            reset_thread_pool(threads)

    def version(self) -> str:
        """See `Runtime`."""
        version = importlib.metadata.version("executorch")
        return f"ExecuTorch {version}, XNNPACK, {platform.machine()} desktop"

    def open(self, artifact: Artifact) -> ExecuTorchSession:
        """See `Runtime`."""
        return ExecuTorchSession(artifact)

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> BlockTrace:
        """See `Runtime`; runs a copy of the file whose method returns more of its values."""
        # ExecuTorch's exporter, which knows the file's schema, takes seconds to import; whoever
        # only runs a file does without it.
        from llama_edge.runtimes.executorch_trace import ROWS_PER_LAYER, write_traced_copy

        layers = artifact.config.num_hidden_layers
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "traced.pte")
            write_traced_copy(artifact.path, copy, layers)
            method = _Method(copy, artifact)
            outputs = [method.append(call) for call in calls]
        pieces = [piece for call in outputs for piece in call]

        def column(index: int) -> FloatArray:
            return np.concatenate([_by_token(piece[index]) for piece in pieces])

        hidden = range(1, layers + 2)
        attention = range(layers + 2, 2 * layers + 2)
        return BlockTrace(
            tokens=tuple(token for call in calls for token in call),
            calls=tuple(len(call) for call in calls),
            hidden=tuple(column(index) for index in hidden),
            attention=tuple(column(index) for index in attention),
            logits=np.stack([call[-1][0].reshape(-1) for call in outputs]),
            cache_rows=_cache_rows(pieces, 2 * layers + 2, ROWS_PER_LAYER),
        )

    def trace_operators(
        self, artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> OperatorTrace:
        """See `Runtime`; runs a copy of the file whose delegates return more of their values."""
        from llama_edge.runtimes.executorch_operators import write_operator_copy

        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "operators.pte")
            most = min(max(map(len, calls)), artifact.max_prefill)
            places = write_operator_copy(artifact, copy, layers, most)
            method = _Method(copy, artifact)
            outputs = [method.append(call) for call in calls]
        blocks: dict[int, dict[str, FloatArray]] = {layer: {} for layer in layers}
        head = {"lm_head": np.stack([call[-1][0].reshape(-1) for call in outputs])}
        for (layer, name), place in places.items():
            if layer is None:
                head[name] = _last_rows(outputs, place)
            elif name in _CACHES:
                blocks[layer][name] = _by_token(outputs[-1][-1][place])[: method.used]
            else:
                blocks[layer][name] = _all_rows(outputs, place)
        return OperatorTrace(
            tokens=tuple(token for call in calls for token in call),
            calls=tuple(len(call) for call in calls),
            blocks={layer: _unstacked(artifact, block) for layer, block in blocks.items()},
            head=_head_values(artifact, head),
        )


def _by_token(value: AnyArray) -> FloatArray:
    """(T, all the rest) of a value (1, T, ...), or (K, T, ...) for each key/value head."""
    by_token = value.swapaxes(0, 1)
    return by_token.reshape(len(by_token), -1)


def _last_rows(outputs: Sequence[Sequence[Sequence[AnyArray]]], place: int) -> FloatArray:
    """The last token's row of each call."""
    return np.stack([_by_token(call[-1][place])[-1] for call in outputs])


def _all_rows(outputs: Sequence[Sequence[Sequence[AnyArray]]], place: int) -> FloatArray:
    return np.concatenate([_by_token(piece[place]) for call in outputs for piece in call])


def _unstacked(artifact: Artifact, values: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Queries, keys and values are one product in the graph, by key/value head."""
    config = artifact.config
    stacked = values.pop(STACK, None)
    values.pop("v_heads", None)
    if stacked is None:
        return values
    linears = network_of(config).stacked_linears(0)[0]
    rows = stacked_rows(config, [node.weight for node in linears])
    split = {node.part: stacked[:, rows[node.weight].numpy()] for node in linears}
    return {**values, **split}


def _head_values(artifact: Artifact, head: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """What lm_head multiplies is the norm, or what the head's rotation makes of it."""
    entering = head.pop("head_input", None)
    if entering is None:
        return head
    return {**head, "head_rotation" if artifact.config.head_rotation else "norm": entering}


def _by_head(rows: AnyArray) -> AnyArray:
    """(K, T, heads of each, H or 1) -> (T, all heads, H or 1)."""
    by_token = rows.swapaxes(0, 1)
    return by_token.reshape(len(by_token), -1, rows.shape[-1])


def _cache_rows(
    pieces: Sequence[Sequence[AnyArray]], first: int, per_layer: int
) -> tuple[FloatArray, ...]:
    """`BlockTrace.cache_rows`, out of the outputs from index `first` on."""
    layers = []
    for start in range(first, len(pieces[0]), per_layer):
        calls = [[_by_head(part) for part in piece[start : start + per_layer]] for piece in pieces]
        # Codes, steps and zero points of queries, of keys, of values: (T, heads, H or 1) each.
        values = [np.concatenate(parts).astype(np.float32) for parts in zip(*calls, strict=True)]
        kinds = [np.concatenate(values[kind::3], axis=1) for kind in range(3)]
        layers.append(np.concatenate(kinds, axis=2))
    return tuple(layers)
