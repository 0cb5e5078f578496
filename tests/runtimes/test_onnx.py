import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.onnx.exporter import OnnxExporter
from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import SessionError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import BlockTrace, FloatArray
from llama_edge.gate.metrics import compare
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.runtimes.onnx import OnnxRuntime
from llama_edge.text.tokenizer import Tokenizer
from tests.conftest import MemoryWeights, lower_onnx

#: Longer than the 64 positions after which the debug model's rope scaling bites.
TOKENS = [(7 * position * position + 3 * position) % 256 for position in range(140)]
PREFILL = 70
TEXT = (
    "The lighthouse keeper wrote down the wind and the height of the sea every hour, because the "
    "ships that passed the cape in winter had no other way to know what waited for them. Das Meer "
    "war ruhig, und trotzdem zählte er die Wellen. En 1887, il nota 14 tempêtes et 3 naufrages; "
    "nobody believed the number until the parish books were found."
)


def run(artifact: Artifact, tokens: Sequence[int], prefill: int) -> FloatArray:
    """Logits after every token: one prefill, then token by token."""
    with OnnxRuntime().open(artifact) as session:
        rows = [session.prefill_logits(tokens[:prefill])]
        rows += [session.decode(token)[None] for token in tokens[prefill:]]
    return np.concatenate(rows)


def reference(checkpoint: QuantizedCheckpoint, activation: ActivationQuantization) -> Reference:
    source = CachedSource(DequantizedSource(checkpoint.weights))
    return Reference(checkpoint.config, source, activation)


def expect(checkpoint: QuantizedCheckpoint, tokens: Sequence[int]) -> FloatArray:
    """The reference's logits after every token, in one pass: it needs no cache to be right."""
    model = reference(checkpoint, ActivationQuantization.NONE)
    logits: FloatArray = model.logits(torch.tensor(tokens)).numpy()
    return logits


def mean_kl(expected: FloatArray, found: FloatArray) -> float:
    return float(compare(expected, found, [0] * len(expected)).kl.mean())


def relative_errors(found: FloatArray, expected: torch.Tensor) -> FloatArray:
    """L2 norm of the difference over that of the expected value, per token."""
    difference = np.linalg.norm(found - expected.numpy(), axis=-1)
    errors: FloatArray = difference / np.linalg.norm(expected.numpy(), axis=-1)
    return errors


@torch.no_grad()
def block_errors(model: Reference, trace: BlockTrace) -> tuple[FloatArray, FloatArray]:
    """Each half block, fed what the artifact fed it: relative errors of all layers and tokens."""
    cache = KVCache()
    attention, output = [], []
    for layer in range(model.config.num_hidden_layers):
        x = torch.from_numpy(trace.hidden[layer])
        attention.append(
            relative_errors(trace.attention[layer], model.attention_block(layer, x, cache))
        )
        attended = torch.from_numpy(trace.attention[layer])
        output.append(relative_errors(trace.hidden[layer + 1], model.mlp_block(layer, x, attended)))
    return np.concatenate(attention), np.concatenate(output)


@pytest.fixture(scope="module")
def expected(debug_quantized: QuantizedCheckpoint) -> FloatArray:
    return expect(debug_quantized, TOKENS)


@pytest.fixture
def copied(debug_onnx: Mapping[int, Artifact], tmp_path: Path) -> Artifact:
    """The weight-only artifact, to be damaged."""
    shutil.copytree(debug_onnx[0].root, tmp_path / "copied")
    return replace(debug_onnx[0], root=tmp_path / "copied")


def test_prefill_and_decode_equal_the_reference(
    debug_onnx: Mapping[int, Artifact], expected: FloatArray
) -> None:
    found = run(debug_onnx[0], TOKENS, PREFILL)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert mean_kl(expected, found) < 1e-9


def test_an_untied_head_is_the_one_that_answers(
    debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = replace(debug_checkpoint.config, tie_word_embeddings=False)
    checkpoint = replace(debug_checkpoint, config=config, weights=MemoryWeights(config, seed=1))
    folder = tmp_path_factory.mktemp("untied")
    quantized = quantize_checkpoint(checkpoint, W4A8_RTN, folder, SilentProgress())
    weight_only = lower_onnx(quantized, tmp_path_factory, 0, 256)
    expected = expect(quantized, TOKENS)
    np.testing.assert_allclose(run(weight_only, TOKENS, PREFILL), expected, atol=1e-4)
    int8 = OnnxRuntime().trace(lower_onnx(quantized, tmp_path_factory, 4, 256), [TOKENS])
    model = reference(quantized, ActivationQuantization.INT8_PER_BLOCK)
    with torch.no_grad():
        logits = model.head(torch.from_numpy(int8.hidden[-1][-1:]))
    assert relative_errors(int8.logits, logits).max() < 1e-5


def test_the_sessions_other_ways_agree(debug_onnx: Mapping[int, Artifact]) -> None:
    with OnnxRuntime().open(debug_onnx[0]) as session:
        assert session.max_context == 256
        whole = session.prefill_logits(TOKENS)
        session.reset()
        np.testing.assert_array_equal(session.prefill(TOKENS), whole[-1])
        session.reset()
        session.prefill(TOKENS[:90])
        np.testing.assert_allclose(session.prefill(TOKENS[90:]), whole[-1], atol=1e-5)


def test_the_whole_context_can_be_used(debug_onnx: Mapping[int, Artifact]) -> None:
    with OnnxRuntime().open(debug_onnx[4]) as session:
        session.prefill([5] * 255)
        session.decode(5)
        with pytest.raises(SessionError, match="exceed the context of 256"):
            session.decode(5)


@pytest.mark.parametrize(
    ("tokens", "message"), [([], "no token"), ([3, 256], "outside the vocab"), ([-1], "outside")]
)
def test_bad_tokens(debug_onnx: Mapping[int, Artifact], tokens: list[int], message: str) -> None:
    with OnnxRuntime().open(debug_onnx[4]) as session, pytest.raises(SessionError, match=message):
        session.prefill(tokens)


def test_a_closed_session(debug_onnx: Mapping[int, Artifact]) -> None:
    session = OnnxRuntime().open(debug_onnx[4])
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.prefill([1])


@pytest.mark.parametrize("level", [0, 4])
def test_blocks_equal_the_reference(
    debug_onnx: Mapping[int, Artifact], debug_quantized: QuantizedCheckpoint, level: int
) -> None:
    artifact = debug_onnx[level]
    calls = [TOKENS[:PREFILL], *([token] for token in TOKENS[PREFILL:])]
    trace = OnnxRuntime().trace(artifact, calls)
    assert trace.tokens == tuple(TOKENS)
    assert trace.calls == tuple(len(call) for call in calls)
    attention, output = block_errors(reference(debug_quantized, artifact.activation), trace)
    # int8: an inner value that lies on a rounding boundary may take the code next to it.
    for errors in (attention, output):
        assert np.quantile(errors, 0.95) < 2e-6
        assert errors.max() < (2e-6 if level == 0 else 2e-2)
    whole = run(artifact, TOKENS, PREFILL)[PREFILL - 1 :]
    np.testing.assert_allclose(trace.logits, whole, atol=1e-5)


def test_int8_activations_are_seen_block_by_block(
    debug_onnx: Mapping[int, Artifact], debug_quantized: QuantizedCheckpoint
) -> None:
    trace = OnnxRuntime().trace(debug_onnx[4], [TOKENS])
    wrong = reference(debug_quantized, ActivationQuantization.INT8_PER_TOKEN)
    for errors in block_errors(wrong, trace):
        assert np.median(errors) > 1e-3


def test_a_wrong_rope_theta_is_seen(
    debug_quantized: QuantizedCheckpoint, expected: FloatArray, tmp_path: Path
) -> None:
    wrong = replace(debug_quantized.config, rope_theta=10500.0)
    options = LowerOptions(max_context=256, accuracy_level=0)
    artifact = OnnxExporter().lower(
        replace(debug_quantized, config=wrong), tmp_path, options, SilentProgress()
    )
    assert mean_kl(expected, run(artifact, TOKENS, PREFILL)) > 1e-6


def test_swapped_nibbles_are_seen(copied: Artifact, expected: FloatArray) -> None:
    graph = onnx.load_model(copied.path, load_external_data=False).graph
    name = "model.layers.1.mlp.down_proj.weight.codes"
    proto = next(proto for proto in graph.initializer if proto.name == name)
    place = {entry.key: entry.value for entry in proto.external_data}
    data = np.memmap(copied.root / "model.onnx.data", np.uint8, "r+")
    start = int(place["offset"])
    row = data[start : start + 80]
    row[:] = (row << 4) | (row >> 4)
    data.flush()
    assert mean_kl(expected, run(copied, TOKENS, PREFILL)) > 1e-6


def test_a_cache_written_one_place_off_is_seen_in_decode_only(
    copied: Artifact, expected: FloatArray
) -> None:
    model = onnx.load_model(copied.path, load_external_data=False)
    last = next(node for node in model.graph.node if node.name == "attention_mask.last")
    last.input[1] = "off"
    make = onnx.helper.make_node
    faults = [
        make("Shape", ["input_ids"], ["tokens"], start=1),
        make("Less", ["tokens", "attention_mask.sum"], ["decoding"]),
        make("Cast", ["decoding"], ["extra"], to=onnx.TensorProto.INT64),
        make("Add", ["extra", "attention_mask.one"], ["off"]),
    ]
    nodes = [*model.graph.node]
    at = nodes.index(last)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *faults, *nodes[at:]])
    copied.path.write_bytes(model.SerializeToString())
    found = run(copied, TOKENS, PREFILL)
    assert mean_kl(expected[:PREFILL], found[:PREFILL]) < 1e-9
    assert mean_kl(expected[PREFILL:], found[PREFILL:]) > 1e-3


def test_files_that_onnx_runtime_refuses(copied: Artifact) -> None:
    data = copied.root / "model.onnx.data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(SessionError, match="ONNX Runtime refuses"):
        OnnxRuntime().open(copied)
    with pytest.raises(SessionError, match="ONNX Runtime refuses"):
        OnnxRuntime().trace(copied, [[1]])
    data.unlink()
    with pytest.raises(SessionError, match="ONNX Runtime refuses"):
        OnnxRuntime().open(copied)
    copied.path.write_bytes(b"\xff\xfe not a model")
    with pytest.raises(SessionError, match="ONNX Runtime refuses"):
        OnnxRuntime().open(copied)
    with pytest.raises(SessionError, match="cannot be read"):
        OnnxRuntime().trace(copied, [[1]])
    copied.path.unlink()
    with pytest.raises(SessionError, match="ONNX Runtime refuses"):
        OnnxRuntime().open(copied)


def test_a_graph_of_another_model(copied: Artifact) -> None:
    more = replace(copied, config=replace(copied.config, num_hidden_layers=3))
    with pytest.raises(SessionError, match="ONNX Runtime refuses"):
        OnnxRuntime().open(more)
    with pytest.raises(SessionError, match=r"no value model\.layers\.3\.hidden"):
        OnnxRuntime().trace(more, [[1]])


def genai_greedy(folder: Path, tokens: Sequence[int], count: int) -> list[int]:
    """What stock ONNX Runtime GenAI generates from the folder as it is."""
    genai = pytest.importorskip("onnxruntime_genai", reason="no wheel for this platform")
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(list(tokens))
    found: list[int] = []
    while len(found) < count and not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def greedy(artifact: Artifact, tokens: Sequence[int], count: int) -> list[int]:
    found: list[int] = []
    with OnnxRuntime().open(artifact) as session:
        logits = session.prefill(tokens)
        while len(found) < count:
            found.append(int(logits.argmax()))
            logits = session.decode(found[-1])
    return found


@pytest.fixture(scope="module")
def smollm2_tokens(smollm2_quantized: QuantizedCheckpoint) -> list[int]:
    return Tokenizer(smollm2_quantized.text).encode(TEXT)


def test_stock_genai_generates_the_same_tokens(
    smollm2_onnx: Mapping[int, Artifact], smollm2_tokens: list[int]
) -> None:
    ours = greedy(smollm2_onnx[4], smollm2_tokens, 40)
    theirs = genai_greedy(smollm2_onnx[4].root, smollm2_tokens, 40)
    assert len(theirs) > 8
    assert ours[: len(theirs)] == theirs


def test_stock_genai_encodes_as_we_do(
    smollm2_onnx: Mapping[int, Artifact], smollm2_tokens: list[int]
) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="no wheel for this platform")
    tokenizer = genai.Tokenizer(genai.Model(str(smollm2_onnx[4].root)))
    assert list(tokenizer.encode(TEXT)) == smollm2_tokens


def test_smollm2_weight_only_equals_the_reference(
    smollm2_onnx: Mapping[int, Artifact],
    smollm2_quantized: QuantizedCheckpoint,
    smollm2_tokens: list[int],
) -> None:
    tokens = (smollm2_tokens * 2)[:136]
    expected = expect(smollm2_quantized, tokens)
    comparison = compare(expected, run(smollm2_onnx[0], tokens, 72), tokens)
    assert comparison.kl.mean() < 1e-9
    assert comparison.same_top1.all()


def test_smollm2_blocks_with_int8_activations_equal_the_reference(
    smollm2_onnx: Mapping[int, Artifact],
    smollm2_quantized: QuantizedCheckpoint,
    smollm2_tokens: list[int],
) -> None:
    artifact = smollm2_onnx[4]
    trace = OnnxRuntime().trace(artifact, [smollm2_tokens[:64], *([t] for t in [30, 198, 260, 7])])
    model = reference(smollm2_quantized, artifact.activation)
    for errors in block_errors(model, trace):
        assert np.median(errors) < 5e-6
        assert np.quantile(errors, 0.95) < 1e-4
        assert errors.max() < 2e-2
    with torch.no_grad():
        ends = np.cumsum(trace.calls) - 1
        logits = model.head(torch.from_numpy(trace.hidden[-1][ends]))
    assert relative_errors(trace.logits, logits).max() < 1e-5
