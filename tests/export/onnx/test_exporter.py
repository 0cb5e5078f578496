from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.core.errors import ConfigError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.types import QuantizedCheckpoint
from llama_edge.export.base import LowerOptions
from llama_edge.export.onnx.exporter import OnnxExporter


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
        OnnxExporter().requires(debug_quantized, LowerOptions(max_context=256, accuracy_level=3))


def test_recipes_that_do_not_fit(debug_quantized: QuantizedCheckpoint) -> None:
    def requires(level: int, **changes: int) -> None:
        recipe = replace(debug_quantized.recipe, **changes)  # type: ignore[arg-type]
        options = LowerOptions(max_context=256, accuracy_level=level)
        OnnxExporter().requires(replace(debug_quantized, recipe=recipe), options)

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
        OnnxExporter().requires(
            replace(debug_quantized, config=config), LowerOptions(max_context=256)
        )
