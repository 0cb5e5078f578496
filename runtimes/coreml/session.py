"""Core ML packages as a `Session`, and the interpreter as a `Runtime`.

Shape legend: T tokens of a call, V vocab, D hidden, Q query size, L layers, K key/value heads,
S tokens that the cache holds, H head_dim.
"""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.cache_state import KINDS, CacheState, cache_name
from llama_edge.core.errors import ArtifactError, SessionError
from llama_edge.core.session import (
    BlockTrace,
    ClosesOnExit,
    FloatArray,
    OperatorTrace,
    check_kept,
    check_saved,
    check_tokens,
)
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.models.blocks import (
    Add,
    Attention,
    Hadamard,
    HeadNorm,
    Linear,
    RMSNorm,
    SwiGLU,
)
from llama_edge.models.network import Network, network_of
from llama_edge.models.value_names import attention_value, hidden_value
from llama_edge.runtimes.coreml.functions import TOKENS, InterpretedFunctions, pieces
from llama_edge.runtimes.coreml.interpreter import Interpreter, Precision

_POSITION: Final = "position"
LOGITS: Final = "logits"
#: A token for the places of a call that has no more tokens; what comes of it is thrown away.
_FILLING: Final = 0
_CACHES: Final = ("keyCache", "valueCache")


class StatefulProgram(Protocol):
    """A loaded package: what runs it, and the states that it goes on from."""

    @property
    def lengths(self) -> Mapping[int, str]:
        """Functions by the tokens that they take, 1 first; none where any number is taken."""
        ...

    def run(
        self, feeds: Mapping[str, NDArray[Any]], also: Iterable[str] = ()
    ) -> Mapping[str, NDArray[Any]]:
        """Every output and each inner value of `also`, by name."""
        ...

    def reset(self) -> None:
        """All states to zero."""
        ...

    @property
    def cache_dtype(self) -> KVCacheDtype:
        """What a state's numbers are here, whatever the package declares."""
        ...

    def read_state(self, name: str) -> NDArray[Any]:
        """A copy of a state."""
        ...

    def write_state(self, name: str, value: NDArray[Any]) -> None:
        """Replace a state by an array of its shape and of `cache_dtype`."""
        ...


class CoreMLSession(ClosesOnExit):
    """A `Session` over one loaded package; the cache is the program's states."""

    def __init__(self, artifact: Artifact, program: StatefulProgram) -> None:
        self._artifact = artifact
        self._program: StatefulProgram | None = program
        self._used = 0

    @property
    def max_context(self) -> int:
        """See `Session`."""
        return self._artifact.max_context

    def run(self, tokens: Sequence[int], also: Sequence[str] = ()) -> list[FloatArray]:
        """Append tokens; logits (T, V), then each inner value (T, width) of `also`.

        Raises:
            SessionError: No token, a token outside the vocabulary, more than the cache holds, the
                program fails, or the session is closed.
        """
        program = self._loaded()
        check_tokens(
            tokens,
            used=self._used,
            max_context=self.max_context,
            vocab_size=self._artifact.config.vocab_size,
        )
        results = []
        start = 0
        for count, places in self._calls(len(tokens), program):
            piece = [*tokens[start : start + count], *[_FILLING] * (places - count)]
            feeds = {
                TOKENS: np.array([piece], np.int32),
                _POSITION: np.array([self._used], np.int32),
            }
            values = program.run(feeds, also)
            results.append([values[name][0][:count] for name in (LOGITS, *also)])
            start += count
            self._used += count
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def _calls(self, count: int, program: StatefulProgram) -> Iterable[tuple[int, int]]:
        """Tokens and places of each call."""
        if program.lengths:
            return [*pieces(count, self._used, self.max_context, [*program.lengths])]
        most = self._artifact.max_prefill
        sizes = [min(most, count - start) for start in range(0, count, most)]
        return [(size, size) for size in sizes]

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`."""
        last: FloatArray = self.run(tokens)[0][-1]
        return last

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        """See `Session`."""
        return self.run(tokens)[0]

    def decode(self, token: int) -> FloatArray:
        """See `Session`."""
        return self.prefill([token])

    def reset(self, keep: int = 0) -> None:
        """See `Session`; the mask hides what the states hold after the position."""
        check_kept(keep, self._used)
        if self._program is not None and not keep:
            self._program.reset()
        self._used = keep

    def _loaded(self) -> StatefulProgram:
        if self._program is None:
            raise SessionError(
                f"{package_folder(self._artifact)}: the session is closed; open it again"
            )
        return self._program

    def save(self) -> CacheState:
        """See `Session`; a state is (L, 1, K, S, H)."""
        program, used = self._loaded(), self._used
        check_saved(used)
        dtype = np.dtype(program.cache_dtype.value)
        arrays = {
            cache_name(kind, layer): rows[0, :, :used].swapaxes(0, 1).astype(dtype)
            for kind, name in zip(KINDS, _CACHES, strict=True)
            for layer, rows in enumerate(program.read_state(name))
        }
        return CacheState(kv_cache=program.cache_dtype, tokens=used, arrays=arrays)

    def restore(self, state: CacheState) -> None:
        """See `Session`."""
        program, config = self._loaded(), self._artifact.config
        state.require(config, program.cache_dtype, self.max_context)
        for kind, name in zip(KINDS, _CACHES, strict=True):
            whole = program.read_state(name)
            for layer in range(config.num_hidden_layers):
                rows = state.arrays[cache_name(kind, layer)].swapaxes(0, 1)
                whole[layer, 0, :, : state.tokens] = rows
            program.write_state(name, whole)
        self._used = state.tokens

    def close(self) -> None:
        """See `Session`."""
        self._program = None


class CoreMLInterpreterRuntime:
    """The `Runtime` of Core ML packages on machines without Core ML.

    It proves what the written file means, not what Apple's runtime makes of it.
    """

    name = "coreml"

    def __init__(self, precision: Precision = Precision.EXACT) -> None:
        self._precision = precision

    def version(self) -> str:
        """See `Runtime`."""
        versions = " and ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("torch", "coremltools")
        )
        arithmetic = {
            Precision.EXACT: "in float32",
            Precision.HALF: "each result rounded to the declared float16",
        }[self._precision]
        return f"MIL interpreter, {arithmetic} ({versions}); not Apple's runtime"

    def open(self, artifact: Artifact) -> CoreMLSession:
        """See `Runtime`."""
        return CoreMLSession(artifact, self._program(artifact))

    def _program(self, artifact: Artifact) -> InterpretedFunctions:
        package = package_folder(artifact)
        try:
            program = InterpretedFunctions(MLPackage(package), self._precision)
        except ArtifactError as error:
            raise SessionError(str(error)) from error
        for interpreter in program.functions.values():
            _check_interface(interpreter, artifact)
        return program

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> BlockTrace:
        """See `Runtime`; the interpreter hands over the program's own values."""
        layers = artifact.config.num_hidden_layers
        names = [hidden_value(layer) for layer in range(layers + 1)]
        names += [attention_value(layer) for layer in range(layers)]
        with self.open(artifact) as session:
            # MIL's identifiers have no points.
            wanted = [name.replace(".", "_") for name in names]
            results = [session.run(call, wanted) for call in calls]
        values = [
            np.concatenate(parts) for parts in zip(*(run[1:] for run in results), strict=True)
        ]
        return BlockTrace(
            tokens=tuple(token for call in calls for token in call),
            calls=tuple(len(call) for call in calls),
            hidden=tuple(values[: layers + 1]),
            attention=tuple(values[layers + 1 :]),
            logits=np.stack([run[0][-1] for run in results]),
        )

    def trace_operators(
        self, artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> OperatorTrace:
        """See `Runtime`; keys after RoPE are seen in the cache."""
        program = self._program(artifact)
        network = network_of(artifact.config)
        groups = {layer: _block_names(network, layer) for layer in layers}
        last = artifact.config.num_hidden_layers
        entering = "head_rotation" if artifact.config.head_rotation else "norm"
        head = {"hidden": hidden_value(last), entering: "lm_head.input"}
        known = program.default.makes()
        groups_of_mil = {
            key: {name: value.replace(".", "_") for name, value in group.items()}
            for key, group in ((None, head), *groups.items())
        }
        names = [
            *dict.fromkeys(
                value
                for group in groups_of_mil.values()
                for value in group.values()
                if value in known
            )
        ]
        with CoreMLSession(artifact, program) as session:
            results = [session.run(call, names) for call in calls]
            caches = [program.default.state(name)[:, 0] for name in _CACHES]
        used = sum(map(len, calls))
        columns = {
            name: [run[index] for run in results] for index, name in enumerate(names, start=1)
        }
        blocks = {
            layer: {
                **{
                    name: np.concatenate(columns[value])
                    for name, value in groups_of_mil[layer].items()
                    if value in columns
                },
                **{
                    kind: cache[layer, :, :used].transpose(1, 0, 2).reshape(used, -1)
                    for kind, cache in zip(("key_cache", "value_cache"), caches, strict=True)
                },
            }
            for layer in layers
        }
        ends = {
            name: np.stack([rows[-1] for rows in columns[value]])
            for name, value in groups_of_mil[None].items()
            if value in columns
        }
        return OperatorTrace(
            tokens=tuple(token for call in calls for token in call),
            calls=tuple(len(call) for call in calls),
            blocks=blocks,
            head={**ends, "lm_head": np.stack([run[0][-1] for run in results])},
        )


def _block_names(network: Network, layer: int) -> dict[str, str]:
    """The program's name of each value of a block, by our name."""
    block = f"model.layers.{layer}."
    names = {"hidden": hidden_value(layer)}
    for node in network.in_layer(layer).values():
        match node.block:
            case RMSNorm() | HeadNorm():
                names[node.part] = f"{node.name}.output"
            case Linear():
                names[node.part] = node.name
            case Attention():
                names[node.part] = attention_value(layer)
            case SwiGLU():
                names[node.part] = f"{block}mlp.product"
            case Hadamard():
                names[node.part] = f"{block}mlp.product.rotated"
            case Add():
                leaves = network.leaves_layer(node)
                names[node.part] = hidden_value(layer + 1) if leaves else f"{block}middle"
    return names


def package_folder(artifact: Artifact) -> Path:
    """The `.mlpackage`; the file to open is the manifest in it."""
    return artifact.path.parent


def _check_interface(interpreter: Interpreter, artifact: Artifact) -> None:
    config = artifact.config
    cache = (
        config.num_hidden_layers,
        1,
        config.num_key_value_heads,
        artifact.max_context,
        config.head_dim,
    )
    found = (
        {declared.name for declared in interpreter.inputs},
        {declared.name: declared.shape for declared in interpreter.states},
        set(interpreter.outputs),
    )
    needed = ({TOKENS, _POSITION}, dict.fromkeys(_CACHES, cache), {LOGITS})
    for kind, seen, wanted in zip(("inputs", "states", "outputs"), found, needed, strict=True):
        if seen != wanted:
            raise SessionError(
                f"{package_folder(artifact)}: its {kind} are {seen}; this model needs {wanted}: "
                "export it with this version of llama-edge"
            )
