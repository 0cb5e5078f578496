"""The int8 KV cache through the whole pipeline: right files pass, and every planted fault fails.

Each fault is in a really written file, and its weights read back right: only running it can tell.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from executorch.exir import schema

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch.blocks import BlockBuilder
from llama_edge.backends.executorch.xnnpack_graph import Value, XnnpackGraph
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle
from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.errors import ArtifactError, CheckFailedError, UsageError
from llama_edge.core.progress import Progress, SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.formats.pte import PteFile, encode_program
from llama_edge.gate.check_bundle import check_bundle
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.run import PromptRequest, Run
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.runtimes.executorch_trace import write_traced_copy
from tests.conftest import debug_request
from tests.gate.test_planted_faults import FaultyExporter, write_cache_one_place_off

UPDATE = "llama::update_cache"
ATTEND = "llama::custom_quantized_sdpa"
QUANTIZE = "quantized_decomposed::quantize_per_token"
NARROW = "dim_order_ops::_to_dim_order_copy"
#: a layer's cache updates in order: codes, zero points and steps of keys, then of values
KEY_ZEROS, KEY_STEPS, VALUE_STEPS = 1, 2, 5


def int8_request(model: Path, target: str, out: Path) -> ExportRequest:
    request = debug_request(model, target, out)
    return replace(request, options=LowerOptions(max_context=512, kv_cache=KVCacheDtype.INT8))


@pytest.fixture(scope="module")
def int8_bundle(debug_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("int8-bundle") / "android"
    return export_model(int8_request(debug_folder, "android", out), SilentProgress())


def test_the_bundle_passes_and_says_so(int8_bundle: Bundle, debug_folder: Path) -> None:
    artifact = int8_bundle.manifest.artifact
    assert artifact.kv_cache == "int8"
    assert "int8 (2, 512, 1, 16)" in artifact.interface.cache
    assert int8_bundle.manifest.parity["blocks"]["severity"] < 0.1
    assert examine(int8_bundle.root, None, SilentProgress()).findings == ()
    outcome = check_bundle(int8_bundle.root, str(debug_folder), SilentProgress())
    assert outcome.passed
    assert outcome.fidelity is not None
    answer = Run(
        int8_bundle.root, PromptRequest(prompt="the rain", config=AnswerConfig(max_new_tokens=12))
    )
    assert "".join(answer)


def test_onnx_refuses_before_any_work(debug_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--kv-cache int8 belongs to another target"):
        export_model(int8_request(debug_folder, "onnx", tmp_path / "out"), SilentProgress())
    assert list(tmp_path.iterdir()) == []


Export = Callable[[Callable[[Path], None]], str]


@pytest.fixture
def export(debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export a file that is damaged after it was written; the reason why it failed."""

    def run(damage: Callable[[Path], None]) -> str:
        exporter = FaultyExporter(get_exporter("executorch"), damage=damage)
        monkeypatch.setattr("llama_edge.pipeline.export.get_exporter", lambda _: exporter)
        with pytest.raises(CheckFailedError) as caught:
            export_model(int8_request(debug_folder, "android", tmp_path / "out"), SilentProgress())
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return run


class Program:
    """A written program whose instructions a test changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pte = PteFile(path)
        self.plan = self._pte.method("forward")

    def calls(self, operator: str, layer: int, of: int) -> list[schema.KernelCall]:
        """The calls of one operator in one layer, which has `of` of them."""
        names = [entry.name for entry in self.plan.operators]
        found = [
            entry.instr_args
            for entry in self.plan.chains[0].instructions
            if isinstance(entry.instr_args, schema.KernelCall)
            and names[entry.instr_args.op_index] == operator
        ]
        assert len(found) == 2 * of
        return found[layer * of : (layer + 1) * of]

    def remove(self, call: schema.KernelCall) -> None:
        chain = self.plan.chains[0]
        chain.instructions = [entry for entry in chain.instructions if entry.instr_args is not call]

    def integer(self, number: int) -> int:
        self.plan.values.append(schema.EValue(schema.Int(number)))
        return len(self.plan.values) - 1

    def save(self) -> None:
        front = encode_program(self._pte.program)[0]
        self._path.write_bytes(front + bytes(self._pte.segment_data()))


def values_steps_for_keys(program: Program) -> None:
    updates = program.calls(UPDATE, 1, 6)
    updates[KEY_STEPS].args[0] = updates[VALUE_STEPS].args[0]


def steps_of_another_layer(program: Program) -> None:
    """Attention reads the keys of its own layer with the steps of the layer before."""
    first, second = (program.calls(ATTEND, layer, 1)[0] for layer in (0, 1))
    assert len(first.args) == 17
    second.args[11] = first.args[11]


def zero_points_never_stored(program: Program) -> None:
    program.remove(program.calls(UPDATE, 1, 6)[KEY_ZEROS])


def keys_in_place_of_values(program: Program) -> None:
    updates = program.calls(UPDATE, 1, 6)
    for part in range(3):
        updates[3 + part].args[0] = updates[part].args[0]


def codes_of_seven_bits(program: Program) -> None:
    for call in program.calls(QUANTIZE, 1, 3)[1:]:
        call.args[3:5] = [program.integer(-64), program.integer(63)]


def steps_stored_too_early(program: Program) -> None:
    """The cache gets what the layer before left in the shared place."""
    stored = program.calls(UPDATE, 1, 6)[KEY_STEPS]
    narrowed = program.calls(NARROW, 1, 6)[2]
    program.remove(stored)
    instructions = program.plan.chains[0].instructions
    place = next(at for at, entry in enumerate(instructions) if entry.instr_args is narrowed)
    instructions.insert(place, schema.Instruction(stored))


@pytest.mark.parametrize(
    "fault",
    [
        values_steps_for_keys,
        steps_of_another_layer,
        zero_points_never_stored,
        keys_in_place_of_values,
        codes_of_seven_bits,
        steps_stored_too_early,
    ],
)
def test_a_fault_of_one_layers_cache_is_named(
    fault: Callable[[Program], None], export: Export
) -> None:
    def damage(path: Path) -> None:
        program = Program(path)
        fault(program)
        program.save()

    assert "blocks: layers.1.attention (prefill and decode)" in export(damage)


def test_a_cache_written_one_place_off_fails_in_decode_only(export: Export) -> None:
    assert "attention (decode)" in export(write_cache_one_place_off)


def test_rows_in_another_order_are_no_program_of_ours(int8_bundle: Bundle, tmp_path: Path) -> None:
    """A trace that took steps for zero points would prove nothing."""
    path = tmp_path / "model.pte"
    path.write_bytes((int8_bundle.root / "model.pte").read_bytes())
    program = Program(path)
    first, second = program.calls(QUANTIZE, 0, 3)[0], program.calls(NARROW, 0, 6)[0]
    instructions = program.plan.chains[0].instructions
    places = [
        next(at for at, entry in enumerate(instructions) if entry.instr_args is call)
        for call in (first, second)
    ]
    instructions[places[0]], instructions[places[1]] = (
        instructions[places[1]],
        instructions[places[0]],
    )
    program.save()
    with pytest.raises(ArtifactError, match="in another order"):
        write_traced_copy(path, tmp_path / "traced.pte", 2)


def test_r3_of_queries_only(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = BlockBuilder._rotate_heads

    def queries_only(self: BlockBuilder, graph: XnnpackGraph, heads: Value) -> Value:
        queries = self.config.queries_per_group
        turned = rotate(self, graph, graph.slice(heads, {2: (0, queries)}))
        key = graph.slice(heads, {2: (queries, 1)})
        return graph.concatenate([turned, key], axis=2)

    monkeypatch.setattr(BlockBuilder, "_rotate_heads", queries_only)
    assert "blocks: layers.0.attention (prefill and decode)" in export(lambda _: None)


def test_no_r3_at_all(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network but for the rounding, and still not what was promised."""
    monkeypatch.setattr(BlockBuilder, "_rotate_heads", lambda self, graph, heads: heads)
    assert "blocks: layers.0.attention (prefill and decode)" in export(lambda _: None)


def test_a_float_cache_where_int8_was_asked_for(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(FaultyExporter):
        def lower(
            self,
            checkpoint: QuantizedCheckpoint,
            out_dir: Path,
            options: LowerOptions,
            progress: Progress,
        ) -> Artifact:
            options = replace(options, kv_cache=KVCacheDtype.FLOAT32)
            return super().lower(checkpoint, out_dir, options, progress)

    exporter = Forgetful(get_exporter("executorch"))
    monkeypatch.setattr("llama_edge.pipeline.export.get_exporter", lambda _: exporter)
    with pytest.raises(CheckFailedError, match=r"config: kv_cache: .* says 'float32'"):
        export_model(int8_request(debug_folder, "android", tmp_path / "out"), SilentProgress())


def test_nothing_planted_passes(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter of these tests, and writing a program again, fail nothing by themselves."""
    exporter = FaultyExporter(get_exporter("executorch"), damage=lambda path: Program(path).save())
    monkeypatch.setattr("llama_edge.pipeline.export.get_exporter", lambda _: exporter)
    export_model(int8_request(debug_folder, "android", tmp_path / "out"), SilentProgress())


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    """Thirty layers with real outliers in their keys: no block needs its tolerance."""
    request = ExportRequest(
        model="smollm2-135m",
        target="android",
        recipe="w4a8-rtn",
        out=tmp_path / "out",
        options=LowerOptions(kv_cache=KVCacheDtype.INT8),
    )
    manifest = export_model(request, SilentProgress()).manifest
    assert manifest.artifact.kv_cache == "int8"
    assert manifest.parity["blocks"]["count"] == 62
    assert manifest.parity["blocks"]["severity"] < 0.1
