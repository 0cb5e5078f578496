"""What stages say of themselves while a model goes the whole way, next to what was planned."""

import dataclasses
from pathlib import Path

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import Job, SilentProgress, Steps, step_count
from llama_edge.pipeline.export import export_model
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.plan.host import stage_seconds
from llama_edge.quantize import RECIPES, W4A8_MIXED, W4A8_SPINQUANT
from tests.conftest import debug_request


class Counted(SilentProgress):
    """How many steps each stage said that it has, and how many it took."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.steps: dict[str, Steps] = {}
        self.taken: dict[str, int] = {}

    def expect(self, job: Job) -> None:
        assert not self.steps
        self.jobs.append(job)

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.steps[stage] = steps
        self.taken[stage] = done

    def advance(self, steps: int = 1) -> None:
        self.taken[[*self.steps][-1]] += steps

    def check(self) -> None:
        assert self.taken == {stage: step_count(steps) for stage, steps in self.steps.items()}
        for steps in self.steps.values():
            if not isinstance(steps, int):
                assert all(step.work > 0 for step in steps)
                assert len({step.name for step in steps}) == len(steps)


@pytest.mark.parametrize("target", ["android", "onnx", "ios"])
def test_an_export_runs_the_planned_stages_in_their_order(
    debug_folder: Path, tmp_path: Path, target: str
) -> None:
    counted = Counted()
    export_model(debug_request(debug_folder, target, tmp_path / "out"), counted)
    counted.check()
    (job,) = counted.jobs
    written = {f"write ({job.backend})"} if target != "android" else set()
    assert list(counted.steps) == [stage for stage in stage_seconds(job) if stage not in written]


@pytest.mark.parametrize("name", [W4A8_MIXED.name, W4A8_SPINQUANT.name])
def test_a_recipe_that_calibrates_runs_the_planned_stages_in_their_order(
    debug_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "cache"))
    recipe = RECIPES[name]
    if recipe.rotation_learning is not None:
        learning = dataclasses.replace(recipe.rotation_learning, iterations=2, sequences=1)
        recipe = dataclasses.replace(recipe, rotation_learning=learning)
    config = dataclasses.replace(debug_checkpoint.config, max_position_embeddings=48)
    counted = Counted()
    checkpoint = dataclasses.replace(debug_checkpoint, config=config)
    quantize_with_cache(checkpoint, recipe, (), tmp_path, counted)
    counted.check()
    assert list(counted.steps) == list(stage_seconds(Job(config=config, recipe=recipe)))
