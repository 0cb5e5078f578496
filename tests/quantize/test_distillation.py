import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import MissingComponentError, QuantizeError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import Progress, SilentProgress, Steps
from llama_edge.core.progress import step_count as count_steps
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Device, Distillation, Recipe
from llama_edge.formats.quantized_checkpoint import (
    TABLES,
    Layout,
    QuantizedEntry,
    stored_names,
)
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource, FullPrecisionSource
from llama_edge.models.weights import float_shapes
from llama_edge.quantize import W4A8_DISTILLED, W4A8_GPTQ, W4A8_HADAMARD
from llama_edge.quantize.averaged_adam import AveragedAdam
from llama_edge.quantize.calibration import LENGTH, SEQUENCES, CalibrationSet
from llama_edge.quantize.distillation import (
    SAVE_EVERY,
    _Batches,
    _FullPrecision,
    _Loss,
    distill,
    step_count,
)
from llama_edge.quantize.resume import ON_CPU, LearningPlace, WorkPlace
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.quantize.straight_through import divergence
from llama_edge.quantize.trained_network import TrainedNetwork
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text
from tests.models.test_llama import transformers_config
from tests.quantize.no_float64 import NoFloat64
from tests.quantize.test_sequential import with_outliers

#: As small as there are still two layers, shared keys and whole groups.
CONFIG = dataclasses.replace(
    DEBUG_CONFIG,
    hidden_size=64,
    num_attention_heads=4,
    head_dim=16,
    intermediate_size=64,
    vocab_size=64,
)
SILENT = SilentProgress()
STEPS = 6


def tiny_checkpoint() -> Checkpoint:
    return Checkpoint(
        source="tiny", config=CONFIG, weights=MemoryWeights(CONFIG), text=debug_text()
    )


def ids(seed: int, sequences: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CONFIG.vocab_size, (sequences, 32), generator=generator)


CALIBRATION = CalibrationSet(tokens=ids(0, sequences=24), origin="random ids")


def recipe_of(base: Recipe = W4A8_HADAMARD, steps: int = STEPS, **knobs: float) -> Recipe:
    distillation = Distillation(
        steps=steps,
        sequences=4,
        max_epochs=99,
        texts=1,
        scale_rate=2e-3,
        norm_rate=2e-3,
        rotation_rate=1e-5,
        warm_up=4,
        averaging=0.9,
    )
    distillation = dataclasses.replace(distillation, **knobs)  # type: ignore[arg-type]
    return dataclasses.replace(base, name="distilled", distillation=distillation)


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A network as GPTQ left it."""

    checkpoint: Checkpoint
    layout: Layout
    entries: tuple[QuantizedEntry, ...]
    quantized: QuantizedCheckpoint


def rounded_by(recipe: Recipe, checkpoint: Checkpoint, folder: Path) -> Rounded:
    undistilled = dataclasses.replace(recipe, distillation=None)
    folder.mkdir()
    found = quantize_checkpoint(checkpoint, undistilled, folder, SILENT, CALIBRATION)
    floats = float_shapes(found.config)
    entries = tuple(
        QuantizedEntry(
            name, (found.weights.vector if name in floats else found.weights.quantized)(name)
        )
        for name in stored_names(found.config)
    )
    return Rounded(checkpoint, Layout(found.config, recipe), entries, found)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    folder = tmp_path_factory.mktemp("rounded") / "quantized"
    return rounded_by(recipe_of(), tiny_checkpoint(), folder)


def train(
    rounded: Rounded,
    recipe: Recipe | None = None,
    state: Path | None = None,
    progress: Progress = SILENT,
    entries: Iterable[QuantizedEntry] | None = None,
) -> dict[str, QuantizedTensor | Tensor]:
    layout = rounded.layout if recipe is None else Layout(rounded.layout.config, recipe)
    place = LearningPlace(state=state)
    given = rounded.entries if entries is None else entries
    made = distill(rounded.checkpoint, layout, given, CALIBRATION.tokens, place, progress)
    return {entry.name: entry.value for entry in made}


Values = dict[str, QuantizedTensor | Tensor]


def bits(values: Values) -> dict[str, bytes]:
    """To compare bit for bit."""
    return {
        name: (value.scales.view(torch.int16) if isinstance(value, QuantizedTensor) else value)
        .numpy()
        .tobytes()
        for name, value in values.items()
    }


class InMemory:
    """`QuantizedWeights` of what a training returned."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def quantized_names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def quantized(self, name: str) -> QuantizedTensor:
        value = self._values.get(name, self._values["model.embed_tokens.weight"])
        assert isinstance(value, QuantizedTensor)
        return value

    def vector(self, name: str) -> Tensor:
        value = self._values[name]
        assert isinstance(value, Tensor)
        return value


@torch.no_grad()
def kl(rounded: Rounded, values: Values) -> float:
    """Mean over tokens that training never saw, with int8 activations."""
    checkpoint = rounded.checkpoint
    full = Reference(checkpoint.config, FullPrecisionSource(checkpoint.config, checkpoint.weights))
    found = Reference(
        rounded.layout.config,
        DequantizedSource(InMemory(values)),
        ActivationQuantization.INT8_PER_TOKEN,
    )
    tokens = ids(1, sequences=16)
    total = sum(float(divergence(found.logits(row), full.logits(row))) for row in tokens)
    return total / tokens.numel()


def values_of(entries: Iterable[QuantizedEntry]) -> Values:
    return {entry.name: entry.value for entry in entries}


def disturbed(entries: Iterable[QuantizedEntry]) -> Iterator[QuantizedEntry]:
    """Every row of a block linear is up to 20 % too large or too small."""
    generator = torch.Generator().manual_seed(0)
    for entry in entries:
        value = entry.value
        if isinstance(value, QuantizedTensor) and entry.name not in TABLES:
            factors = 0.8 + 0.4 * torch.rand(len(value.scales), 1, generator=generator)
            scales = (value.scales.float() * factors).bfloat16()
            value = dataclasses.replace(value, scales=scales)
        yield QuantizedEntry(entry.name, value)


def test_scales_that_are_wrong_are_put_right(rounded: Rounded) -> None:
    wrong = tuple(disturbed(rounded.entries))
    recipe = recipe_of(steps=60, scale_rate=1e-2, norm_rate=1e-2)
    found = train(rounded, recipe, entries=wrong)
    floor, before = kl(rounded, values_of(rounded.entries)), kl(rounded, values_of(wrong))
    after = kl(rounded, found)
    assert after - floor < 0.3 * (before - floor)


def test_text_that_was_never_seen_is_kept_better_than_by_gptq_alone(tmp_path: Path) -> None:
    """Outlier channels and no rotation: GPTQ has something left to gain."""
    recipe = recipe_of(W4A8_GPTQ, steps=40, norm_rate=1e-2)
    planted = with_outliers(tiny_checkpoint())
    rounded = rounded_by(recipe, planted, tmp_path / "quantized")
    assert kl(rounded, train(rounded)) < 0.96 * kl(rounded, values_of(rounded.entries))


def test_codes_and_tables_stay_and_the_recipe_is_the_one_that_is_written(
    rounded: Rounded, tmp_path: Path
) -> None:
    """Through the whole stage, whose GPTQ is the same with and without."""
    recipe = rounded.layout.recipe
    found = quantize_checkpoint(rounded.checkpoint, recipe, tmp_path, SILENT, CALIBRATION)
    assert found.recipe == recipe
    assert found.source_sha256 == rounded.quantized.source_sha256
    for name, value in values_of(rounded.entries).items():
        if isinstance(value, QuantizedTensor):
            trained = found.weights.quantized(name)
            assert torch.equal(trained.codes, value.codes)
            assert torch.equal(trained.scales, value.scales) == (name in TABLES), name
        else:
            assert not torch.equal(found.weights.vector(name), value), name


def test_a_weight_only_recipe_is_trained_on_unrounded_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(x: Tensor) -> Tensor:
        raise AssertionError("an activation was rounded")

    monkeypatch.setattr("llama_edge.models.reference.quantize_per_token", refuse)
    recipe = recipe_of(dataclasses.replace(W4A8_HADAMARD, activation_bits=None), steps=1)
    rounded = rounded_by(recipe, tiny_checkpoint(), tmp_path / "weight-only")
    train(rounded)
    with pytest.raises(AssertionError, match="was rounded"):
        train(rounded, recipe_of(steps=1))


def test_two_runs_give_the_same_bits(rounded: Rounded) -> None:
    assert bits(train(rounded)) == bits(train(rounded))
    assert bits(train(rounded)) != bits(values_of(rounded.entries))


class Said(SilentProgress):
    """Remembers the stages, their steps and the remarks."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[int] = []
        self.remarks: list[str] = []

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.stages.append(f"{stage}: {count_steps(steps)}")
        self.steps = [done] if done else []

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)

    def remark(self, text: str) -> None:
        self.remarks.append(text)


class StopsAfter(Said):
    """Fails in the middle, as an interrupt would."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._after = steps

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        if self.stages[-1].startswith("distill") and len(self.steps) == self._after:
            raise KeyboardInterrupt


FULL = f"run in full precision: {CONFIG.num_hidden_layers}"
LONG = SAVE_EVERY + 3


def test_a_stopped_run_resumes_to_the_same_bits(rounded: Rounded, tmp_path: Path) -> None:
    state, recipe = tmp_path / "state.safetensors", recipe_of(steps=LONG)
    with pytest.raises(KeyboardInterrupt):
        train(rounded, recipe, state, StopsAfter(SAVE_EVERY + 2))
    assert [file.name for file in tmp_path.iterdir()] == [state.name]
    said = Said()
    resumed = train(rounded, recipe, state, said)
    assert said.stages == [FULL, f"distill: {LONG}"]
    assert said.steps == [SAVE_EVERY, 1, 1, 1]
    undisturbed = bits(train(rounded, recipe))
    assert bits(resumed) == undisturbed
    finished = Said()
    assert bits(train(rounded, recipe, state, finished)) == undisturbed
    assert finished.stages == []


_KILLED = """
import os, signal, sys
from pathlib import Path
import llama_edge.quantize.kept as kept
import tests.quantize.test_distillation as tests
folder, moment = Path(sys.argv[1]), sys.argv[2]
write = kept.write_safetensors
class Kills(tests.StopsAfter):
    def advance(self, steps=1):
        try:
            super().advance(steps)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)
def killed_while_writing(path, layout, tensors, metadata):
    if int(dict(tensors).get("step", 0)) == tests.LONG:
        Path(path).write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, layout, tensors, metadata)
if moment == "saving":
    kept.write_safetensors = killed_while_writing
recipe = tests.recipe_of(steps=tests.LONG)
place = tests.WorkPlace(folder=folder / "work")
(folder / "work").mkdir()
(folder / "out").mkdir()
progress = Kills(tests.SAVE_EVERY + 1 if moment == "computing" else 999)
tests.quantize_checkpoint(
    tests.tiny_checkpoint(), recipe, folder / "out", progress, tests.CALIBRATION, place
)
"""


@pytest.mark.parametrize("moment", ["computing", "saving"])
def test_a_killed_quantization_resumes_to_the_same_bytes(moment: str, tmp_path: Path) -> None:
    threads = str(torch.get_num_threads())
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), moment],
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path.cwd())},
        check=False,
        capture_output=True,
        timeout=300,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    recipe, said = recipe_of(steps=LONG), Said()
    written = []
    for name, place in (("resumed", WorkPlace(folder=tmp_path / "work")), ("undisturbed", ON_CPU)):
        folder = tmp_path / name
        folder.mkdir()
        quantize_checkpoint(tiny_checkpoint(), recipe, folder, said, CALIBRATION, place)
        if name == "resumed":
            assert said.steps[0] == SAVE_EVERY
            assert said.stages == [f"quantize (distilled): {1 + 2 * 7}", FULL, f"distill: {LONG}"]
        written.append((folder / "weights.safetensors").read_bytes())
    assert written[0] == written[1]


def test_a_damaged_state_is_said_and_not_used(rounded: Rounded, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    whole = train(rounded, state=state)
    state.write_bytes(state.read_bytes()[:-1])
    said = Said()
    assert bits(train(rounded, state=state, progress=said)) == bits(whole)
    assert said.stages == [FULL, f"distill (anew: the saved state is damaged): {STEPS}"]
    assert said.steps == [1] * STEPS


def test_the_cpu_is_allowed_with_a_remark(rounded: Rounded) -> None:
    said = Said()
    train(rounded, recipe_of(steps=1), progress=said)
    (remark,) = said.remarks
    assert "recipe distilled trains on the CPU" in remark
    assert "--device cuda" in remark


class SmallMemory:
    """A loss that fits only so many sequences, and breaks off in the middle of more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int, error: RuntimeError) -> None:
        self.sizes: list[int] = []
        whole = _Loss.__call__

        def limited(loss: _Loss, rows: list[int]) -> Tensor:
            self.sizes.append(len(rows))
            value = whole(loss, rows)
            if len(rows) > limit:
                # Backward has begun: some of the gradient is there already.
                torch.autograd.backward(value)
                raise error
            return value

        monkeypatch.setattr(_Loss, "__call__", limited)


FULL_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB, max allowed: 9.07 GiB)"),
)


@pytest.mark.parametrize("error", FULL_MEMORY, ids=["cuda", "mps"])
def test_fewer_sequences_at_a_time_give_the_same_step(
    error: RuntimeError, rounded: Rounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(steps=3, sequences=5)
    whole = train(rounded, recipe)
    memory, said = SmallMemory(monkeypatch, 2, error), Said()
    found = train(rounded, recipe, progress=said)
    # Five do not fit, and three do not; then every step is of two, two and one.
    assert memory.sizes == [5, 3] + 3 * [2, 2, 1]
    assert len([text for text in said.remarks if "memory of --device cpu is full" in text]) == 2
    assert "2 of a step's 5 sequences are computed at a time" in said.remarks[-1]
    for name, value in whole.items():
        other = found[name]
        if isinstance(value, QuantizedTensor):
            assert isinstance(other, QuantizedTensor)
            torch.testing.assert_close(other.scales, value.scales, rtol=2**-7, atol=0)
        else:
            assert isinstance(other, Tensor)
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("error", FULL_MEMORY, ids=["cuda", "mps"])
def test_memory_that_does_not_hold_one_sequence(
    error: RuntimeError, rounded: Rounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(monkeypatch, 0, error)
    with pytest.raises(QuantizeError, match="does not hold the rounded network and one sequence"):
        train(rounded)
    assert memory.sizes == [4, 2, 1]
    assert QuantizeError.exit_code == 3


def test_full_memory_of_the_rounding_is_not_said_to_be_the_distillations(rounded: Rounded) -> None:
    def rounding() -> Iterator[QuantizedEntry]:
        yield rounded.entries[0]
        raise FULL_MEMORY[0]

    with pytest.raises(torch.OutOfMemoryError):
        train(rounded, entries=rounding())


def test_another_error_is_not_taken_for_full_memory(
    rounded: Rounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(monkeypatch, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(rounded)
    assert memory.sizes == [4]


def test_weights_that_overflow_are_named(rounded: Rounded) -> None:
    weights = MemoryWeights(CONFIG)
    weights.tensors["model.layers.1.post_attention_layernorm.weight"] *= 1e30
    damaged = dataclasses.replace(rounded.checkpoint, weights=weights)
    with pytest.raises(QuantizeError, match="gradient of step 0 is not finite"):
        train(dataclasses.replace(rounded, checkpoint=damaged))


@pytest.mark.parametrize(
    ("sequences", "steps"),
    [(1000, 100), (20, 25), (8, 10), (3, 5), (1, 5)],
)
def test_a_short_text_ends_the_training_early(sequences: int, steps: int) -> None:
    distillation = recipe_of(steps=100, sequences=4, max_epochs=5).distillation
    assert distillation is not None
    assert step_count(distillation, sequences) == steps


def test_the_named_recipe_sees_a_million_tokens_of_its_own_texts() -> None:
    distillation = W4A8_DISTILLED.distillation
    assert distillation is not None
    sequences = distillation.texts * SEQUENCES
    seen = step_count(distillation, sequences) * distillation.sequences
    assert seen * LENGTH == 2**20
    assert 9 < seen / sequences < 10


def test_seven_numbers_are_held_for_each_that_is_trained(rounded: Rounded) -> None:
    """As documented: 28 bytes for each scale."""
    recipe = recipe_of(norm_rate=0, rotation_rate=0)
    assert recipe.distillation is not None
    cpu = torch.device("cpu")
    network = TrainedNetwork(rounded.layout, rounded.entries, recipe.distillation, cpu)
    adam = AveragedAdam(network.shifts, network.rates, 4, 0.9)
    scales = [network._start[name] for name in network._codes]
    vectors = [network.shifts, network.gradient, network.rates, *adam._state.values()]
    count = len(network.shifts)
    # The optimizer's values are the network's shifts.
    held = {one.data_ptr(): one.nbytes for one in [*scales, *vectors]}
    assert sum(held.values()) == 28 * count


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(rounded: Rounded) -> None:
    place = LearningPlace(device=Device.CUDA)
    with pytest.raises(MissingComponentError, match="finds no CUDA device"):
        distill(
            rounded.checkpoint, rounded.layout, rounded.entries, CALIBRATION.tokens, place, SILENT
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_to_the_same(rounded: Rounded) -> None:
    place = LearningPlace(device=Device.CUDA)
    made = distill(
        rounded.checkpoint, rounded.layout, rounded.entries, CALIBRATION.tokens, place, SILENT
    )
    assert kl(rounded, values_of(made)) == pytest.approx(kl(rounded, train(rounded)), rel=0.05)


def test_everything_is_on_the_device_and_nothing_in_float64(rounded: Rounded) -> None:
    """The "meta" device refuses, like a GPU, tensors that are elsewhere."""
    meta, layout, tokens = torch.device("meta"), rounded.layout, CALIBRATION.tokens
    assert layout.recipe.distillation is not None
    with NoFloat64():
        network = TrainedNetwork(layout, rounded.entries, layout.recipe.distillation, meta)
        full = _FullPrecision(rounded.checkpoint, tokens, meta, SILENT)
        # Not by `run`: what it computes would have to come back from the device.
        x_BTD = full._model.embed(tokens.to(meta))
        assert full._model.blocks(x_BTD).device == meta
        full._hidden = torch.zeros(*tokens.shape, CONFIG.hidden_size)
        _Batches(4, Device.CPU, SILENT).backward(
            _Loss(network, full, layout, tokens.to(meta)), [0, 1, 2, 3], network
        )
        adam = AveragedAdam(network.shifts, network.rates, 4, 0.9)
        adam.advance(network.gradient)
    assert adam.averaged().device == meta


def test_the_gradient_is_that_of_transformers(tmp_path: Path) -> None:
    """Weight-only and without rotations, the rounded network is a Llama of theirs."""
    from transformers import LlamaForCausalLM

    recipe = recipe_of(dataclasses.replace(W4A8_GPTQ, activation_bits=None))
    rounded = rounded_by(recipe, tiny_checkpoint(), tmp_path / "quantized")
    assert recipe.distillation is not None
    network = TrainedNetwork(
        rounded.layout, rounded.entries, recipe.distillation, torch.device("cpu")
    )
    full = _FullPrecision(rounded.checkpoint, CALIBRATION.tokens, torch.device("cpu"), SILENT)
    full.run(tmp_path / "hidden")
    rows = [2, 0, 5]
    loss = _Loss(network, full, rounded.layout, CALIBRATION.tokens)
    _Batches(2, Device.CPU, SILENT).backward(loss, rows, network)

    def theirs(tensors: dict[str, Tensor]) -> LlamaForCausalLM:
        model = LlamaForCausalLM(transformers_config(CONFIG)).eval()
        model.load_state_dict({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
        return model

    values = values_of(rounded.entries)
    student = theirs(
        {
            name: value.dequantize() if isinstance(value, QuantizedTensor) else value
            for name, value in values.items()
        }
    )
    tokens = CALIBRATION.tokens[rows]
    with torch.no_grad():
        wanted = theirs(MemoryWeights(CONFIG).tensors)(tokens).logits.log_softmax(-1)
    found = student(tokens).logits.log_softmax(-1)
    torch.autograd.backward((wanted.exp() * (wanted - found)).sum(-1).mean())
    for name, parameter in student.named_parameters():
        value, gradient = values[name], parameter.grad
        assert gradient is not None
        if isinstance(value, QuantizedTensor) and name not in TABLES:
            products = gradient * value.dequantize()
            expected = products.view(*value.scales.shape, -1).sum(-1)
        elif isinstance(value, Tensor):
            expected = gradient * value
        else:
            continue
        ours = network._shifts[name].grad
        assert ours is not None
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-7, msg=name)
