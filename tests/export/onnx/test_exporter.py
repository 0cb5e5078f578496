from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.onnx.exporter import OnnxExporter
from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.errors import ConfigError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint


@pytest.mark.parametrize("max_context", [0, -1, 513])
def test_a_context_beyond_the_models_positions(
    debug_quantized: QuantizedCheckpoint, max_context: int, tmp_path: Path
) -> None:
    options = LowerOptions(max_context=max_context)
    with pytest.raises(ConfigError, match="this model holds 1 to 512 tokens"):
        OnnxExporter().lower(debug_quantized, tmp_path, options, SilentProgress())
    assert not list(tmp_path.iterdir())


def test_an_accuracy_level_without_a_kernel(debug_quantized: QuantizedCheckpoint) -> None:
    with pytest.raises(UsageError, match=r"choose one of \[0, 1, 4\]"):
        OnnxExporter().check_supported(
            debug_quantized.config,
            debug_quantized.recipe,
            LowerOptions(max_context=256, accuracy_level=3),
        )


def test_the_recipe_chooses_the_level(debug_quantized: QuantizedCheckpoint, tmp_path: Path) -> None:
    for activation_bits, expected in (
        (8, ActivationQuantization.INT8_PER_BLOCK),
        (None, ActivationQuantization.NONE),
    ):
        recipe = replace(debug_quantized.recipe, activation_bits=activation_bits)
        out = tmp_path / str(activation_bits)
        out.mkdir()
        artifact = OnnxExporter().lower(
            replace(debug_quantized, recipe=recipe), out, LowerOptions(), SilentProgress()
        )
        assert artifact.activation is expected


def test_a_level_coarser_than_the_recipe_is_refused(debug_quantized: QuantizedCheckpoint) -> None:
    weight_only = replace(debug_quantized.recipe, activation_bits=None)
    exporter, config = OnnxExporter(), debug_quantized.config
    exporter.check_supported(config, weight_only, LowerOptions(accuracy_level=0))
    exporter.check_supported(config, debug_quantized.recipe, LowerOptions(accuracy_level=0))
    with pytest.raises(UsageError, match="rounds activations to int8; recipe w4a8-rtn leaves"):
        exporter.check_supported(config, weight_only, LowerOptions(accuracy_level=4))


def test_recipes_that_do_not_fit(debug_quantized: QuantizedCheckpoint) -> None:
    def requires(level: int, **changes: int) -> None:
        recipe = replace(debug_quantized.recipe, **changes)  # type: ignore[arg-type]
        options = LowerOptions(max_context=256, accuracy_level=level)
        OnnxExporter().check_supported(debug_quantized.config, recipe, options)

    requires(0, group_size=16)
    for level, changes, message in (
        (4, {"group_size": 16}, "blocks of 32"),
        (0, {"group_size": 48}, "powers of two"),
        (4, {"weight_bits": 8}, "choose another recipe"),
    ):
        with pytest.raises(ConfigError, match=message):
            requires(level, **changes)


def test_a_width_that_the_tables_block_does_not_divide(
    debug_quantized: QuantizedCheckpoint,
) -> None:
    config = replace(debug_quantized.config, hidden_size=112)
    with pytest.raises(ConfigError, match="hidden_size 112"):
        OnnxExporter().check_supported(
            config, debug_quantized.recipe, LowerOptions(max_context=256)
        )
