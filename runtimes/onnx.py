"""ONNX artifacts on ONNX Runtime's CPU provider, the KV cache in buffers that stay in place.

`GroupQueryAttention` writes into its past when the same buffer is bound as past and present, so
a decode step copies nothing. Shape legend: B = 1, T tokens, V vocab, K key/value heads, H head_dim.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.cache_state import KINDS, CacheState, cache_name
from llama_edge.core.errors import SessionError
from llama_edge.core.regular import read_regular
from llama_edge.core.session import (
    BlockTrace,
    ClosesOnExit,
    FloatArray,
    OperatorTrace,
    Session,
    check_kept,
    check_saved,
    check_tokens,
)
from llama_edge.models.blocks import Add, Attention, Hadamard, HeadNorm, RMSNorm, SwiGLU
from llama_edge.models.network import STACK, Network, network_of, product_name
from llama_edge.models.value_names import attention_value, hidden_value

#: Everything that ONNX Runtime raises; its classes share no base, and bindings have none of them.
_RUNTIME_ERRORS: Final = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotFound,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)
#: Where a model given as bytes finds its external data.
_DATA_FOLDER_KEY: Final = "session.model_external_initializers_file_folder_path"
#: Idle threads sleep: a check runs next to other work, and threads that spin for 2 of 2 busy cores
#: doubled the processor time of a token (11 to 20 ms on SmolLM2).
_SPINNING_KEY: Final = "session.intra_op.allow_spinning"
#: ONNX Runtime prints what it raises as well; the exception is enough.
_FATAL_ONLY: Final = 4
_LOGITS: Final = "logits"
#: What protobuf reads.
_MAX_MODEL_BYTES: Final = (2 << 30) - 1


class OnnxSession(ClosesOnExit):
    """A `Session` over one loaded model.

    Args:
        artifact: What is run.
        model: The file, or the serialized graph that takes its weights from the artifact's folder.
        traced: Further values that every call returns.
        threads: Within an operator; None leaves ONNX Runtime's choice.

    Raises:
        SessionError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        artifact: Artifact,
        model: Path | bytes,
        traced: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry(_SPINNING_KEY, "0")
        if isinstance(model, bytes):
            options.add_session_config_entry(_DATA_FOLDER_KEY, str(artifact.root.absolute()))
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
            )
            self._binding = self._session.io_binding()
            self._outputs = (_LOGITS, *traced)
            self._bind_outputs()
            self._bind_cache(artifact)
        except _RUNTIME_ERRORS as error:
            raise SessionError(
                f"{artifact.path}: ONNX Runtime refuses the model: {error}; "
                "copy or export the folder again"
            ) from error
        self._artifact = artifact
        self._length = 0
        self._mask = np.ones((1, artifact.max_context), np.int64)

    def _bind_outputs(self) -> None:
        """Fresh buffers, whose length follows the call's; bound first, they come back first."""
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")

    def _bind_cache(self, artifact: Artifact) -> None:
        """One buffer per key and value, as past and as present; memory is taken when touched."""
        config = artifact.config
        shape = (1, config.num_key_value_heads, artifact.max_context, config.head_dim)
        self._caches: dict[tuple[int, str], ort.OrtValue] = {}
        for layer in range(config.num_hidden_layers):
            for kind in KINDS:
                buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self._caches[layer, kind] = buffer
                self._binding.bind_ortvalue_input(f"past_key_values.{layer}.{kind}", buffer)
                self._binding.bind_ortvalue_output(f"present.{layer}.{kind}", buffer)

    @property
    def max_context(self) -> int:
        """See `Session`."""
        return self._artifact.max_context

    def run(self, tokens: Sequence[int]) -> list[FloatArray]:
        """Append tokens; logits (T, V), then each traced value (T, width).

        Raises:
            SessionError: No token, a token outside the vocabulary, more than the cache holds, or
                the session is closed.
        """
        if self._session is None:
            raise SessionError(f"{self._artifact.path}: the session is closed; open it again")
        check_tokens(
            tokens,
            used=self._length,
            max_context=self.max_context,
            vocab_size=self._artifact.config.vocab_size,
        )
        total = self._length + len(tokens)
        self._bind_outputs()
        self._binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        self._binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        try:
            self._session.run_with_iobinding(self._binding)
        except _RUNTIME_ERRORS as error:
            raise SessionError(f"{self._artifact.path}: the run failed: {error}") from error
        self._length = total
        values = self._binding.get_outputs_as_ortvaluevector()
        return [values[index].numpy()[0] for index in range(len(self._outputs))]

    def cached(self, layer: int, kind: str) -> FloatArray:
        """A layer's cached "key" or "value" rows of all tokens so far, (T, K * H)."""
        rows = self._caches[layer, kind].numpy()[0, :, : self._length]
        copied: FloatArray = rows.transpose(1, 0, 2).reshape(self._length, -1).copy()
        return copied

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
        """See `Session`; what the buffers hold beyond the length is never read."""
        check_kept(keep, self._length)
        self._length = keep

    def save(self) -> CacheState:
        """See `Session`."""
        check_saved(self._length)
        arrays = {
            cache_name(kind, layer): buffer.numpy()[0, :, : self._length].swapaxes(0, 1).copy()
            for (layer, kind), buffer in self._caches.items()
        }
        return CacheState(kv_cache=KVCacheDtype.FLOAT32, tokens=self._length, arrays=arrays)

    def restore(self, state: CacheState) -> None:
        """See `Session`."""
        state.require(self._artifact.config, KVCacheDtype.FLOAT32, self.max_context)
        for (layer, kind), buffer in self._caches.items():
            # `numpy` is a view of the buffer that is bound.
            rows = state.arrays[cache_name(kind, layer)].swapaxes(0, 1)
            buffer.numpy()[0, :, : state.tokens] = rows
        self._length = state.tokens

    def close(self) -> None:
        """See `Session`."""
        if self._session is not None:
            self._session = None
            self._caches = {}
            del self._binding


class OnnxRuntime:
    """The `Runtime` of ONNX artifacts.

    Args:
        threads: Within an operator; None leaves ONNX Runtime's choice.
    """

    name = "onnx"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def version(self) -> str:
        """See `Runtime`."""
        return f"onnxruntime {ort.__version__}"

    def open(self, artifact: Artifact) -> Session:
        """See `Runtime`."""
        return OnnxSession(artifact, artifact.path, threads=self._threads)

    def trace(self, artifact: Artifact, calls: Sequence[Sequence[int]]) -> BlockTrace:
        """See `Runtime`; the file's own graph runs, with its inner values as further outputs."""
        layers = artifact.config.num_hidden_layers
        hidden = [hidden_value(layer) for layer in range(layers + 1)]
        attention = [attention_value(layer) for layer in range(layers)]
        names = [*hidden, *attention]
        graph = _with_outputs(_read(artifact), artifact, names)
        with OnnxSession(artifact, graph, names) as session:
            results = [session.run(call) for call in calls]
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
        """See `Runtime`; queries and keys after RoPE are inside of attention, not to be seen."""
        return _trace_operators(artifact, calls, layers)


def _read(artifact: Artifact) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(
            read_regular(artifact.path, _MAX_MODEL_BYTES, SessionError)
        )
    except DecodeError as error:
        raise SessionError(f"{artifact.path}: cannot be read: {error}") from error


def _made(model: onnx.ModelProto) -> set[str]:
    return {output for node in model.graph.node for output in node.output}


def _with_outputs(model: onnx.ModelProto, artifact: Artifact, names: Sequence[str]) -> bytes:
    """The artifact's graph, serialized, with further float32 (B, T, width) outputs.

    Raises:
        SessionError: The file has no such values.
    """
    known = _made(model)
    missing = [name for name in names if name not in known]
    if missing:
        raise SessionError(
            f"{artifact.path}: the graph has no value {missing[0]}, so its blocks cannot be "
            "checked; export it with this version of llama-edge"
        )
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None]) for name in names
    )
    content: bytes = model.SerializeToString()
    return content


def _block_names(network: Network, layer: int) -> dict[str, str]:
    """The graph's name of each value of a block that is not fused away, by our name."""
    block = f"model.layers.{layer}."
    names = {"hidden": hidden_value(layer)}
    for linears in network.stacked_linears(layer):
        name = product_name(linears)
        names[name.rpartition(".")[2]] = f"{name}.output"
    for node in network.in_layer(layer).values():
        match node.block:
            case RMSNorm() if network.enters_layer(node) and layer:
                names[node.part] = _norm_behind(layer - 1)
            case RMSNorm() | HeadNorm():
                names[node.part] = f"{node.name}.output"
            case Attention():
                names[node.part] = attention_value(layer)
            case SwiGLU():
                names[node.part] = f"{block}mlp.product"
            case Hadamard():
                names[node.part] = f"{block}mlp.rotated"
            case Add():
                leaves = network.leaves_layer(node)
                names[node.part] = hidden_value(layer + 1) if leaves else f"{block}middle"
    return names


def _norm_behind(layer: int) -> str:
    return f"model.layers.{layer}.next_layernorm.output"


def _trace_operators(
    artifact: Artifact, calls: Sequence[Sequence[int]], layers: Sequence[int]
) -> OperatorTrace:
    model, config = _read(artifact), artifact.config
    known = _made(model)
    last = config.num_hidden_layers
    head = {
        "hidden": hidden_value(last),
        "norm": _norm_behind(last - 1),
        "head_rotation": "lm_head.rotated",
    }
    network = network_of(config)
    blocks = {layer: _block_names(network, layer) for layer in layers}
    groups = [*blocks.values(), head]
    names = dict.fromkeys(name for group in groups for name in group.values() if name in known)
    with OnnxSession(artifact, _with_outputs(model, artifact, [*names]), [*names]) as session:
        assert isinstance(session, OnnxSession)
        results = [session.run(call) for call in calls]
        caches = {
            layer: {f"{kind}_cache": session.cached(layer, kind) for kind in KINDS}
            for layer in layers
        }
    columns = {name: [run[index] for run in results] for index, name in enumerate(names, start=1)}
    found = {
        layer: {key: np.concatenate(columns[name]) for key, name in group.items() if name in known}
        for layer, group in blocks.items()
    }
    ends = {key: columns[name] for key, name in head.items() if name in known}
    return OperatorTrace(
        tokens=tuple(token for call in calls for token in call),
        calls=tuple(len(call) for call in calls),
        blocks={layer: {**_unstacked(network, found[layer]), **caches[layer]} for layer in layers},
        head={
            **{key: np.stack([rows[-1] for rows in parts]) for key, parts in ends.items()},
            "lm_head": np.stack([run[0][-1] for run in results]),
        },
    )


def _unstacked(network: Network, values: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Queries, keys and values are one product in the graph."""
    stacked = values.pop(STACK, None)
    if stacked is None:
        return values
    linears = next(linears for linears in network.stacked_linears(0) if len(linears) > 1)
    rows = np.cumsum([node.shapes[node.weight][0] for node in linears])
    parts = np.split(stacked, rows[:-1], axis=1)
    return {**values, **dict(zip((node.part for node in linears), parts, strict=True))}
