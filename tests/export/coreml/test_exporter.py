from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.exporter import CoreMLExporter
from llama_edge.core.artifact import KVCacheDtype, PrefillLengths
from llama_edge.core.errors import ConfigError, OutputError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from tests.export.coreml.conftest import lower


@pytest.mark.parametrize("max_context", [0, -1, 513])
def test_a_context_beyond_the_models_positions(
    debug_quantized: QuantizedCheckpoint, max_context: int, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="this model holds 1 to 512 tokens"):
        lower(debug_quantized, tmp_path, max_context)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LowerOptions(accuracy_level=0), "--accuracy-level 0 belongs to the onnx target"),
        (LowerOptions(kv_cache=KVCacheDtype.INT8), "--kv-cache int8 belongs to another"),
    ],
)
def test_options_of_other_targets(
    debug_quantized: QuantizedCheckpoint, options: LowerOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        CoreMLExporter().check_supported(debug_quantized.config, debug_quantized.recipe, options)


def test_fixed_prefill_needs_a_context_that_holds_it(debug_quantized: QuantizedCheckpoint) -> None:
    options = LowerOptions(max_context=63, prefill=PrefillLengths.FIXED)
    with pytest.raises(ConfigError, match="max_context is 63; --prefill fixed takes 64"):
        CoreMLExporter().check_supported(debug_quantized.config, debug_quantized.recipe, options)


def test_every_kind_of_activation_is_taken(debug_quantized: QuantizedCheckpoint) -> None:
    for bits in (8, None):
        recipe = replace(debug_quantized.recipe, activation_bits=bits)
        CoreMLExporter().check_supported(debug_quantized.config, recipe, LowerOptions())


def test_recipes_that_do_not_fit(debug_quantized: QuantizedCheckpoint) -> None:
    recipe = replace(debug_quantized.recipe, weight_bits=8)
    with pytest.raises(ConfigError, match="8-bit linears; the Core ML backend writes 4-bit ones"):
        CoreMLExporter().check_supported(debug_quantized.config, recipe, LowerOptions())


def test_a_full_disk_is_noticed_before_the_work(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("llama_edge.core.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"needs .* MiB"):
        lower(debug_quantized, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_programs_of_the_process_change_no_byte(
    debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    written = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        artifact = CoreMLExporter().lower(debug_quantized, folder, LowerOptions(), SilentProgress())
        written.append((artifact.path.parent / "Data/com.apple.CoreML/model.mlmodel").read_bytes())

        @mb.program(input_specs=[mb.TensorSpec((2,))])  # type: ignore[untyped-decorator]
        def other(x: Any) -> Any:  # noqa: ANN401
            return mb.cumsum(x=x, axis=0)

    assert written[0] == written[1]
