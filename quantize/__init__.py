"""Quantization recipes, and the stage that turns a `Checkpoint` into a `QuantizedCheckpoint`."""

from collections.abc import Mapping
from typing import Final

from llama_edge.core.errors import UnknownNameError
from llama_edge.core.types import Recipe

W4A8_RTN: Final = Recipe(
    name="w4a8-rtn",
    summary=(
        "int4 block linears, symmetric, group 32; int8 embedding and lm_head, one scale per row; "
        "int8 dynamic activations; round to nearest"
    ),
)

RECIPES: Final[Mapping[str, Recipe]] = {W4A8_RTN.name: W4A8_RTN}
DEFAULT_RECIPE: Final = W4A8_RTN.name


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UnknownNameError: There is none; the message lists those that are.
    """
    if name not in RECIPES:
        raise UnknownNameError(f"recipe {name!r} is unknown; choose from: {', '.join(RECIPES)}")
    return RECIPES[name]
