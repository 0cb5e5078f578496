import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coremltools.proto import Model_pb2

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import SessionError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.session import FloatArray
from llama_edge.gate.metrics import compare
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.runtimes import get_runtime
from llama_edge.runtimes.coreml.interpreter import Precision
from llama_edge.runtimes.coreml.session import CoreMLInterpreterRuntime

#: Longer than the 64 positions after which the debug model's rope scaling bites.
TOKENS = [(7 * position * position + 3 * position) % 256 for position in range(100)]
PREFILL = 70
CONTEXT = 128
EXACT = CoreMLInterpreterRuntime()


@pytest.fixture(scope="module")
def package(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The debug model, through the exporter."""
    options = LowerOptions(max_context=CONTEXT)
    folder = tmp_path_factory.mktemp("coreml")
    return CoreMLExporter().lower(debug_quantized, folder, options, SilentProgress())


@pytest.fixture
def copied(package: Artifact, tmp_path: Path) -> Artifact:
    """A copy, to be damaged."""
    shutil.copytree(package.root, tmp_path / "copied")
    return replace(package, root=tmp_path / "copied")


@pytest.fixture(scope="module")
def reference(debug_quantized: QuantizedCheckpoint) -> Reference:
    source = CachedSource(DequantizedSource(debug_quantized.weights))
    return Reference(debug_quantized.config, source, ActivationQuantization.NONE)


@pytest.fixture(scope="module")
def expected(reference: Reference) -> FloatArray:
    """Logits after every token, in one pass: it needs no cache to be right."""
    logits: FloatArray = reference.logits(torch.tensor(TOKENS)).numpy()
    return logits


def run(
    artifact: Artifact, tokens: Sequence[int], prefill: int, precision: Precision = Precision.EXACT
) -> FloatArray:
    """Logits after every token: one prefill, then token by token."""
    with CoreMLInterpreterRuntime(precision).open(artifact) as session:
        rows = [session.prefill_logits(tokens[:prefill])]
        rows += [session.decode(token)[None] for token in tokens[prefill:]]
    return np.concatenate(rows)


def mean_kl(expected: FloatArray, found: FloatArray) -> float:
    return float(compare(expected, found, [0] * len(expected)).kl.mean())


@pytest.mark.parametrize("prefill", [1, PREFILL, len(TOKENS)])
def test_prefill_and_decode_equal_the_reference(
    package: Artifact, expected: FloatArray, prefill: int
) -> None:
    found = run(package, TOKENS, prefill)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert mean_kl(expected, found) < 1e-9


def test_int4_tables_equal_the_reference(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = replace(W4A8_RTN, table_bits=4)
    (tmp_path / "codes").mkdir()
    (tmp_path / "package").mkdir()
    progress = SilentProgress()
    stored = quantize_checkpoint(debug_checkpoint, recipe, tmp_path / "codes", progress)
    options = LowerOptions(max_context=CONTEXT)
    artifact = CoreMLExporter().lower(stored, tmp_path / "package", options, progress)
    network = Reference(stored.config, CachedSource(DequantizedSource(stored.weights)))
    expected = network.logits(torch.tensor(TOKENS)).numpy()
    np.testing.assert_allclose(run(artifact, TOKENS, PREFILL), expected, atol=2e-5)


def test_rounding_as_declared_estimates_a_device(package: Artifact, expected: FloatArray) -> None:
    exact = run(package, TOKENS, PREFILL)
    half = run(package, TOKENS, PREFILL, Precision.HALF)
    assert mean_kl(expected, exact) < 1e-9 < mean_kl(expected, half) < 1e-4
    np.testing.assert_array_equal(half, half.astype(np.float16))


def test_blocks_equal_the_reference(package: Artifact, reference: Reference) -> None:
    """Each half block, fed what the artifact fed it."""
    calls = [TOKENS[:PREFILL], *([token] for token in TOKENS[PREFILL:])]
    trace = EXACT.trace(package, calls)
    assert trace.tokens == tuple(TOKENS)
    assert trace.calls == tuple(len(call) for call in calls)
    cache = KVCache()
    with torch.no_grad():
        for layer in range(package.config.num_hidden_layers):
            hidden, attention = trace.hidden[layer], trace.attention[layer]
            x = torch.from_numpy(hidden)
            wanted = reference.attention_block(layer, x, cache)
            np.testing.assert_allclose(attention, wanted.numpy(), atol=1e-5)
            wanted = reference.mlp_block(layer, x, torch.from_numpy(attention))
            np.testing.assert_allclose(trace.hidden[layer + 1], wanted.numpy(), atol=1e-5)
            assert np.abs(trace.hidden[layer + 1] - hidden).max() > 0.1
    whole = run(package, TOKENS, PREFILL)[PREFILL - 1 :]
    np.testing.assert_array_equal(trace.logits, whole)


def test_the_sessions_other_ways_agree(package: Artifact) -> None:
    # A call takes 40 tokens at most, so 100 of them take three.
    for artifact in (package, replace(package, max_prefill=40)):
        with EXACT.open(artifact) as session:
            assert session.max_context == CONTEXT
            whole = session.prefill_logits(TOKENS)
            assert whole.shape == (len(TOKENS), 256)
            session.reset()
            np.testing.assert_array_equal(session.prefill(TOKENS), whole[-1])
            session.reset()
            session.prefill(TOKENS[:90])
            np.testing.assert_allclose(session.prefill(TOKENS[90:]), whole[-1], atol=1e-5)


def test_the_whole_context_can_be_used(package: Artifact) -> None:
    with EXACT.open(package) as session:
        session.prefill([5] * (CONTEXT - 1))
        session.decode(5)
        with pytest.raises(SessionError, match="exceed the context of 128"):
            session.decode(5)


@pytest.mark.parametrize(
    ("tokens", "message"), [([], "no token"), ([3, 256], "outside the vocab"), ([-1], "outside")]
)
def test_bad_tokens(package: Artifact, tokens: list[int], message: str) -> None:
    with EXACT.open(package) as session, pytest.raises(SessionError, match=message):
        session.prefill(tokens)


def test_a_closed_session(package: Artifact) -> None:
    session = EXACT.open(package)
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.prefill([1])


def test_a_package_of_another_model(package: Artifact) -> None:
    deeper = replace(package, config=replace(package.config, num_hidden_layers=3))
    longer = replace(package, max_context=256)
    for artifact in (deeper, longer):
        with pytest.raises(SessionError, match=r"its states are .* this model needs"):
            EXACT.open(artifact)
        with pytest.raises(SessionError, match="its states are"):
            EXACT.trace(artifact, [[1]])


def edit(artifact: Artifact, old: str, new: str) -> None:
    """Give a value of the program another name, where it is made and where it is used."""
    path = artifact.root / artifact.files[1]
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    for declared in function.inputs:
        declared.name = declared.name.replace(old, new)
    for operation in block.operations:
        for made in operation.outputs:
            made.name = made.name.replace(old, new)
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = binding.name.replace(old, new)
    path.write_bytes(spec.SerializeToString())


def test_packages_with_other_names(copied: Artifact) -> None:
    edit(copied, "model_layers_1_self_attn_output", "something")
    with EXACT.open(copied) as session:
        session.prefill(TOKENS)
    with pytest.raises(SessionError, match="has no value 'model_layers_1_self_attn_output'"):
        EXACT.trace(copied, [[1]])
    edit(copied, "inputIds", "input_ids")
    with pytest.raises(SessionError, match=r"its inputs are .*'input_ids'.* needs .*'inputIds'"):
        EXACT.open(copied)


def test_packages_that_are_damaged(copied: Artifact) -> None:
    weights = copied.root / copied.files[2]
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(SessionError, match="after the file's end"):
        EXACT.open(copied)
    with pytest.raises(SessionError, match="after the file's end"):
        EXACT.trace(copied, [[1]])
    weights.unlink()
    with pytest.raises(SessionError, match=r"weight\.bin: the file is missing"):
        EXACT.open(copied)
    (copied.root / copied.files[1]).write_bytes(b"\xff\xfe not a model")
    with pytest.raises(SessionError, match="cannot be read as a Core ML model"):
        EXACT.open(copied)
    copied.path.unlink()
    with pytest.raises(SessionError, match=r"Manifest\.json: the file is missing"):
        EXACT.open(copied)


def test_the_report_says_that_it_is_not_apples() -> None:
    runtime = get_runtime("coreml")
    assert runtime.name == "coreml"
    assert "float32" in runtime.version()
    assert "not Apple's runtime" in runtime.version()
    assert "rounded" in CoreMLInterpreterRuntime(Precision.HALF).version()


def test_reading_and_running_a_package_does_not_import_coremltools(package: Artifact) -> None:
    """It takes seconds and 400 MB; each child process would pay for it."""
    code = (
        "import sys; from pathlib import Path; from llama_edge.backends import get_exporter; "
        "from llama_edge.runtimes import get_runtime; "
        f"artifact = get_exporter('coreml').open(Path({str(package.root)!r})).artifact; "
        "session = get_runtime('coreml').open(artifact); "
        "print(session.prefill([1, 2]).shape, 'coremltools' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(256,) False"
