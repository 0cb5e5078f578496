"""A recipe as a JSON file: a built-in one with changes, or all that decides about one.

`docs/recipe-v1.schema.json` is generated from `RecipeFile`, and the reader applies `RecipeFile`.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llama_edge.core.errors import ConfigError, UnknownNameError, UsageError
from llama_edge.core.json_files import read_json_object
from llama_edge.core.recipe import MAX_RATE, MAX_SEED, Recipe, Rounding
from llama_edge.quantize import RECIPES

SCHEMA_VERSION: Final = 1
SCHEMA_FILE: Final = f"recipe-v{SCHEMA_VERSION}.schema.json"
SCHEMA_URL: Final = f"https://llama-edge.github.io/llama-edge/{SCHEMA_FILE}"
#: A recipe with every field has about 1 KB.
MAX_RECIPE_BYTES: Final = 64 << 10
#: Without a base: what `Recipe` has no default for, and what decides which algorithm runs.
_NEEDED: Final = ("rotations", "rounding", "scales", "summary")
#: What a file may start from; the others keep values that a checkpoint came with.
_BASES: Final = tuple(name for name, one in RECIPES.items() if one.rounding is not Rounding.GIVEN)
_START: Final = "`llama-edge recipes NAME --json` prints a file to start from"
#: Of a value in a message.
_SHOWN: Final = 60


class Learning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How R1 and R2 are learned from their Hadamard start (SpinQuant, section 3.2)."""

    iterations: Annotated[int, Meta(ge=1, description="an integer of at least 1")]
    sequences: Annotated[
        int,
        Meta(ge=1, description="at least 1: calibration sequences that one iteration sees"),
    ]
    learning_rate: Annotated[
        float, Meta(gt=0, description="a number above 0; it falls linearly to zero")
    ]
    momentum: Annotated[
        float,
        Meta(ge=0, lt=1, description="from 0 to below 1: what is kept of the step before"),
    ]


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How scales and norm weights are trained towards full precision after rounding."""

    steps: Annotated[
        int, Meta(ge=1, description="an integer of at least 1: updates of what is trained")
    ]
    sequences: Annotated[
        int, Meta(ge=1, description="at least 1: calibration sequences that one step sees")
    ]
    max_epochs: Annotated[
        int, Meta(ge=1, description="at least 1: how often the calibration text may be seen")
    ]
    texts: Annotated[
        int,
        Meta(
            ge=1,
            description="at least 1: texts that the model writes itself, each with the next seed, "
            "where none is given",
        ),
    ]
    scale_rate: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_RATE,
            description=f"a number above 0, at most {MAX_RATE}: relative change of a scale a step",
        ),
    ]
    norm_rate: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_RATE,
            description=f"from 0 to {MAX_RATE}: relative change of a norm weight a step; 0 keeps "
            "them",
        ),
    ]
    rotation_rate: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_RATE,
            description=f"from 0 to {MAX_RATE}: change of an element of the rotation before a tied "
            "head a step; 0 keeps it",
        ),
    ]
    warm_up: Annotated[
        int,
        Meta(
            ge=0,
            description="an integer of at least 0: steps over which the rates rise from zero",
        ),
    ]
    averaging: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="from 0 to below 1: the share of the running average that a step keeps; 0 "
            "takes the last step's values",
        ),
    ]


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe in a file; what is left out is the base's."""

    schema: Annotated[str, Meta(description="the URL of this schema, for editors")] | UnsetType = (
        msgspec.field(default=UNSET, name="$schema")
    )
    base: (
        Annotated[str, Meta(description="a built-in recipe, of which fields left out are taken")]
        | UnsetType
    ) = UNSET
    name: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            description="1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or digit; the "
            "manifest and reports show it",
        ),
    ]
    summary: (
        Annotated[
            str,
            Meta(min_length=1, max_length=500, description="one line of 1 to 500 characters"),
        ]
        | UnsetType
    ) = UNSET
    weight_bits: (
        Annotated[Literal[4, 8], Meta(description="4 or 8: bits of the block linears' values")]
        | UnsetType
    ) = UNSET
    group_size: (
        Annotated[
            int,
            Meta(
                ge=2,
                multiple_of=2,
                description="an even integer: inputs of a block linear that share one scale",
            ),
        ]
        | UnsetType
    ) = UNSET
    table_bits: (
        Annotated[
            Literal[4, 8],
            Meta(
                description="8 or 4: bits of embedding and LM head; 8 has one scale per row, 4 one "
                "per group"
            ),
        ]
        | UnsetType
    ) = UNSET
    activation_bits: (
        Annotated[
            Literal[8, None],
            Meta(description="8: what a linear multiplies is rounded to int8; or null: it is not"),
        ]
        | UnsetType
    ) = UNSET
    extra_bytes: (
        Annotated[
            float,
            Meta(
                ge=0,
                le=1,
                description="from 0 to 1: the share of the block linears' bytes that 8-bit ones "
                "among them may add; above 0 with weight_bits 4 and rounding gptq only",
            ),
        ]
        | UnsetType
    ) = UNSET
    scales: (
        Annotated[
            Literal["widest", "searched"],
            Meta(description="widest: clip nothing; or searched: lose least squared error"),
        ]
        | UnsetType
    ) = UNSET
    rounding: (
        Annotated[
            Literal["nearest", "gptq"],
            Meta(description="nearest; or gptq: GPTQ on calibration text"),
        ]
        | UnsetType
    ) = UNSET
    rotations: (
        Annotated[
            tuple[Literal["R1", "R2", "R4"], ...],
            Meta(
                max_length=3,
                description="a list of R1, R2 and R4, each at most once",
                extra_json_schema={"uniqueItems": True},
            ),
        ]
        | UnsetType
    ) = UNSET
    r4_block: (
        Annotated[
            Annotated[int, Meta(ge=2)] | None,
            Meta(
                description="an integer of at least 2, the order of a Hadamard matrix: neighbouring"
                " inputs of down_proj that R4 rotates among themselves; or null: all of them"
            ),
        ]
        | UnsetType
    ) = UNSET
    rotation_learning: (
        Annotated[
            Learning | None,
            Meta(
                description="how R1 and R2 are learned, which needs both, rounding gptq and "
                "activation_bits 8; or null: they stay as they are drawn"
            ),
        ]
        | UnsetType
    ) = UNSET
    distillation: (
        Annotated[
            Training | None,
            Meta(
                description="how scales and norm weights are trained after rounding, which needs "
                "rounding gptq; or null: they stay as they are rounded"
            ),
        ]
        | UnsetType
    ) = UNSET
    seed: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=MAX_SEED,
                description=f"an integer from 0 to {MAX_SEED}, of all that is drawn at random",
            ),
        ]
        | UnsetType
    ) = UNSET
    max_fidelity_kl: (
        Annotated[
            float,
            Meta(
                gt=0,
                description="a number above 0: nats of mean KL to full precision above which an "
                "export fails",
            ),
        ]
        | UnsetType
    ) = UNSET

    def __post_init__(self) -> None:
        if self.name.endswith("\n"):  # which `$` in a pattern allows
            raise ValueError("name ends with a line break; take it out")
        if not isinstance(self.rotations, UnsetType):
            twice = [name for name in self.rotations if self.rotations.count(name) > 1]
            if twice:
                raise ValueError(f"rotations names {twice[0]} twice; once is enough")

    def recipe(self) -> Recipe:
        """With the fields of the base.

        Raises:
            ConfigError: There is no such base, a field is missing, or fields contradict each other.
        """
        given: dict[str, Any] = msgspec.to_builtins(self)
        given.pop("$schema", None)
        base = given.pop("base", None)
        if "rotations" in given:
            given["rotations"] = tuple(sorted(given["rotations"]))
        if base is None:
            missing = [name for name in _NEEDED if name not in given]
            if missing:
                raise ConfigError(
                    f"{missing[0]} is missing, and there is no base to take it from; add it, or "
                    f"a base: {', '.join(_BASES)}"
                )
            return Recipe.from_json(given)
        if base not in _BASES:
            raise ConfigError(
                f"base is {_shown(base)}; a recipe to start from is needed: {', '.join(_BASES)}"
            )
        inherited = RECIPES[base].to_json()
        changed = [name for name, value in given.items() if inherited.get(name) != value]
        others = ", ".join(name for name in changed if name not in ("name", "summary"))
        summary = f"as {base}" + (f", with other {others}" if others else "")
        return Recipe.from_json({**inherited, "summary": summary, **given})


#: Fields of a recipe file with fields of their own.
_PARTS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "rotation_learning": Learning,
    "distillation": Training,
}


def find_recipe(choice: str) -> Recipe:
    """A built-in recipe by its name, or the one in a file.

    Args:
        choice: A known name comes first; anything else that ends in `.json` or that is there is a
            file.

    Raises:
        UnknownNameError: It is neither.
        ConfigError: The file cannot be read, or holds no recipe.
    """
    if choice in RECIPES:
        return RECIPES[choice]
    path = Path(choice)
    if choice.endswith(".json") or (os.path.lexists(choice) and not path.is_dir()):
        return read_recipe(path)
    raise UnknownNameError(
        f"recipe {choice!r} is unknown; choose from: {', '.join(RECIPES)}; or give the path of a "
        f"recipe file, which ends in .json ({_START})"
    )


def read_recipe(path: Path) -> Recipe:
    """The recipe in an untrusted file.

    Raises:
        ConfigError: It cannot be read or is no JSON; a field is unknown, missing, of another type
            or out of range; or the name is a built-in recipe's, which is another.
    """
    value = read_json_object(path, ConfigError, limit=MAX_RECIPE_BYTES)
    try:
        recipe = msgspec.convert(value, RecipeFile).recipe()
        return _own_name(recipe)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_fault(value, str(error))}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _own_name(recipe: Recipe) -> Recipe:
    """A built-in recipe's name is for that recipe, under any seed.

    Raises:
        ConfigError: The recipe is another.
    """
    known = RECIPES.get(recipe.name)
    if known is None:
        return recipe
    found, expected = recipe.to_json(), known.to_json()
    for field in sorted({*found, *expected} - {"seed", "summary"}):
        if found.get(field) != expected.get(field):
            raise ConfigError(
                f"name is {_shown(recipe.name)}, a built-in recipe whose {field} is "
                f"{_shown(expected.get(field))}, not {_shown(found.get(field))}; give this one a "
                "name of its own"
            )
    return replace(known, seed=recipe.seed)


def _fault(value: Any, message: str) -> str:  # noqa: ANN401
    """What is wrong with a file's value, by what msgspec says of it."""
    reason, _, place = message.partition(" - at `$.")
    place = place.removesuffix("`")
    top, *parts_of_it = (found["properties"] for found in _definitions())
    inside = dict(zip(_PARTS, parts_of_it, strict=True))
    if reason.startswith("Object "):
        where, known = (f"{place}: ", inside[place]) if place else ("", top)
        reason = reason.removeprefix("Object ").replace("`", "")
        return f"{where}{reason[:_SHOWN]}; the fields are {', '.join(known)}; {_START}"
    if not place:
        return reason
    parts = re.findall(r"[$\w]+", place)
    for part in parts:
        value = value[int(part) if isinstance(value, list) else part]
    outer, *names = (part for part in parts if not part.isdigit())
    needed = (inside[outer][names[0]] if names else top[outer])["description"]
    return f"{place} is {_shown(value)}; needed: {needed}"


def _shown(value: object) -> str:
    """As JSON, and not too long for a message."""
    return json.dumps(value)[:_SHOWN]


def _definitions() -> list[dict[str, Any]]:
    """The schemas of `RecipeFile` and of its `_PARTS`."""
    kinds: tuple[type[msgspec.Struct], ...] = (RecipeFile, *_PARTS.values())
    _, found = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    return [found[kind.__name__] for kind in kinds]


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file, as it is published in `docs/`."""
    top, *inside = _definitions()
    for field in fields(Recipe):
        if field.default is not MISSING and field.name not in _NEEDED:
            default = f"; without a base by default {json.dumps(field.default)}"
            top["properties"][field.name]["description"] += default
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **top,
        "title": "llama-edge recipe file",
        "description": "A recipe of one's own: the fields that are given, and all others of the "
        "built-in recipe that is its base.",
        "anyOf": [{"required": ["base"]}, {"required": list(_NEEDED)}],
        "$defs": {one["title"]: one for one in inside},
    }


def recipe_file(recipe: Recipe) -> dict[str, Any]:
    """A file with every field of a recipe, as `read_recipe` takes it.

    Raises:
        UsageError: The recipe keeps values that a checkpoint came with.
    """
    if recipe.rounding is Rounding.GIVEN:
        raise UsageError(
            f"recipe {recipe.name} keeps the values that a checkpoint came with, and no file can "
            f"ask for that; choose from: {', '.join(_BASES)}"
        )
    return {"$schema": SCHEMA_URL, **recipe.to_json()}
