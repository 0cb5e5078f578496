"""The int8 KV cache as written: what the file computes, what it takes, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.exir import schema

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch.exporter import ExecuTorchExporter
from llama_edge.backends.onnx.exporter import OnnxExporter
from llama_edge.core.artifact import ActivationQuantization, Artifact, KVCacheDtype
from llama_edge.core.cache_rows import quantize_rows
from llama_edge.core.errors import ConfigError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.pte import PteFile
from llama_edge.gate.blocks import check_blocks
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, DequantizedSource
from llama_edge.runtimes.executorch import ExecuTorchRuntime
from tests.export.executorch.conftest import debug_pte

__all__ = ["debug_pte"]

PROMPT = [3, 17, 41, 99, 200, 7, 7, 63, 128, 5]


def lower_int8(checkpoint: QuantizedCheckpoint, folder: Path, max_context: int = 256) -> Artifact:
    folder.mkdir(exist_ok=True)
    options = LowerOptions(max_context=max_context, kv_cache=KVCacheDtype.INT8)
    return ExecuTorchExporter().lower(checkpoint, folder, options, SilentProgress())


@pytest.fixture(scope="module")
def int8_pte(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return lower_int8(debug_quantized, tmp_path_factory.mktemp("int8-pte"))


@pytest.fixture(scope="module")
def reference(debug_quantized: QuantizedCheckpoint) -> Reference:
    return Reference(
        debug_quantized.config,
        CachedSource(DequantizedSource(debug_quantized.weights)),
        ActivationQuantization.INT8_PER_TOKEN,
        KVCacheDtype.INT8,
    )


def test_prefill_and_decode_equal_the_reference(int8_pte: Artifact, reference: Reference) -> None:
    cache = KVCache()
    with ExecuTorchRuntime().open(int8_pte) as session:
        for call in (PROMPT, [1], [250], [33, 34, 35], [33]):
            expected = reference.logits(torch.tensor(call), cache)[-1]
            np.testing.assert_allclose(session.prefill(call), expected.numpy(), atol=1e-5)


def test_a_float_cache_gives_something_else(int8_pte: Artifact, debug_pte: Artifact) -> None:
    """The codes are real: the two files differ by far more than float rounding."""
    with ExecuTorchRuntime().open(int8_pte) as one, ExecuTorchRuntime().open(debug_pte) as other:
        assert 1e-3 < np.abs(one.prefill(PROMPT) - other.prefill(PROMPT)).max() < 1


def test_a_prompt_over_several_calls(
    debug_quantized: QuantizedCheckpoint,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llama_edge.backends.executorch.lower.MAX_PREFILL", 4)
    artifact = lower_int8(debug_quantized, tmp_path)
    with ExecuTorchRuntime().open(artifact) as session:
        cache = KVCache()
        for call in (PROMPT, [1], PROMPT[:5], [2]):
            expected = reference.logits(torch.tensor(call), cache)[-1]
            np.testing.assert_allclose(session.prefill(call), expected.numpy(), atol=1e-5)


def test_across_the_operators_own_blocks(
    debug_quantized: QuantizedCheckpoint, reference: Reference, tmp_path: Path
) -> None:
    """Attention takes 512 keys at a time, and a call 512 tokens."""
    config = replace(debug_quantized.config, max_position_embeddings=2048)
    artifact = lower_int8(replace(debug_quantized, config=config), tmp_path, max_context=1100)
    assert artifact.max_prefill == 512
    tokens = torch.randint(0, 256, (1100,), generator=torch.Generator().manual_seed(2))
    calls = [part.tolist() for part in torch.split(tokens, [510, 1, 1, 1, 516, 70, 1])]
    trace = ExecuTorchRuntime().trace(artifact, calls)
    report = check_blocks(reference, [trace], Tolerances(), SilentProgress())
    assert report.passed
    assert max(block.prefill.p99 for block in report.blocks) < 1e-5


def test_reset_forgets(int8_pte: Artifact) -> None:
    with ExecuTorchRuntime().open(int8_pte) as session:
        first = session.prefill(PROMPT)
        session.prefill([9] * 50)
        session.reset()
        np.testing.assert_array_equal(session.prefill(PROMPT), first)


def test_the_trace_shows_the_rows_that_the_cache_gets(
    int8_pte: Artifact, debug_pte: Artifact, reference: Reference
) -> None:
    calls = [PROMPT, [1], [250]]
    trace = ExecuTorchRuntime().trace(int8_pte, calls)
    assert [array.shape for array in trace.cache_rows] == [(12, 10, 18)] * 2
    x = torch.tensor(trace.hidden[1])
    parts = reference.queries_keys_values(1, reference.attention_input(1, x), 0)
    expected = quantize_rows(torch.cat(parts).transpose(0, 1))
    found = torch.tensor(trace.cache_rows[1])
    assert torch.equal(found[..., -1:], expected.zero_points)
    torch.testing.assert_close(found[..., -2:-1], expected.steps)
    assert (found[..., :-2] != expected.codes).float().mean() < 0.01
    with ExecuTorchRuntime().open(int8_pte) as session:
        logits = [session.prefill(call) for call in calls]
    np.testing.assert_array_equal(trace.logits, np.stack(logits))
    assert ExecuTorchRuntime().trace(debug_pte, calls).cache_rows == ()


def cached_bytes(artifact: Artifact) -> int:
    """What the program's own caches take: the second argument of each update."""
    plan = PteFile(artifact.path).method("forward")
    names = [operator.name for operator in plan.operators]
    widths = {schema.ScalarType.FLOAT: 4, schema.ScalarType.CHAR: 1}
    total = 0
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if isinstance(call, schema.KernelCall) and names[call.op_index] == "llama::update_cache":
            tensor = plan.values[call.args[1]].val
            assert isinstance(tensor, schema.Tensor)
            total += widths[tensor.scalar_type] * int(np.prod(tensor.sizes))
    return total


def test_the_file_says_what_it_does(int8_pte: Artifact, debug_pte: Artifact) -> None:
    exporter = ExecuTorchExporter()
    for artifact, dtype in (
        (int8_pte, KVCacheDtype.INT8),
        (debug_pte, KVCacheDtype.FLOAT32),
    ):
        assert exporter.open(artifact.path).artifact == artifact
        assert artifact.kv_cache is dtype
        assert f"{dtype.value} (2, 256, 1, 16)" in exporter.open(artifact.path).interface().cache
        assert cached_bytes(artifact) == 256 * dtype.bytes_per_token(artifact.config)
        placement = exporter.open(artifact.path).placement()
        assert placement.linears_delegated == placement.linears
    assert "zero point per token and head" in exporter.open(int8_pte.path).interface().cache


def test_heads_that_no_hadamard_matrix_turns(debug_quantized: QuantizedCheckpoint) -> None:
    config = replace(debug_quantized.config, head_dim=14)
    exporter, recipe = ExecuTorchExporter(), debug_quantized.recipe
    exporter.check_supported(config, recipe, LowerOptions())
    with pytest.raises(ConfigError, match=r"head_dim is 14.*--kv-cache float32"):
        exporter.check_supported(config, recipe, LowerOptions(kv_cache=KVCacheDtype.INT8))


def test_onnx_refuses(debug_quantized: QuantizedCheckpoint) -> None:
    options = LowerOptions(kv_cache=KVCacheDtype.INT8)
    with pytest.raises(UsageError, match="--kv-cache int8 belongs to another target"):
        OnnxExporter().check_supported(debug_quantized.config, debug_quantized.recipe, options)
