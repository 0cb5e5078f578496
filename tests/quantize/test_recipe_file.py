"""Recipes in files: what is taken of the base, what is refused, and the published schema."""

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_edge.core.errors import ConfigError, UnknownNameError, UsageError
from llama_edge.core.recipe import MAX_SEED, Distillation, Recipe, RotationLearning, Rounding
from llama_edge.quantize import (
    RECIPES,
    W4A8_DISTILLED,
    W4A8_GPTQ,
    W4A8_META_QAT,
    W4A8_MIXED,
    W4A8_RTN,
    W4A8_SPINQUANT,
)
from llama_edge.quantize.recipe_file import (
    MAX_RECIPE_BYTES,
    SCHEMA_FILE,
    RecipeFile,
    find_recipe,
    read_recipe,
    recipe_file,
    recipe_schema,
)

SCHEMA = Path(__file__).parents[2] / "docs" / SCHEMA_FILE
FREE = [one for one in RECIPES.values() if one.rounding is not Rounding.GIVEN]
#: Nothing is left out, and nothing is a built-in recipe's.
WHOLE: dict[str, Any] = json.loads(json.dumps({**recipe_file(W4A8_SPINQUANT), "name": "my-recipe"}))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def run(value: object) -> Path:
        path = tmp_path / "own.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return run


Write = Callable[[object], Path]


def test_a_file_has_the_fields_of_a_recipe() -> None:
    names = {field.encode_name for field in msgspec.structs.fields(RecipeFile)}
    assert names - {"$schema", "base"} == {field.name for field in fields(Recipe)}
    for name, kind in (("Learning", RotationLearning), ("Training", Distillation)):
        found = recipe_schema()["$defs"][name]["properties"]
        assert list(found) == [field.name for field in fields(kind)]


@pytest.mark.parametrize("recipe", FREE, ids=lambda one: one.name)
def test_a_printed_recipe_is_read_as_it_is(recipe: Recipe, write: Write) -> None:
    assert read_recipe(write(recipe_file(recipe))) == recipe
    # As a bundle's manifest has it, and under a seed of its own.
    assert read_recipe(write(replace(recipe, seed=7).to_json())) == replace(recipe, seed=7)


def test_what_is_left_out_is_the_bases(write: Write) -> None:
    found = read_recipe(write({"base": "w4a8-spinquant", "name": "mine", "seed": 5}))
    summary = "as w4a8-spinquant, with other seed"
    assert found == replace(W4A8_SPINQUANT, name="mine", summary=summary, seed=5)
    value = {"base": "w4a8-spinquant", "name": "mine", "rotation_learning": None, "summary": "s"}
    expected = replace(W4A8_SPINQUANT, name="mine", summary="s", rotation_learning=None)
    assert read_recipe(write(value)) == expected
    same = read_recipe(write({"base": "w4a8-rtn", "name": "mine"}))
    assert same == replace(W4A8_RTN, name="mine", summary="as w4a8-rtn")


def test_without_a_base_the_algorithm_is_spelled_out(write: Write) -> None:
    value: dict[str, object] = {"name": "mine", "summary": "s", "rotations": ["R4", "R1", "R2"]}
    value |= {"scales": "searched", "rounding": "gptq"}
    found = read_recipe(write(value))
    rotations = RECIPES["w4a8-hadamard"].rotations
    assert found == replace(W4A8_GPTQ, name="mine", summary="s", rotations=rotations)
    for name in ("rotations", "rounding", "scales", "summary"):
        lacking = {key: one for key, one in value.items() if key != name}
        with pytest.raises(ConfigError, match=f"own.json: {name} is missing, and there is no base"):
            read_recipe(write(lacking))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strange": 1}, "unknown field strange; the fields are .*group_size.*a file to start"),
        ({"name": None}, "name is null; needed: 1 to 64 of"),
        ({"name": "../up"}, r'name is "\.\./up"; needed: 1 to 64 of'),
        ({"name": "a\n"}, "name ends with a line break"),
        ({"name": "a" * 65}, "needed: 1 to 64 of"),
        ({"name": "w4a8-rtn"}, "a built-in recipe whose .* is .*, not .*; give this one a name"),
        ({"summary": ""}, 'summary is ""; needed: one line'),
        ({"base": "w5"}, 'base is "w5"; a recipe to start from is needed: w4a8-rtn, '),
        ({"base": "w4a8-meta-qat"}, 'base is "w4a8-meta-qat"; a recipe to start from'),
        ({"weight_bits": 3}, "weight_bits is 3; needed: 4 or 8"),
        ({"weight_bits": 4.0}, r"weight_bits is 4\.0; needed: 4 or 8"),
        ({"weight_bits": True}, "weight_bits is true; needed: 4 or 8"),
        ({"table_bits": "8"}, 'table_bits is "8"; needed: 8 or 4'),
        ({"activation_bits": 16}, "activation_bits is 16; needed: 8.*null"),
        ({"group_size": 33}, "group_size is 33; needed: an even integer"),
        ({"group_size": 0}, "group_size is 0; needed: an even integer"),
        ({"extra_bytes": 1.5}, r"extra_bytes is 1\.5; needed: from 0 to 1"),
        ({"scales": "given"}, 'scales is "given"; needed: widest: clip nothing; or searched'),
        ({"rounding": "given"}, 'rounding is "given"; needed: nearest; or gptq'),
        ({"rotations": ["R1", "R3"]}, r'rotations\[1\] is "R3"; needed: a list of R1, R2 and R4'),
        ({"rotations": ["R1", "R1"]}, "rotations names R1 twice"),
        ({"rotations": "R1"}, 'rotations is "R1"; needed: a list'),
        ({"rotations": ["R1"]}, "rotation_learning needs R1 and R2 among its rotations"),
        ({"rotation_learning": 1}, "rotation_learning is 1; needed: how R1 and R2 are learned"),
        ({"rotation_learning": {}}, "rotation_learning: missing required field iterations; the"),
        ({"seed": -1}, "seed is -1; needed: an integer from 0 to 9007199254740991"),
        ({"seed": MAX_SEED + 1}, "seed is 9007199254740992; needed: an integer from 0"),
        ({"max_fidelity_kl": 0}, "max_fidelity_kl is 0; needed: a number above 0"),
        ({"extra_bytes": 0.1, "weight_bits": 8}, "recipe my-recipe: extra_bytes 0.1 makes 8-bit"),
    ],
)
def test_a_field_that_is_not_right(change: dict[str, object], message: str, write: Write) -> None:
    path = write({**WHOLE, **change})
    with pytest.raises(ConfigError, match=message) as caught:
        find_recipe(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.exit_code == 3


def test_a_field_of_the_learning_that_is_not_right(write: Write) -> None:
    learning = {**WHOLE["rotation_learning"]}
    value = {**WHOLE, "rotation_learning": {**learning, "momentum": 1}}
    with pytest.raises(ConfigError, match=r"rotation_learning\.momentum is 1; needed: from 0 to"):
        read_recipe(write(value))
    value = {**WHOLE, "rotation_learning": {**learning, "steps": 1}}
    with pytest.raises(ConfigError, match="rotation_learning: contains unknown field steps; the f"):
        read_recipe(write(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 0}, r"distillation\.sequences is 0; needed: at least 1: .* one step sees"),
        ({"steps": 1.5}, r"distillation\.steps is 1\.5; needed: an integer of at least 1"),
        ({"scale_rate": 0}, r"distillation\.scale_rate is 0; needed: a number above 0"),
        ({"norm_rate": 0.2}, r"distillation\.norm_rate is 0\.2; needed: from 0 to 0\.1"),
        ({"averaging": 1}, r"distillation\.averaging is 1; needed: from 0 to below 1"),
        ({"momentum": 0}, "distillation: contains unknown field momentum; the fields are steps, "),
    ],
)
def test_a_field_of_the_distillation_that_is_not_right(
    change: dict[str, object], message: str, write: Write
) -> None:
    value = {**recipe_file(W4A8_DISTILLED), "name": "mine"}
    assert read_recipe(write(value)) == replace(W4A8_DISTILLED, name="mine")
    with pytest.raises(ConfigError, match=message):
        read_recipe(write({**value, "distillation": {**value["distillation"], **change}}))


def test_a_distillation_that_is_not_wanted(write: Write) -> None:
    value: dict[str, object] = {"base": "w4a8-distilled", "name": "mine", "summary": "s"}
    value["distillation"] = None
    expected = replace(W4A8_DISTILLED, name="mine", summary="s", distillation=None)
    assert read_recipe(write(value)) == expected
    del value["distillation"]
    value |= {"rounding": "nearest", "extra_bytes": 0}
    with pytest.raises(ConfigError, match="distillation needs calibration text"):
        read_recipe(write(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not readable as JSON"),
        (b"[]", "holds a list; a JSON object is needed"),
        (b'{"name": "a", "name": "b"}', "the key 'name' is there twice"),
        (b'{"extra_bytes": NaN}', "a finite number is needed"),
        (b'{"extra_bytes": 1e999}', "a finite number is needed"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "nested more than 64 levels"),
        (b'{"a": ' * 9000 + b"1" + b"}" * 9000, "nested more than 64 levels"),
        (b'{"name": "\xff"}', "is not UTF-8 text"),
        ('{"name": "a"}'.encode("utf-16"), "is saved as UTF-16"),
        (b'{"name": "' + b"a" * MAX_RECIPE_BYTES + b'"}', "at most 65536 are read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_a_hostile_file_is_a_message(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        find_recipe(str(path))
    assert len(str(caught.value)) < 1000


def test_a_name_or_a_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write({"base": "w4a8-rtn", "name": "mine"})
    (tmp_path / "w4a8-gptq").write_bytes(path.read_bytes())
    assert find_recipe("w4a8-gptq") is W4A8_GPTQ  # a known name comes first
    (tmp_path / "noend").write_bytes(path.read_bytes())
    assert find_recipe("noend").name == find_recipe("own.json").name == "mine"
    with pytest.raises(ConfigError, match=r"absent\.json: the file is missing"):
        find_recipe("absent.json")
    (tmp_path / "folder").mkdir()
    for unknown in ("w5", "folder", "n" * 300, "a\0b"):
        with pytest.raises(UnknownNameError, match=r"choose from: w4a8-rtn, .*; or give the path"):
            find_recipe(unknown)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe: is a named pipe; a regular file is needed"):
        find_recipe("pipe")


def test_values_that_came_with_a_checkpoint_are_in_no_file() -> None:
    with pytest.raises(UsageError, match="keeps the values that a checkpoint came with"):
        recipe_file(W4A8_META_QAT)


def test_the_published_schema_is_generated() -> None:
    """`llama-edge recipes --schema > docs/recipe-v1.schema.json`."""
    assert json.loads(SCHEMA.read_text("utf-8")) == recipe_schema()
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda one: one.name)
def test_the_schema_takes_every_recipe_that_a_file_can_ask_for(recipe: Recipe) -> None:
    value = json.loads(json.dumps(recipe.to_json()))
    assert validator().is_valid(value) is (recipe.rounding is not Rounding.GIVEN)
    assert validator().is_valid({"base": recipe.name, "name": "mine"})


#: One field and a value for it, right or wrong.
CHANGES = st.one_of(
    st.tuples(
        st.sampled_from([*WHOLE, "base", "strange"]),
        st.one_of(
            st.sampled_from([None, True, "", "R1", "gptq", "widest", "w4a8-rtn", [], ["R1", "R4"]]),
            st.sampled_from([["R1", "R1"], {}, {**WHOLE["rotation_learning"], "momentum": 1}]),
            st.integers(-2, 80),
            st.sampled_from([0.5, 1.5, MAX_SEED, MAX_SEED + 1, -0.5]),
        ),
    )
)


@settings(max_examples=400, deadline=None)
@given(st.lists(CHANGES, max_size=3), st.sets(st.sampled_from([*WHOLE]), max_size=4))
def test_the_schema_and_the_reader_agree(changes: list[Any], removed: set[str]) -> None:
    """The validator is not ours; what one field says of another is beyond a schema."""
    value = {key: one for key, one in {**WHOLE, **dict(changes)}.items() if key not in removed}
    if isinstance(value.get("base"), str) and value["base"] not in RECIPES:
        return
    accepted = validator().is_valid(value)
    try:
        found = msgspec.convert(value, RecipeFile)
    except msgspec.ValidationError:
        assert not accepted, value
        return
    try:
        found.recipe()
    except ConfigError as error:
        assert accepted is ("is missing" not in str(error)), value
    else:
        assert accepted, value


def test_mixed_precision_of_another_budget_is_another_recipe(write: Write) -> None:
    value = {"base": "w4a8-mixed", "name": "w4a8-mixed", "extra_bytes": 0.2}
    with pytest.raises(ConfigError, match=r"whose extra_bytes is 0\.05, not 0\.2; give this one a"):
        read_recipe(write(value))
    assert read_recipe(write({**value, "extra_bytes": 0.05})) == W4A8_MIXED
