import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from platformdirs.api import PlatformDirsABC
from platformdirs.macos import MacOS
from platformdirs.windows import Windows
from safetensors.torch import load_file, save_file

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import MissingComponentError, UsageError
from llama_edge.core.progress import SilentProgress, Steps
from llama_edge.core.recipe import MAX_SEED, Device, Recipe, Rotation, RotationLearning
from llama_edge.pipeline.cache import cache_folder
from llama_edge.pipeline.quantize import check_calibration, check_calibration_device, with_seed
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.pipeline.text_cache import TextCache
from llama_edge.quantize import (
    W4A8_DISTILLED,
    W4A8_GPTQ,
    W4A8_META_SPINQUANT,
    W4A8_MIXED,
    W4A8_RTN,
    W4A8_SPINQUANT,
)
from llama_edge.quantize.calibration import SEQUENCES
from llama_edge.quantize.distillation import SAVE_EVERY as DISTILL_EVERY
from llama_edge.quantize.kept import keep
from llama_edge.quantize.learned_rotations import SAVE_EVERY
from llama_edge.quantize.stage import hash_weights


class Stages(SilentProgress):
    """Remembers what has really run."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.names.append(stage)


@pytest.fixture
def short_model(debug_checkpoint: Checkpoint) -> Checkpoint:
    """So short a context that it writes its calibration text at once."""
    config = dataclasses.replace(debug_checkpoint.config, max_position_embeddings=48)
    return dataclasses.replace(debug_checkpoint, config=config)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_calibrated_once_for_all_targets(short_model: Checkpoint, tmp_path: Path) -> None:
    stages = Stages()
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    assert stages.names == ["write calibration text", "quantize (w4a8-gptq)"]
    again = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    assert len(stages.names) == 2
    assert again.root == first.root
    assert first.source_sha256 == hash_weights(short_model.weights)


def test_a_changed_quantizer_finds_no_old_result(
    short_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    monkeypatch.setattr("llama_edge.pipeline.quantized.code_sha256", lambda *_: "another")
    second = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    assert second.root != first.root


def test_the_same_weights_under_another_config_are_another_result(
    short_model: Checkpoint, tmp_path: Path
) -> None:
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    config = dataclasses.replace(short_model.config, rope_theta=20000.0)
    other = dataclasses.replace(short_model, config=config)
    stages = Stages()
    second = quantize_with_cache(other, W4A8_GPTQ, (), tmp_path, stages)
    assert "write calibration text" in stages.names
    assert second.config == config != first.config


def test_another_recipe_shares_the_text_and_nothing_else(
    short_model: Checkpoint, tmp_path: Path
) -> None:
    stages = Stages()
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    other = dataclasses.replace(W4A8_GPTQ, name="other")
    second = quantize_with_cache(short_model, other, (), tmp_path, stages)
    assert stages.names[2:] == ["quantize (other)"]
    assert second.root != first.root
    assert second.calibration == first.calibration


def test_a_damaged_text_is_written_again(
    short_model: Checkpoint, tmp_path: Path, fresh_cache: Path
) -> None:
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    (tokens,) = fresh_cache.glob("calibration/*/tokens.safetensors")
    tokens.write_bytes(b"damaged")
    stages = Stages()
    again = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, stages)
    assert stages.names == ["write calibration text"]
    assert again.root == first.root


def test_the_user_s_text_is_another_result(short_model: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("A text about rivers, stones and the wind. " * 10)
    first = quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    texts = (tmp_path / "own.txt",)
    second = quantize_with_cache(short_model, W4A8_GPTQ, texts, tmp_path, SilentProgress())
    assert second.root != first.root
    assert second.calibration is not None
    assert second.calibration.origin.startswith("text with SHA-256")


def test_rounding_to_nearest_is_not_kept(
    short_model: Checkpoint, tmp_path: Path, fresh_cache: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    found = quantize_with_cache(short_model, W4A8_RTN, (), tmp_path / "scratch", SilentProgress())
    assert found.root == tmp_path / "scratch"
    assert not fresh_cache.exists()


class Stops(Stages):
    """Interrupts the learning of rotations one iteration after a save."""

    def __init__(self) -> None:
        super().__init__()
        self._iterations = 0

    def advance(self, steps: int = 1) -> None:
        self._iterations += steps if self.names[-1] == "learn rotations" else 0
        if self._iterations > SAVE_EVERY:
            raise KeyboardInterrupt


def learned(iterations: int) -> Recipe:
    learning = RotationLearning(iterations=iterations, sequences=2, learning_rate=1.5, momentum=0.9)
    return dataclasses.replace(W4A8_SPINQUANT, rotation_learning=learning)


def test_learning_goes_on_after_an_interrupt_and_leaves_no_state(
    short_model: Checkpoint,
    tmp_path: Path,
    fresh_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = learned(SAVE_EVERY + 2)
    with pytest.raises(KeyboardInterrupt):
        quantize_with_cache(short_model, recipe, (), tmp_path, Stops())
    assert len(list(fresh_cache.glob("unfinished/*/rotations.safetensors"))) == 1
    assert not list(fresh_cache.glob("quantized/*"))
    stages = Stages()
    resumed = quantize_with_cache(short_model, recipe, (), tmp_path, stages)
    assert stages.names == ["learn rotations", "quantize (w4a8-spinquant)"]
    assert not list(fresh_cache.glob("unfinished"))
    assert resumed.recipe == recipe
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "another"))
    undisturbed = quantize_with_cache(short_model, recipe, (), tmp_path, SilentProgress())
    name = "weights.safetensors"
    assert (resumed.root / name).read_bytes() == (undisturbed.root / name).read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Counted(Stages):
    """Remembers how many steps of each stage were taken and skipped; may be interrupted."""

    def __init__(self, stage: str = "", after: int = 0) -> None:
        super().__init__()
        self.steps: list[tuple[str, int]] = []
        self.skipped: list[tuple[str, int]] = []
        self._stage, self._after = stage, after

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        super().start(stage, steps, done)
        self.skipped.extend([(stage, done)] if done else [])

    def advance(self, steps: int = 1) -> None:
        self.steps.append((self.names[-1], steps))
        if self.steps.count((self._stage, 1)) == self._after > 0:
            raise KeyboardInterrupt


FORWARD, BACK, ROUND = (
    "measure sensitivity, forward",
    "measure sensitivity, back",
    "quantize (w4a8-mixed)",
)


@pytest.mark.parametrize(
    ("stage", "after", "resumed_steps", "skipped"),
    [
        (FORWARD, 1, {FORWARD: 2, BACK: 3, ROUND: 15}, []),
        # The head and the second layer were measured; the first one's input is the embedding.
        (BACK, 2, {BACK: 1, ROUND: 15}, [(BACK, 2)]),
        (ROUND, 7, {ROUND: 15}, []),
        (ROUND, 9, {ROUND: 8}, [(ROUND, 7)]),
        (ROUND, 15, {ROUND: 8}, [(ROUND, 7)]),
    ],
)
def test_a_stopped_calibration_goes_on_where_it_was(
    short_model: Checkpoint,
    tmp_path: Path,
    fresh_cache: Path,
    stage: str,
    after: int,
    resumed_steps: dict[str, int],
    skipped: list[tuple[str, int]],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, Counted(stage, after))
    again = Counted()
    found = quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, again)
    resumed = contents(found.root)
    taken = {
        name: again.steps.count((name, 1)) for name in again.names if name in dict(again.steps)
    }
    assert (taken, again.skipped) == (resumed_steps, skipped)
    assert not (fresh_cache / "unfinished").exists()
    shutil.rmtree(fresh_cache / "quantized")
    undisturbed = quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, SilentProgress())
    assert contents(undisturbed.root) == resumed


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def change_a_value(file: Path) -> None:
    """Whole, of the right shapes, and with another number in it."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def write_anew(file: Path) -> None:
    """As who does not know the digest would."""
    save_file(load_file(file), file)


def take_another_runs(file: Path) -> None:
    """As this program wrote it, in another run's folder."""
    other = file.parents[1].with_name("another") / file.parent.name / file.name
    other.parent.mkdir(parents=True)
    keep(other, load_file(file))
    other.replace(file)
    shutil.rmtree(other.parents[1])


@pytest.mark.parametrize("damage", [cut, change_a_value, write_anew, take_another_runs])
def test_what_was_kept_and_was_changed_is_done_again(
    short_model: Checkpoint, tmp_path: Path, fresh_cache: Path, damage: Callable[[Path], None]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, Counted(ROUND, 9))
    (layer,) = fresh_cache.glob("unfinished/*/layers/0000.safetensors")
    (costs,) = fresh_cache.glob("unfinished/*/sensitivity/costs.safetensors")
    for file in (layer, costs):
        damage(file)
    again = Counted()
    found = quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, again)
    assert again.names == [FORWARD, BACK, ROUND]
    assert again.skipped == []
    resumed = contents(found.root)
    shutil.rmtree(fresh_cache / "quantized")
    undisturbed = quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, SilentProgress())
    assert contents(undisturbed.root) == resumed


@pytest.mark.parametrize("damage", [cut, change_a_value, write_anew, take_another_runs])
def test_activations_that_were_changed_are_made_again(
    short_model: Checkpoint, tmp_path: Path, fresh_cache: Path, damage: Callable[[Path], None]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, Counted(ROUND, 9))
    (activations,) = fresh_cache.glob("unfinished/*/layers/0000.activations.safetensors")
    damage(activations)
    again = Counted()
    quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, again)
    assert (again.names, again.skipped) == ([ROUND], [])
    assert again.steps.count((ROUND, 1)) == 15


def test_learned_rotations_are_what_is_rounded(short_model: Checkpoint, tmp_path: Path) -> None:
    drawn = dataclasses.replace(learned(1), rotation_learning=None)
    found, plain = (
        quantize_with_cache(short_model, recipe, (), tmp_path, SilentProgress()).weights
        for recipe in (learned(1), drawn)
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(found.quantized(name).codes, plain.quantized(name).codes)


def distilled(steps: int) -> Recipe:
    assert W4A8_DISTILLED.distillation is not None
    distillation = dataclasses.replace(
        W4A8_DISTILLED.distillation, steps=steps, sequences=2, texts=2, warm_up=1
    )
    return dataclasses.replace(W4A8_DISTILLED, distillation=distillation)


def test_a_distilled_recipe_has_more_texts_and_resumes(
    short_model: Checkpoint, tmp_path: Path, fresh_cache: Path
) -> None:
    recipe, text = distilled(DISTILL_EVERY + 2), "write calibration text"
    quantize_with_cache(short_model, W4A8_GPTQ, (), tmp_path, SilentProgress())
    stopped = Counted("distill", DISTILL_EVERY + 1)
    with pytest.raises(KeyboardInterrupt):
        quantize_with_cache(short_model, recipe, (), tmp_path, stopped)
    # The first text is the one that other recipes have.
    full = "run in full precision"
    quantize = "quantize (w4a8-distilled)"
    assert stopped.names == [text, FORWARD, BACK, quantize, full, "distill"]
    again = Counted()
    found = quantize_with_cache(short_model, recipe, (), tmp_path, again)
    assert again.names == [quantize, full, "distill"]
    assert again.skipped == [(quantize, 14), ("distill", DISTILL_EVERY)]
    assert found.calibration is not None
    assert found.calibration.origin == "self-generated, seeds 0 to 1"
    assert (found.calibration.sequences, found.calibration.length) == (2 * SEQUENCES, 48)
    resumed = contents(found.root)
    shutil.rmtree(fresh_cache / "quantized")
    undisturbed = quantize_with_cache(short_model, recipe, (), tmp_path, SilentProgress())
    assert contents(undisturbed.root) == resumed


def test_a_device_that_would_not_be_used_is_refused() -> None:
    check_calibration_device(W4A8_RTN, Device.CPU)
    check_calibration_device(W4A8_SPINQUANT, Device.CPU)
    for device in (Device.CUDA, Device.MPS):
        with pytest.raises(
            UsageError, match=f"--device {device.value}: recipe w4a8-rtn does not calibrate"
        ):
            check_calibration_device(W4A8_RTN, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("recipe", [W4A8_SPINQUANT, W4A8_DISTILLED], ids=lambda one: one.name)
def test_a_device_that_is_not_there_is_refused(recipe: Recipe) -> None:
    with pytest.raises(MissingComponentError, match="finds no CUDA device"):
        check_calibration_device(recipe, Device.CUDA)


def test_text_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(UsageError, match="w4a8-rtn rounds to nearest and reads no text"):
        check_calibration(W4A8_RTN, [Path("own.txt")])


def test_another_seed_is_another_text_and_another_result(
    short_model: Checkpoint, tmp_path: Path
) -> None:
    stages = Stages()
    first = quantize_with_cache(short_model, W4A8_MIXED, (), tmp_path, stages)
    recipe = with_seed(W4A8_MIXED, 3, ())
    second = quantize_with_cache(short_model, recipe, (), tmp_path, stages)
    assert stages.names.count("write calibration text") == 2
    assert first.root != second.root
    assert second.recipe.seed == 3
    assert second.calibration is not None
    assert second.calibration.origin == "self-generated, seed 3"
    name = "model.layers.0.mlp.up_proj.weight"
    scales = [found.weights.quantized(name).scales for found in (first, second)]
    assert scales[0].shape != scales[1].shape or not torch.equal(*scales)


def test_a_seed_that_is_used_is_the_recipes() -> None:
    text = (Path("own.txt"),)
    rotated = dataclasses.replace(W4A8_RTN, rotations=(Rotation.R1,))
    for recipe, texts in ((W4A8_GPTQ, ()), (W4A8_MIXED, text), (rotated, ())):
        assert with_seed(recipe, 5, texts) == dataclasses.replace(recipe, seed=5)
        assert with_seed(recipe, None, texts) is recipe
    assert with_seed(W4A8_GPTQ, 5, TextCache(Path("t"))).seed == 5
    assert with_seed(W4A8_GPTQ, MAX_SEED, ()).seed == MAX_SEED


@pytest.mark.parametrize(
    ("recipe", "seed", "texts", "message"),
    [
        (W4A8_RTN, 1, (), "--seed 1: recipe w4a8-rtn rounds to nearest and draws nothing"),
        (W4A8_RTN, 0, (), "--seed 0: recipe w4a8-rtn rounds to nearest and draws nothing"),
        (W4A8_META_SPINQUANT, 1, (), "keeps its codes and draws nothing at random"),
        (W4A8_GPTQ, 1, (Path("own.txt"),), r"--calibration own\.txt is used instead; leave one"),
        (W4A8_MIXED, -1, (), "--seed -1: an integer from 0 to 9007199254740991 is needed"),
        (W4A8_MIXED, MAX_SEED + 1, (), "--seed 9007199254740992: an integer from 0"),
        (W4A8_MIXED, True, (), "--seed True: an integer"),
    ],
)
def test_a_seed_that_would_not_be_used_is_refused(
    recipe: Recipe, seed: int, texts: tuple[Path, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        with_seed(recipe, seed, texts)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LLAMA_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "llama-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "llama-edge"


@pytest.mark.parametrize(
    ("system", "place"), [(MacOS, "Library/Caches/llama-edge"), (Windows, "llama-edge/Cache")]
)
def test_where_the_cache_is_on_another_system(
    monkeypatch: pytest.MonkeyPatch, system: type[PlatformDirsABC], place: str
) -> None:
    monkeypatch.delenv("LLAMA_EDGE_CACHE")
    monkeypatch.setattr("platformdirs.PlatformDirs", system)
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda _: "C:/Local")
    assert cache_folder().as_posix().replace("\\", "/").endswith(place)
