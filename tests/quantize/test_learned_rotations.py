import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import MissingComponentError, OutputError, QuantizeError
from llama_edge.core.progress import Progress, SilentProgress, Steps, step_count
from llama_edge.core.recipe import Device, Recipe, RotationLearning
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.quantize import W4A8_SPINQUANT
from llama_edge.quantize.learned_rotations import SAVE_EVERY, learn_rotations
from llama_edge.quantize.resume import LearningPlace, load_state, save_state, start_state
from llama_edge.quantize.rotate import RotationMatrices, apply_rotations, choose_rotations
from llama_edge.quantize.straight_through import ResidentWeights, RotationLoss, resident
from tests.conftest import DEBUG_CONFIG, MemoryWeights
from tests.quantize.no_float64 import NoFloat64
from tests.quantize.test_sequential import tokens

ITERATIONS = 3 * SAVE_EVERY
SILENT = SilentProgress()


def recipe_of(
    iterations: int = ITERATIONS, sequences: int = 2, learning_rate: float = 1.5
) -> Recipe:
    learning = RotationLearning(
        iterations=iterations, sequences=sequences, learning_rate=learning_rate, momentum=0.9
    )
    return dataclasses.replace(W4A8_SPINQUANT, name="learned", rotation_learning=learning)


RECIPE = recipe_of()


def start_of(checkpoint: Checkpoint) -> RotationMatrices:
    return choose_rotations(checkpoint.config, RECIPE)


def learn(
    checkpoint: Checkpoint,
    state: Path | None = None,
    recipe: Recipe = RECIPE,
    progress: Progress = SILENT,
) -> RotationMatrices:
    start, place = start_of(checkpoint), LearningPlace(state=state)
    return learn_rotations(checkpoint, recipe, start, tokens(0), place, progress)


def loss_of(checkpoint: Checkpoint, matrices: RotationMatrices) -> float:
    """On ids that the learning never saw."""
    loss = RotationLoss(checkpoint, matrices.r4)
    with torch.no_grad():
        return float(loss(matrices.r1, torch.stack(list(matrices.r2)), tokens(1)))


def same(first: RotationMatrices, second: RotationMatrices) -> bool:
    """Bit for bit."""
    pairs = zip((first.r1, *first.r2), (second.r1, *second.r2), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture
def planted(debug_checkpoint: Checkpoint) -> Checkpoint:
    """Two channels of the residual stream are 20 times larger than the others."""
    weights = MemoryWeights(debug_checkpoint.config)
    for name, tensor in weights.tensors.items():
        if name.split(".")[-2] == "embed_tokens":
            tensor[:, ::48] *= 20
        elif name.split(".")[-2] in ("o_proj", "down_proj"):
            tensor[::48] *= 20
    return dataclasses.replace(debug_checkpoint, weights=weights)


def test_learning_lowers_the_loss(planted: Checkpoint) -> None:
    before = loss_of(planted, start_of(planted))
    learned = learn(planted, recipe=recipe_of(iterations=40, sequences=4, learning_rate=0.3))
    assert loss_of(planted, learned) < 0.5 * before
    without = learn(planted, recipe=recipe_of(iterations=4, learning_rate=1e-9))
    assert loss_of(planted, without) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_full_precision_network_stays_the_same(
    tied: bool, debug_checkpoint: Checkpoint
) -> None:
    config = dataclasses.replace(DEBUG_CONFIG, tie_word_embeddings=tied)
    weights = MemoryWeights(config)
    checkpoint = dataclasses.replace(debug_checkpoint, config=config, weights=weights)
    learned = learn(checkpoint)
    for matrix in (learned.r1, *learned.r2):
        identity = torch.eye(len(matrix), dtype=torch.float64)
        torch.testing.assert_close(matrix.T @ matrix, identity, atol=1e-13, rtol=0)
    assert not same(learned, start_of(checkpoint))

    def logits(of: Checkpoint) -> torch.Tensor:
        model = Reference(of.config, FullPrecisionSource(of.config, of.weights))
        return model.logits(tokens(1)[0]).double().log_softmax(-1)

    wanted, found = logits(checkpoint), logits(apply_rotations(checkpoint, learned))
    assert float((wanted.exp() * (wanted - found)).sum(-1).mean()) < 1e-6
    wrong = dataclasses.replace(learned, r1=learned.r1 * 1.05)
    found = logits(apply_rotations(checkpoint, wrong))
    assert float((wanted.exp() * (wanted - found)).sum(-1).mean()) > 1e-6


@pytest.mark.parametrize("tied", [True, False])
def test_without_rounding_there_is_no_loss(tied: bool, debug_checkpoint: Checkpoint) -> None:
    """What is left is the divergence of the rotated network from itself."""
    config = dataclasses.replace(DEBUG_CONFIG, tie_word_embeddings=tied)
    weights = MemoryWeights(config)
    checkpoint = dataclasses.replace(debug_checkpoint, config=config, weights=weights)
    matrices = start_of(checkpoint)
    assert loss_of(checkpoint, matrices) > 1e-4
    loss = RotationLoss(checkpoint, matrices.r4, ActivationQuantization.NONE)
    with torch.no_grad():
        assert float(loss(matrices.r1, torch.stack(list(matrices.r2)), tokens(1))) < 1e-6
    assert loss_of(checkpoint, matrices) > 1e-4


def test_everything_lies_on_the_device_of_the_weights(debug_checkpoint: Checkpoint) -> None:
    """On PyTorch's "meta" device, which like a GPU refuses tensors that are elsewhere."""
    meta, matrices = torch.device("meta"), start_of(debug_checkpoint)
    loss = RotationLoss(resident(debug_checkpoint, meta), matrices.r4)
    r1 = matrices.r1.to(meta).requires_grad_()
    r2 = torch.stack(list(matrices.r2)).to(meta).requires_grad_()
    gradients = torch.autograd.grad(loss(r1, r2, tokens(1).to(meta)), (r1, r2))
    assert [gradient.shape for gradient in gradients] == [r1.shape, r2.shape]
    assert all(gradient.device == meta for gradient in gradients)


@torch.no_grad()
def test_matrices_may_stay_on_the_cpu_where_the_device_has_no_float64(
    debug_checkpoint: Checkpoint,
) -> None:
    """As on Apple's GPU; the "meta" device stands for it."""
    meta, matrices = torch.device("meta"), start_of(debug_checkpoint)
    with NoFloat64():
        loss = RotationLoss(resident(debug_checkpoint, meta), matrices.r4)
        found = loss(matrices.r1, torch.stack(list(matrices.r2)), tokens(1).to(meta))
        with pytest.raises(AssertionError):
            torch.zeros(1, dtype=torch.float64, device=meta)
    assert found.device == meta


def test_weights_that_bfloat16_holds_are_kept_in_it_to_the_same_bits() -> None:
    weights = MemoryWeights(DEBUG_CONFIG)
    exact, other = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    weights.tensors[exact] = weights.tensors[exact].bfloat16().float()
    kept = ResidentWeights(weights, torch.device("cpu"))
    for name in (exact, other) * 2:
        read = kept.read(name)
        assert read.dtype == torch.float32
        assert torch.equal(read, weights.read(name))
    assert {name: tensor.dtype for name, tensor in kept._kept.items()} == {
        exact: torch.bfloat16,
        other: torch.float32,
    }


class StopsAfter(SilentProgress):
    """Fails in the middle, as an interrupt would."""

    def __init__(self, iterations: int) -> None:
        self._left = iterations

    def advance(self, steps: int = 1) -> None:
        self._left -= steps
        if self._left == 0:
            raise KeyboardInterrupt


class Said(SilentProgress):
    """Remembers the stages and how far they got."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[int] = []

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.stages.append(f"{stage}: {step_count(steps)}")
        self.steps.extend([done] if done else [])

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)


def test_a_stopped_run_goes_on_to_the_same_bits(planted: Checkpoint, tmp_path: Path) -> None:
    state = tmp_path / "cache" / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        learn(planted, state, progress=StopsAfter(2 * SAVE_EVERY + 1))
    assert [file.name for file in state.parent.iterdir()] == [state.name]
    said = Said()
    resumed = learn(planted, state, progress=said)
    assert said.stages == [f"learn rotations: {ITERATIONS}"]
    assert said.steps == [2 * SAVE_EVERY] + [1] * SAVE_EVERY
    assert same(resumed, learn(planted))


_KILLED = """
import os, signal, sys
from pathlib import Path
import llama_edge.quantize.kept as kept
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text
from llama_edge.core.checkpoint import Checkpoint
from tests.quantize.test_learned_rotations import SAVE_EVERY, StopsAfter, learn
checkpoint = Checkpoint(
    source="debug", config=DEBUG_CONFIG, weights=MemoryWeights(DEBUG_CONFIG), text=debug_text()
)
write, moment = kept.write_safetensors, sys.argv[2]
class Kills(StopsAfter):
    def advance(self, steps=1):
        try:
            super().advance(steps)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)
def killed_while_writing(path, layout, tensors, metadata):
    if int(dict(tensors)["step"]) == 2 * SAVE_EVERY:
        Path(path).write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, layout, tensors, metadata)
if moment == "saving":
    kept.write_safetensors = killed_while_writing
iterations = SAVE_EVERY + 1 if moment == "computing" else 999
learn(checkpoint, Path(sys.argv[1]), progress=Kills(iterations))
"""


@pytest.mark.parametrize("moment", ["computing", "saving"])
def test_a_killed_run_goes_on_to_the_same_bits(
    moment: str, debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    state = tmp_path / "state.safetensors"
    threads = str(torch.get_num_threads())
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(state), moment],
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path.cwd())},
        check=False,
        capture_output=True,
        timeout=300,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    said = Said()
    resumed = learn(debug_checkpoint, state, progress=said)
    assert said.steps[0] == SAVE_EVERY
    assert same(resumed, learn(debug_checkpoint))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_shape(path: Path) -> None:
    save_state(start_state(torch.eye(4).double(), torch.eye(2).double()[None]), path)


def not_a_number(path: Path) -> None:
    start = start_state(torch.eye(96).double(), torch.eye(16).double().repeat(2, 1, 1))
    save_state(dataclasses.replace(start, step=4, r1=start.r1 * torch.nan), path)


def too_far(path: Path) -> None:
    start = start_state(torch.eye(96).double(), torch.eye(16).double().repeat(2, 1, 1))
    save_state(dataclasses.replace(start, step=ITERATIONS + 1), path)


@pytest.mark.parametrize("damage", [halve, other_shape, not_a_number, too_far])
def test_a_damaged_state_is_said_and_not_used(
    damage: Callable[[Path], None], debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    state = tmp_path / "state.safetensors"
    whole = learn(debug_checkpoint, state)
    damage(state)
    said = Said()
    again = learn(debug_checkpoint, state, progress=said)
    assert said.stages == [f"learn rotations (anew: the saved state is damaged): {ITERATIONS}"]
    assert said.steps == [1] * ITERATIONS
    assert same(again, whole)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    r1, r2 = torch.randn(8, 8, generator=generator), torch.randn(3, 4, 4, generator=generator)
    start = start_state(r1.double(), r2.double())
    saved = dataclasses.replace(start, step=7, r1_momentum=start.r1 + 1)
    save_state(saved, tmp_path / "state")
    found = load_state(tmp_path / "state", start)
    assert found is not None
    assert found.step == 7
    for name in ("r1", "r2", "r1_momentum", "r2_momentum"):
        assert torch.equal(getattr(found, name), getattr(saved, name))


def test_a_folder_that_cannot_be_written(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="LLAMA_EDGE_CACHE"):
        learn(debug_checkpoint, tmp_path / "file" / "state.safetensors")


def test_weights_that_overflow_are_named(debug_checkpoint: Checkpoint) -> None:
    weights = MemoryWeights(DEBUG_CONFIG)
    weights.tensors["model.layers.1.post_attention_layernorm.weight"] *= 1e30
    checkpoint = dataclasses.replace(debug_checkpoint, weights=weights)
    with pytest.raises(QuantizeError, match="loss of iteration 0 or its gradient is not finite"):
        learn(checkpoint)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(debug_checkpoint: Checkpoint) -> None:
    place = LearningPlace(device=Device.CUDA)
    start = start_of(debug_checkpoint)
    with pytest.raises(MissingComponentError, match="finds no CUDA device"):
        learn_rotations(debug_checkpoint, RECIPE, start, tokens(0), place, SilentProgress())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_the_same(planted: Checkpoint) -> None:
    place = LearningPlace(device=Device.CUDA)
    start = start_of(planted)
    found = learn_rotations(planted, RECIPE, start, tokens(0), place, SilentProgress())
    assert loss_of(planted, found) == pytest.approx(loss_of(planted, learn(planted)), rel=0.05)
