import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_edge.core.artifact import ActivationQuantization, Artifact
from llama_edge.core.errors import ArtifactError, MissingComponentError, SessionError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.pte import PteFile, encode_program
from llama_edge.formats.quantized_checkpoint import matrix_shape
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import DequantizedSource
from llama_edge.runtimes.executorch import ExecuTorchRuntime
from llama_edge.runtimes.executorch_native import load_operators
from llama_edge.runtimes.executorch_trace import write_traced_copy
from tests.export.executorch.conftest import debug_pte, lower

__all__ = ["debug_pte"]

PROMPT = [3, 17, 41, 99, 200, 7, 7, 63, 128, 5]


@pytest.fixture(scope="module")
def reference(debug_quantized: QuantizedCheckpoint) -> Reference:
    source = DequantizedSource(debug_quantized.weights)
    return Reference(debug_quantized.config, source, ActivationQuantization.INT8_PER_TOKEN)


def test_prefill_and_decode_equal_the_reference(debug_pte: Artifact, reference: Reference) -> None:
    cache = KVCache()
    expected = reference.logits(torch.tensor(PROMPT), cache)[-1].numpy()
    with ExecuTorchRuntime().open(debug_pte) as session:
        assert session.max_context == 256
        np.testing.assert_allclose(session.prefill(PROMPT), expected, atol=1e-5)
        for token in (1, 250, 33, 33):
            expected = reference.logits(torch.tensor([token]), cache)[-1].numpy()
            np.testing.assert_allclose(session.decode(token), expected, atol=1e-5)


def test_all_logits_of_a_prompt(debug_pte: Artifact, reference: Reference) -> None:
    expected = reference.logits(torch.tensor(PROMPT)).numpy()
    with ExecuTorchRuntime().open(debug_pte) as session:
        np.testing.assert_allclose(session.prefill_logits(PROMPT), expected, atol=1e-5)


def test_rows_of_another_order_are_another_network(
    debug_quantized: QuantizedCheckpoint,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def whole_matrices(config: ModelConfig, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        heights = [matrix_shape(config, name)[0] for name in names]
        rows = torch.split(torch.arange(sum(heights)), heights)
        return dict(zip(names, rows, strict=True))

    monkeypatch.setattr("llama_edge.backends.executorch.weights.stacked_rows", whole_matrices)
    expected = reference.logits(torch.tensor(PROMPT))[-1].numpy()
    with ExecuTorchRuntime().open(lower(debug_quantized, tmp_path)) as session:
        assert np.abs(session.prefill(PROMPT) - expected).max() > 0.001


def test_reset_forgets(debug_pte: Artifact) -> None:
    with ExecuTorchRuntime().open(debug_pte) as session:
        first = session.prefill(PROMPT)
        session.decode(9)
        session.reset()
        np.testing.assert_array_equal(session.prefill(PROMPT), first)


def test_a_prompt_longer_than_one_call(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_edge.backends.executorch.lower.MAX_PREFILL", 4)
    artifact = lower(debug_quantized, tmp_path)
    assert artifact.max_prefill == 4
    source = DequantizedSource(debug_quantized.weights)
    model = Reference(debug_quantized.config, source, artifact.activation)
    expected = model.logits(torch.tensor(PROMPT))[-1].numpy()
    with ExecuTorchRuntime().open(artifact) as session:
        np.testing.assert_allclose(session.prefill(PROMPT), expected, atol=1e-5)


def test_the_context_can_be_filled_to_the_last_place(debug_pte: Artifact) -> None:
    with ExecuTorchRuntime().open(debug_pte) as session:
        session.prefill([5] * 255)
        assert np.isfinite(session.decode(5)).all()
        with pytest.raises(SessionError, match="exceed the context of 256"):
            session.decode(5)


def test_bad_tokens_and_a_closed_session(debug_pte: Artifact) -> None:
    session = ExecuTorchRuntime().open(debug_pte)
    with pytest.raises(SessionError, match="outside the vocabulary"):
        session.prefill([256])
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.prefill([1])


def test_a_file_that_is_no_program(debug_pte: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(b"\0" * 4096)
    broken = Artifact(
        backend="executorch",
        root=tmp_path,
        files=("model.pte",),
        config=debug_pte.config,
        activation=debug_pte.activation,
        max_context=256,
        max_prefill=256,
    )
    with pytest.raises(SessionError, match="ExecuTorch refuses the file"):
        ExecuTorchRuntime().open(broken)


def test_the_trace_is_what_the_file_computes(debug_pte: Artifact, reference: Reference) -> None:
    calls = [PROMPT, [1], [250]]
    trace = ExecuTorchRuntime().trace(debug_pte, calls)
    with ExecuTorchRuntime().open(debug_pte) as session:
        logits = [session.prefill(PROMPT), session.decode(1), session.decode(250)]
    np.testing.assert_array_equal(trace.logits, np.stack(logits))
    assert trace.tokens == (*PROMPT, 1, 250)
    assert [array.shape for array in trace.hidden] == [(12, 96)] * 3
    with torch.no_grad():
        cache = KVCache()
        x = reference.embed(torch.tensor(trace.tokens))
        for layer in range(2):
            np.testing.assert_allclose(trace.hidden[layer], x.numpy(), atol=1e-5)
            attended = reference.attention_block(layer, x, cache)
            np.testing.assert_allclose(trace.attention[layer], attended.numpy(), atol=1e-5)
            x = reference.mlp_block(layer, x, attended)
        np.testing.assert_allclose(trace.hidden[2], x.numpy(), atol=1e-5)


def test_a_program_without_our_instructions_is_not_traced(
    debug_pte: Artifact, tmp_path: Path
) -> None:
    pte = PteFile(debug_pte.path)
    pte.method("forward").chains[0].instructions.pop()
    pte.method("forward").chains[0].instructions.pop()
    pte.method("forward").chains[0].instructions.pop()
    (tmp_path / "cut.pte").write_bytes(encode_program(pte.program)[0] + bytes(pte.segment_data()))
    with pytest.raises(ArtifactError, match="2 residual values"):
        write_traced_copy(tmp_path / "cut.pte", tmp_path / "traced.pte", 2)


#: What a child does with a pickled artifact; then what it does for a trace.
RUN = """
import importlib, pickle, sys
from pathlib import Path
from llama_edge.runtimes import child_main
from llama_edge.runtimes.speed import make_timed_runtime

def show():
    heavy = ("executorch.exir", "sympy", "torch._dynamo", "torch._inductor", "torchao")
    print([name for name in heavy if name in sys.modules])

artifact = pickle.loads(Path(sys.argv[1]).read_bytes())
make_timed_runtime("executorch:1").open(artifact).prefill([1, 2])
show()
importlib.import_module("llama_edge.runtimes.executorch_trace")
show()
"""


def test_running_a_program_does_not_import_what_exports_one(
    debug_pte: Artifact, tmp_path: Path
) -> None:
    """Each child process would pay seconds for it; a trace writes a program, and has to."""
    (tmp_path / "artifact").write_bytes(pickle.dumps(debug_pte))
    command = [sys.executable, "-c", RUN, str(tmp_path / "artifact")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    running, tracing = done.stdout.splitlines()
    assert running == "[]"
    assert "executorch.exir" in tracing


def test_a_damaged_program_is_refused_before_it_runs(debug_pte: Artifact, tmp_path: Path) -> None:
    """Only the flatbuffer's verifier looks at every offset; the header alone is still right."""
    data = bytearray(debug_pte.path.read_bytes())
    place = data.index(b"forward") - 4
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "model.pte").write_bytes(data)
    damaged = replace(debug_pte, root=tmp_path, files=("model.pte",))
    with pytest.raises(SessionError, match="ExecuTorch refuses the file"):
        ExecuTorchRuntime().open(damaged)


@pytest.mark.parametrize("name", ["libcustom_ops", "libcustom_ops_aot_lib.s"])
def test_a_library_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(MissingComponentError, match=f"has 0 libraries named {name}"):
        load_operators("executorch.extension.llm.custom_ops", name)
