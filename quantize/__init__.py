"""Quantization recipes, and the stage that turns a `Checkpoint` into a `QuantizedCheckpoint`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from llama_edge.core.errors import UnknownNameError
from llama_edge.core.recipe import (
    META_QAT,
    META_SPINQUANT,
    Distillation,
    Recipe,
    Rotation,
    RotationLearning,
    Rounding,
    Scales,
)

W4A8_RTN: Final = Recipe(
    name="w4a8-rtn",
    summary=(
        "int4 block linears, symmetric, group 32; int8 embedding and lm_head, one scale per row; "
        "int8 dynamic activations; round to nearest"
    ),
)

W4A8_GPTQ: Final = replace(
    W4A8_RTN,
    name="w4a8-gptq",
    summary="as w4a8-rtn, with searched scales, and GPTQ on calibration text",
    scales=Scales.MSE,
    rounding=Rounding.GPTQ,
)
W4A8_HADAMARD: Final = replace(
    W4A8_GPTQ,
    name="w4a8-hadamard",
    summary="as w4a8-gptq, after Hadamard rotations R1, R2 and R4, without training",
    rotations=(Rotation.R1, Rotation.R2, Rotation.R4),
    max_fidelity_kl=0.3,
)
W4A8_SPINQUANT: Final = replace(
    W4A8_HADAMARD,
    name="w4a8-spinquant",
    summary="as w4a8-hadamard, with R1 and R2 learned on the calibration text",
    rotation_learning=RotationLearning(iterations=40, sequences=2, learning_rate=1.5, momentum=0.9),
)
W4A8_MIXED: Final = replace(
    W4A8_HADAMARD,
    name="w4a8-mixed",
    summary=(
        "as w4a8-hadamard, with the block linears that matter most in int8, for 5 % more bytes"
    ),
    extra_bytes=0.05,
)
#: About a million tokens: each of the texts' is seen some ten times.
W4A8_DISTILLED: Final = replace(
    W4A8_MIXED,
    name="w4a8-distilled",
    summary=(
        "as w4a8-mixed, with scales and norm weights then trained against full precision; for "
        "--device cuda or mps, on neither of which anybody has measured it"
    ),
    distillation=Distillation(
        steps=512,
        sequences=8,
        max_epochs=12,
        texts=3,
        scale_rate=2e-4,
        norm_rate=2e-4,
        rotation_rate=1e-6,
        warm_up=32,
        averaging=0.98,
    ),
)
W4_HADAMARD: Final = replace(
    W4A8_HADAMARD,
    name="w4-hadamard",
    summary="weight-only: as w4a8-hadamard, with activations in floating point",
    activation_bits=None,
)
W4_HADAMARD_SMALL: Final = replace(
    W4_HADAMARD,
    name="w4-hadamard-small",
    summary=(
        "as w4-hadamard, with int4 embedding and lm_head: the smallest Core ML package, and some "
        "0.09 more KL on the embedded model; for ios alone"
    ),
    table_bits=4,
)
#: The codes of Meta's own releases, kept; chosen by the checkpoint, never by name alone.
W4A8_META_SPINQUANT: Final = replace(
    W4A8_RTN,
    name=META_SPINQUANT,
    summary="the values of Meta's SpinQuant checkpoints, unchanged; chosen by the checkpoint",
    scales=Scales.GIVEN,
    rounding=Rounding.GIVEN,
    rotations=(Rotation.R1, Rotation.R2, Rotation.R4),
    max_fidelity_kl=0.3,
)
W4A8_META_QAT: Final = replace(
    W4A8_META_SPINQUANT,
    name=META_QAT,
    summary="the values of QAT checkpoints without adapters, unchanged; chosen by the checkpoint",
    rotations=(),
    max_fidelity_kl=1.0,
)

RECIPES: Final[Mapping[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        W4A8_RTN,
        W4A8_GPTQ,
        W4A8_HADAMARD,
        W4A8_SPINQUANT,
        W4A8_MIXED,
        W4A8_DISTILLED,
        W4_HADAMARD,
        W4_HADAMARD_SMALL,
        W4A8_META_SPINQUANT,
        W4A8_META_QAT,
    )
}
#: What keeps the model best for the time that a person waits.
DEFAULT_RECIPE: Final = W4A8_MIXED.name


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UnknownNameError: There is none; the message lists those that are.
    """
    if name not in RECIPES:
        raise UnknownNameError(f"recipe {name!r} is unknown; choose from: {', '.join(RECIPES)}")
    return RECIPES[name]
