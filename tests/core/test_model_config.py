import json
from dataclasses import replace

import pytest

from llama_edge.core.errors import ConfigError
from llama_edge.core.model_config import LinearRopeScaling, ModelConfig, RopeScaling
from llama_edge.core.recipe import Recipe, Rotation, RotationLearning, Rounding
from llama_edge.quantize import W4A8_DISTILLED as DISTILLED
from tests.conftest import DEBUG_CONFIG


def test_json_and_back_is_the_same_config() -> None:
    plain = replace(DEBUG_CONFIG, rope_scaling=None)
    divided = replace(DEBUG_CONFIG, rope_scaling=LinearRopeScaling(factor=2.5))
    for config in (DEBUG_CONFIG, plain, divided):
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_widths_of_all_heads() -> None:
    assert DEBUG_CONFIG.query_size == 96
    assert DEBUG_CONFIG.key_value_size == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; an integer from 1"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"vocab_size": 32.0}, r"vocab_size is 32\.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"head_dim": "64"}, "head_dim is '64'"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"num_key_value_heads": 4}, "6 is not a multiple of num_key_value_heads 4"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ({"rope_scaling": {"factor": 8.0}}, "missing 3 required"),
        ({"rope_scaling": [8.0]}, "must be a mapping"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "factor is 0.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "missing 1 required"),
        ({"down_proj_rotation": [64]}, r"\(64,\); two orders .* 160, or one order that divides it"),
        ({"down_proj_rotation": [8, 16]}, r"down_proj_rotation is \(8, 16\)"),
        ({"down_proj_rotation": [1, 8, 20]}, r"down_proj_rotation is \(1, 8, 20\)"),
        ({"down_proj_rotation": [0]}, r"down_proj_rotation is \(0,\)"),
        ({"down_proj_rotation": [16.0]}, r"down_proj_rotation is \(16\.0,\)"),
        ({"down_proj_rotation": []}, r"down_proj_rotation is \(\)"),
        ({"down_proj_rotation": 16}, "'int' object is not iterable"),
        ({"mixture_of_experts": 8}, "unexpected keyword argument 'mixture_of_experts'"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json({**DEBUG_CONFIG.to_json(), **change})


@pytest.mark.parametrize("orders", [(16,), (20,), (160,), (8, 20), None])
def test_a_rotation_of_down_proj_is_read_as_it_was_written(orders: tuple[int, ...] | None) -> None:
    config = replace(DEBUG_CONFIG, down_proj_rotation=orders)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_missing_field_is_named() -> None:
    fields = DEBUG_CONFIG.to_json()
    del fields["rope_theta"]
    with pytest.raises(ConfigError, match="rope_theta"):
        ModelConfig.from_json(fields)


@pytest.mark.parametrize("value", ["text", [1, 2], 3, None])
def test_a_config_that_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        ModelConfig.from_json(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 0.0}, "factor is 0.0"),
        ({"factor": float("inf")}, "factor is inf"),
        ({"low_freq_factor": 4.0}, "low_freq_factor 4.0 is not below high_freq_factor 4.0"),
        ({"original_max_position_embeddings": 8192.0}, "is 8192.0; an integer"),
    ],
)
def test_a_scaling_that_would_divide_by_zero_is_refused(
    change: dict[str, float], message: str
) -> None:
    fields = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with pytest.raises(ConfigError, match=message):
        RopeScaling(**{**fields, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_bits": 3}, "weight_bits is 3"),
        ({"table_bits": "8"}, "table_bits is '8'"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": 33}, "group_size is 33"),
        ({"group_size": 32.0}, r"group_size is 32\.0"),
        ({"seed": -1}, "seed is -1; an integer from 0 to 9007199254740991"),
        ({"seed": 1 << 53}, "seed is 9007199254740992"),
        ({"seed": True}, "seed is True"),
        ({"max_fidelity_kl": 0}, "max_fidelity_kl is 0"),
        ({"max_fidelity_kl": None}, "max_fidelity_kl is None"),
    ],
)
def test_a_recipe_that_no_format_holds_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**{"name": "r", "summary": "", **change})  # type: ignore[arg-type]


R4 = Recipe(name="r", summary="", rotations=(Rotation.R4,))


def test_a_block_of_r4_is_read_as_it_was_written() -> None:
    block = replace(R4, r4_block=16)
    assert block.to_json()["r4_block"] == 16
    assert Recipe.from_json(json.loads(json.dumps(block.to_json()))) == block
    # Earlier versions know no such field, and rotate the whole width.
    assert "r4_block" not in R4.to_json()
    assert Recipe.from_json(R4.to_json()).r4_block is None


@pytest.mark.parametrize("block", [1, 0, -16, 16.0, "16", True])
def test_a_block_of_r4_that_is_no_order_is_refused(block: object) -> None:
    with pytest.raises(ConfigError, match=rf"recipe r: r4_block is {block!r}; the order of a Had"):
        Recipe.from_json({**R4.to_json(), "r4_block": block})


def test_a_block_of_r4_needs_r4() -> None:
    with pytest.raises(ConfigError, match=r"r4_block 16 needs R4 among its rotations, .* R1, R2"):
        replace(R4, rotations=(Rotation.R1, Rotation.R2), r4_block=16)


LEARNING = RotationLearning(iterations=40, sequences=2, learning_rate=1.5, momentum=0.9)
LEARNED = Recipe(
    name="r",
    summary="",
    rounding=Rounding.GPTQ,
    rotations=(Rotation.R1, Rotation.R2),
    rotation_learning=LEARNING,
)


def test_a_recipe_with_learning_is_read_as_it_was_written() -> None:
    written = json.loads(json.dumps(LEARNED.to_json()))
    assert written["rotation_learning"]["iterations"] == 40
    assert Recipe.from_json(written) == LEARNED
    written.pop("rotation_learning")  # a recipe from before there was any
    assert Recipe.from_json(written).rotation_learning is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"sequences": 1.5}, r"sequences is 1\.5"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"momentum": 1}, "momentum is 1"),
        ({"strange": 1}, "strange"),
    ],
)
def test_learning_that_goes_nowhere_is_refused(change: dict[str, object], message: str) -> None:
    written = LEARNED.to_json()
    written["rotation_learning"].update(change)
    with pytest.raises(ConfigError, match=message):
        Recipe.from_json(written)


def test_learning_needs_rotations_and_text_and_rounded_activations() -> None:
    with pytest.raises(ConfigError, match="R1 and R2 among its rotations, which are: R1"):
        replace(LEARNED, rotations=(Rotation.R1,))
    with pytest.raises(ConfigError, match="goes with rounding gptq; it is nearest"):
        replace(LEARNED, rounding=Rounding.NEAREST)
    with pytest.raises(ConfigError, match="activation_bits 8 is needed"):
        replace(LEARNED, activation_bits=None)


def test_a_recipe_with_distillation_is_read_as_it_was_written() -> None:
    written = json.loads(json.dumps(DISTILLED.to_json()))
    assert written["distillation"]["scale_rate"] == 2e-4
    assert Recipe.from_json(written) == DISTILLED
    written.pop("distillation")  # a recipe from before there was any
    assert Recipe.from_json(written).distillation is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; a whole number of at least 1"),
        ({"sequences": 1.5}, r"sequences is 1\.5"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"texts": -1}, "texts is -1"),
        ({"warm_up": -1}, "warm_up is -1; a whole number of at least 0"),
        ({"scale_rate": 0}, "scale_rate is 0; a positive number"),
        ({"scale_rate": -1e-4}, r"scale_rate is -0\.0001; a number from 0 to 0\.1"),
        ({"norm_rate": 1.0}, r"norm_rate is 1\.0; a number from 0 to 0\.1"),
        ({"rotation_rate": float("nan")}, "rotation_rate is nan"),
        ({"averaging": 1}, "averaging is 1; a number from 0 to below 1"),
        ({"strange": 1}, "strange"),
    ],
)
def test_distillation_that_trains_nothing_is_refused(
    change: dict[str, object], message: str
) -> None:
    written = DISTILLED.to_json()
    written["distillation"].update(change)
    with pytest.raises(ConfigError, match=message):
        Recipe.from_json(written)


def test_distillation_needs_text() -> None:
    with pytest.raises(ConfigError, match="goes with rounding gptq; it is nearest"):
        replace(DISTILLED, rounding=Rounding.NEAREST, extra_bytes=0.0)


def test_what_a_recipe_has_not_is_not_written() -> None:
    """So that earlier versions read it."""
    written = replace(DISTILLED, distillation=None).to_json()
    assert "distillation" not in written
    assert Recipe.from_json(written).distillation is None
    assert Recipe.from_json({**written, "distillation": None}).distillation is None
    assert DISTILLED.to_json()["distillation"]["steps"] > 0
