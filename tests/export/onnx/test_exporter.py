import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

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


def attention_runs(head_dim: int) -> bool:
    """Whether ONNX Runtime computes one head of GroupQueryAttention with RoPE."""
    node = helper.make_node(
        "GroupQueryAttention",
        ["qkv", "", "", "past_k", "past_v", "last", "total", "cos", "sin"],
        ["out", "k", "v"],
        domain="com.microsoft",
        num_heads=1,
        kv_num_heads=1,
        do_rotary=1,
    )
    shapes = {
        "qkv": (1, 1, 3 * head_dim),
        "past_k": (1, 1, 0, head_dim),
        "past_v": (1, 1, 0, head_dim),
        "cos": (8, head_dim // 2),
        "sin": (8, head_dim // 2),
    }
    floats = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    integers = [helper.make_tensor_value_info(name, 6, [1]) for name in ("last", "total")]
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in ("out", "k", "v")]
    graph = helper.make_graph([node], "attention", floats + integers, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    feed = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    feed |= {"last": np.zeros(1, np.int32), "total": np.ones(1, np.int32)}
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        session.run(None, feed)
    except (Fail, InvalidArgument) as error:
        assert re.search("head_size (must|shall) be a multiple of (8|16)", str(error))
        return False
    return True


@pytest.mark.parametrize("head_dim", [4, 8, 12, 16, 20, 24, 96, 100])
def test_heads_that_the_attention_kernel_refuses(
    debug_quantized: QuantizedCheckpoint, head_dim: int
) -> None:
    def check() -> None:
        OnnxExporter().check_supported(
            replace(debug_quantized.config, head_dim=head_dim),
            debug_quantized.recipe,
            LowerOptions(max_context=256),
        )

    if attention_runs(head_dim):
        check()
        return
    with pytest.raises(ConfigError, match=f"head_dim {head_dim} is not a multiple of 16, which"):
        check()
