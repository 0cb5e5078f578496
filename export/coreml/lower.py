"""QuantizedCheckpoint -> `model.mlpackage`: the program, and the bytes of the package.

One function, `main`, or two whose sizes are all fixed, `decode` and `prefill`: `inputIds` int32
(1, T), `position` int32 (1,), the states `keyCache` and `valueCache` fp16 (L, 1, K, S, H), and
`logits` fp16 (1, T, V). Names and states are those that swift-transformers looks for; it would pass
a `causalMask` and let its width say the position, which no fixed-size cache can be filled by, so
the position is an input of its own and the mask is made in the graph. Values that the gate looks at
have the names of `models.value_names`, with `_` for `.`, since MIL's identifiers have no points.
"""

import contextlib
import io
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llama_edge.backends.coreml.metadata import Lowering, PackageMetadata
from llama_edge.backends.coreml.package import (
    DECODE,
    MAIN,
    PACKAGE,
    PREFILL,
    add_function,
    make_reproducible,
    mil_name,
    named_function,
    require_same_weights,
)
from llama_edge.core.artifact import PrefillLengths
from llama_edge.core.errors import ExportError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.models.blocks import (
    Add,
    Attention,
    Embedding,
    Hadamard,
    HeadNorm,
    Linear,
    OutputRows,
    RMSNorm,
    Rope,
    Rotation,
    SwiGLU,
)
from llama_edge.models.network import COS, SIN, TOKENS, Emitters, Network, Node, network_of
from llama_edge.models.rope import rope_tables
from llama_edge.models.value_names import attention_value, hidden_value
from llama_edge.models.weight_names import EMBEDDING

# On import it warns of Apple's frameworks, absent outside macOS, and of packages not used here.
logging.getLogger("coremltools").setLevel(logging.ERROR)
import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import Program, Var, get_new_symbol, types  # noqa: E402

from llama_edge.backends.coreml.graph import Cache, Call, Graph  # noqa: E402

TARGET: Final = ct.target.iOS18
#: Nothing optimizes. A program that reads a state once per layer is right as built; after the
#: default passes of coremltools 9.0 its prefill still is, but decoding is 5.2 off (a small random
#: model's logits).
PASSES: Final = ct.PassPipeline.EMPTY
_HEAD_INPUT: Final = "lm_head.input"


def write_package(
    checkpoint: QuantizedCheckpoint, out_dir: Path, lowering: Lowering, progress: Progress
) -> None:
    """Write the package; the same checkpoint gives the same bytes.

    Raises:
        ExportError: A weight does not fit in fp16, or a name was changed on the way to the file.
    """
    functions = functions_of(lowering)
    steps = checkpoint.config.num_hidden_layers + 2
    progress.start("lower (coreml)", steps * len(functions))
    place = out_dir / PACKAGE
    first, *others = functions
    spec = _convert(checkpoint, lowering, functions[first], place, progress)
    if others:
        spec = named_function(spec, first)
    for name in others:
        with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
            again = Path(scratch, PACKAGE)
            add_function(
                spec, name, _convert(checkpoint, lowering, functions[name], again, progress)
            )
            require_same_weights(place, again)
    make_reproducible(place, spec, PackageMetadata.of(checkpoint, lowering).entries())


def functions_of(lowering: Lowering) -> dict[str, int | None]:
    """How many tokens each function takes, its default first; None is any number."""
    if lowering.prefill is PrefillLengths.FIXED:
        return {DECODE: 1, PREFILL: lowering.max_prefill}
    return {MAIN: None if lowering.max_prefill > 1 else 1}


def _convert(
    checkpoint: QuantizedCheckpoint,
    lowering: Lowering,
    tokens: int | None,
    place: Path,
    progress: Progress,
) -> Any:  # noqa: ANN401
    """A package of one function at `place`; its `Model_pb2.Model`."""
    program = _program(checkpoint, lowering, tokens, progress)
    dimension = tokens or ct.RangeDim(1, lowering.max_prefill, default=1, symbol="tokens")
    # coremltools draws a progress bar of its own on every conversion.
    with contextlib.redirect_stderr(io.StringIO()):
        model = ct.convert(
            program,
            inputs=[
                ct.TensorType(name="inputIds", shape=(1, dimension), dtype=np.int32),
                ct.TensorType(name="position", shape=(1,), dtype=np.int32),
            ],
            convert_to="mlprogram",
            minimum_deployment_target=TARGET,
            pass_pipeline=PASSES,
            # The program says itself what is fp16; this keeps it as it is.
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
            package_dir=str(place),
        )
    spec = model.get_spec()
    _require_names(spec, checkpoint.config)
    progress.advance()
    return spec


def _program(
    checkpoint: QuantizedCheckpoint, lowering: Lowering, tokens: int | None, progress: Progress
) -> Program:
    config = checkpoint.config
    graph, network = Graph(config, checkpoint.weights), network_of(config)
    length = tokens or get_new_symbol()
    # Operators without a name of ours are numbered; other programs of this process must not count.
    mb.name_count.clear()

    @mb.program(  # type: ignore[untyped-decorator]
        input_specs=[
            mb.TensorSpec((1, length), dtype=types.int32),
            mb.TensorSpec((1,), dtype=types.int32),
            # One each: a spec belongs to the input that it makes.
            _state(config, lowering),
            _state(config, lowering),
        ],
        opset_version=TARGET,
    )
    def program(inputIds: Var, position: Var, keyCache: Var, valueCache: Var) -> Var:
        tables = rope_tables(config, 0, lowering.max_context)
        call = graph.begin_call(inputIds, position, tables)
        caches = Cache.read(keyCache), Cache.read(valueCache)
        emit = _Lowering(graph, network, call, caches, progress).emit
        inputs: dict[str, Any] = {TOKENS: inputIds, COS: call.cos, SIN: call.sin}
        logits = network.walk(inputs, emit)
        assert isinstance(logits, Var)
        return logits

    return program


def _state(config: ModelConfig, lowering: Lowering) -> Any:  # noqa: ANN401
    heads, length = config.num_key_value_heads, lowering.max_context
    shape = (config.num_hidden_layers, 1, heads, length, config.head_dim)
    return mb.StateTensorSpec(shape, dtype=types.fp16)


@dataclass(frozen=True, slots=True)
class _Unturned:
    """Heads (1, heads, T, H) that RoPE is still to rotate: keys are, before queries."""

    heads: Var


class _Lowering:
    """One emitter for each building block; values are fp16, the residual stream is fp32."""

    def __init__(
        self,
        graph: Graph,
        network: Network,
        call: Call,
        caches: tuple[Cache, Cache],
        progress: Progress,
    ) -> None:
        self._graph = graph
        self._network = network
        self._call = call
        self._caches = caches
        self._progress = progress
        self.emit = Emitters[Any](
            {
                Embedding: self._embedding,
                OutputRows: self._output_rows,
                RMSNorm: self._rms_norm,
                Linear: self._linear,
                Rotation: self._rotation,
                HeadNorm: self._head_norm,
                Rope: self._rope,
                Attention: self._attention,
                SwiGLU: self._swiglu,
                Hadamard: self._hadamard,
                Add: self._add,
            }
        )

    def _embedding(self, node: Node, tokens: Var) -> Var:
        x = self._graph.embedding(tokens, node.weight, hidden_value(0))
        self._progress.advance()
        return x

    def _rms_norm(self, node: Node, x: Var) -> Var:
        normed = self._graph.rms_norm(x, node.weight)
        if node.layer is not None:
            return _fp16(normed, f"{node.name}.output")
        # What rotates it is fp32 as well.
        return normed if self._graph.config.head_rotation else _fp16(normed, _HEAD_INPUT)

    def _linear(self, node: Node, x: Var) -> Var:
        if node.bias is not None:
            product = self._graph.linear(x, node.weight, f"{node.name}.product")
            return self._graph.add_bias(product, node.bias, node.name)
        if node.layer is not None:
            return self._graph.linear(x, node.weight, node.name)
        table = EMBEDDING if self._graph.config.tie_word_embeddings else node.weight
        output = "logits" if self._graph.config.output_rows is None else f"{node.name}.output"
        return self._graph.linear(x, table, output)

    def _output_rows(self, node: Node, x: Var) -> Var:
        assert isinstance(node.block, OutputRows)
        return self._graph.output_rows(x, node.block, "logits")

    def _rotation(self, node: Node, x: Var) -> Var:
        width = self._graph.config.hidden_size
        bias = self._graph.constant(f"zeros_fp32_{width}", np.zeros(width, np.float32))
        turned = mb.linear(x=x, weight=self._graph.vector(node.weight), bias=bias)
        return _fp16(turned, _HEAD_INPUT)

    def _head_norm(self, node: Node, x: Var) -> Var:
        return self._graph.head_norm(x, node.weight, f"{node.name}.output")

    def _rope(self, node: Node, x: Var, *_: Var) -> _Unturned:
        assert isinstance(node.block, Rope)
        return _Unturned(self._graph.heads(x, node.block.heads))

    def _attention(self, node: Node, queries: _Unturned, keys: _Unturned, values: Var) -> Var:
        assert isinstance(node.block, Attention)
        assert node.layer is not None
        graph, call, (key_cache, value_cache) = self._graph, self._call, self._caches
        rows = graph.heads(_as_fp16(values), node.block.key_value_heads)
        known_keys = key_cache.write(node.layer, graph.rope(keys.heads, call), call)
        known_values = value_cache.write(node.layer, rows, call)
        return graph.attention(
            graph.rope(queries.heads, call),
            known_keys,
            known_values,
            call,
            attention_value(node.layer),
        )

    def _swiglu(self, node: Node, gate: Var, up: Var) -> Var:
        wide = any(isinstance(user.block, Hadamard) for user in self._network.users(node.name))
        return self._graph.swiglu(gate, up, f"model.layers.{node.layer}.mlp.product", wide=wide)

    def _hadamard(self, node: Node, x: Var) -> Var:
        assert isinstance(node.block, Hadamard)
        output = f"model.layers.{node.layer}.mlp.product.rotated"
        return self._graph.rotate_product(x, node.block.orders, output)

    def _add(self, node: Node, x: Var, branch: Var) -> Var:
        assert node.layer is not None
        if not self._network.leaves_layer(node):
            return self._graph.add(x, branch, f"model.layers.{node.layer}.middle")
        self._progress.advance()
        return self._graph.add(x, branch, hidden_value(node.layer + 1))


def _as_fp16(x: Var) -> Var:
    """Values that a bias was added to are fp32."""
    return x if x.dtype == types.fp16 else mb.cast(x=x, dtype="fp16")


def _fp16(x: Var, output: str) -> Var:
    return mb.cast(x=x, dtype="fp16", name=output)


def _require_names(spec: Any, config: ModelConfig) -> None:  # noqa: ANN401
    function = spec.mlProgram.functions[MAIN]
    block = function.block_specializations[function.opset]
    found = {output.name for operation in block.operations for output in operation.outputs}
    layers = range(config.num_hidden_layers)
    wanted = [hidden_value(layer) for layer in range(config.num_hidden_layers + 1)]
    wanted += [attention_value(layer) for layer in layers]
    missing = [name for name in wanted if mil_name(name) not in found]
    if missing:
        raise ExportError(
            f"{PACKAGE}: the value {missing[0]} is not in the written program under its name; "
            "another version of coremltools than the tested one may have renamed it"
        )
