"""QuantizedCheckpoint -> `model.mlpackage`: the program, and the bytes of the package.

One function, `main`, or two whose sizes are all fixed, `decode` and `prefill`: `inputIds` int32
(1, T), `position` int32 (1,), the states `keyCache` and `valueCache` fp16 (L, 1, K, S, H), and
`logits` fp16 (1, T, V). Names and states are those that swift-transformers looks for; it would pass
a `causalMask` and let its width say the position, which no fixed-size cache can be filled by, so
the position is an input of its own and the mask is made in the graph. Values that the gate looks at
have the names of `core.value_names`, with `_` for `.`, since MIL's identifiers have no points.
"""

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from llama_edge.core.errors import ExportError
from llama_edge.core.model import rope_tables
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.types import PrefillLengths, QuantizedCheckpoint
from llama_edge.core.value_names import attention_value, hidden_value
from llama_edge.core.weight_names import (
    EMBEDDING,
    FINAL_NORM,
    HEAD_ROTATION,
    LM_HEAD,
    block_weight,
)
from llama_edge.export.coreml.metadata import Lowering, PackageMetadata
from llama_edge.export.coreml.package import (
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

# On import it warns of Apple's frameworks, absent outside macOS, and of packages not used here.
logging.getLogger("coremltools").setLevel(logging.ERROR)
import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import Program, Var, get_new_symbol, types  # noqa: E402

from llama_edge.export.coreml.graph import Cache, Call, Network  # noqa: E402

TARGET: Final = ct.target.iOS18
#: Nothing optimizes. A program that reads a state once per layer is right as built; after the
#: default passes of coremltools 9.0 its prefill still is, but decoding is 5.2 off (a small random
#: model's logits).
PASSES: Final = ct.PassPipeline.EMPTY


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
    network = Network(config, checkpoint.weights)
    length = tokens or get_new_symbol()

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
        call = network.begin_call(inputIds, position, tables)
        caches = Cache.read(keyCache), Cache.read(valueCache)
        x = network.embedding(inputIds, EMBEDDING, hidden_value(0))
        progress.advance()
        for layer in range(config.num_hidden_layers):
            x = _block(network, layer, x, call, caches)
            progress.advance()
        return _head(network, x)

    return program


def _state(config: ModelConfig, lowering: Lowering) -> Any:  # noqa: ANN401
    heads, length = config.num_key_value_heads, lowering.max_context
    shape = (config.num_hidden_layers, 1, heads, length, config.head_dim)
    return mb.StateTensorSpec(shape, dtype=types.fp16)


def _block(network: Network, layer: int, x: Var, call: Call, caches: tuple[Cache, Cache]) -> Var:
    """One block: the residual stream fp32 (1, T, D) to the same."""
    config = network.config

    def linear(source: Var, part: str) -> Var:
        return network.linear(source, block_weight(layer, part), f"model.layers.{layer}.{part}")

    normed = _fp16(network.rms_norm(x, block_weight(layer, "input_layernorm")))
    queries = network.heads(linear(normed, "self_attn.q_proj"), config.num_attention_heads)
    keys = network.heads(linear(normed, "self_attn.k_proj"), config.num_key_value_heads)
    values = network.heads(linear(normed, "self_attn.v_proj"), config.num_key_value_heads)
    key_cache, value_cache = caches
    keys = key_cache.write(layer, network.rope(keys, call), call)
    values = value_cache.write(layer, values, call)
    attended = network.attention(
        network.rope(queries, call), keys, values, call, attention_value(layer)
    )
    x = network.add(x, linear(attended, "self_attn.o_proj"))
    normed = _fp16(network.rms_norm(x, block_weight(layer, "post_attention_layernorm")))
    product = network.product(linear(normed, "mlp.gate_proj"), linear(normed, "mlp.up_proj"))
    return network.add(x, linear(product, "mlp.down_proj"), hidden_value(layer + 1))


def _head(network: Network, x: Var) -> Var:
    normed = network.rms_norm(x, FINAL_NORM)
    if network.config.head_rotation:
        width = network.config.hidden_size
        bias = network.constant(f"zeros_fp32_{width}", np.zeros(width, np.float32))
        normed = mb.linear(x=normed, weight=network.vector(HEAD_ROTATION), bias=bias)
    table = EMBEDDING if network.config.tie_word_embeddings else LM_HEAD
    return network.linear(_fp16(normed), table, "logits")


def _fp16(x: Var) -> Var:
    return mb.cast(x=x, dtype="fp16")


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
