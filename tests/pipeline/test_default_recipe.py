"""What a person gets who names no recipe: the real model, through the file that was written."""

import argparse
import json
import logging
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.core.progress import SilentProgress
from llama_edge.evaluate.evaluate import evaluate
from llama_edge.evaluate.report import TOTAL, EvalRequest
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.quantize import DEFAULT_RECIPE

#: The standard library's docstrings are English that calibration, which the model wrote itself,
#: never saw.
MODULES = (argparse, json, logging, subprocess, tarfile, threading)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("default") / "android"
    return export_model(
        ExportRequest(model="smollm2-135m", target="android", out=out), SilentProgress()
    )


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    values = [value for module in MODULES for _, value in sorted(vars(module).items())]
    texts = [value.__doc__ or "" for value in values if callable(value)]
    path = tmp_path / "held-out.txt"
    path.write_text("\n\n".join(text for text in texts if len(text) > 300), encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_default_recipe_keeps_the_model(bundle: Bundle, held_out: Path) -> None:
    assert bundle.manifest.recipe.name == DEFAULT_RECIPE
    request = EvalRequest(
        subjects=(str(bundle.root),), texts=(held_out,), window=256, max_windows=16
    )
    (subject,) = evaluate(request, SilentProgress()).subjects
    (total,) = (result for result in subject.results if result.text == TOTAL)
    assert total.windows == 16
    assert total.metrics["mean_kl"].value <= 0.12
    fidelity = bundle.manifest.fidelity
    assert fidelity is not None
    assert fidelity["mean_kl"] <= 0.12, "the gate's own text, in eight languages"


@pytest.mark.slow
def test_a_rotated_network_is_calm(bundle: Bundle) -> None:
    """Unrotated, a disturbance of 1e-6 comes back as 0.04 nats."""
    assert bundle.manifest.parity["noise_floor_kl"] <= 0.01
