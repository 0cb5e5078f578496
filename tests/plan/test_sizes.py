"""The planned bytes against files that were really written."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends import BACKENDS, get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import Bundle
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ConfigError, UsageError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.model_shapes import SHAPES
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Rotation
from llama_edge.formats.quantized_checkpoint import Layout
from llama_edge.models.weights import block_linear_names
from llama_edge.plan.sizes import artifact_size, block_bytes
from llama_edge.plan.workload import bundle_workload, quantized_config
from llama_edge.quantize import RECIPES, W4A8_HADAMARD, W4A8_MIXED, W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from tests.conftest import DEBUG_CONFIG, MemoryWeights

CONTEXT = 512
#: An untied model of other widths than the debug model's, with one layer more.
OTHER = replace(
    DEBUG_CONFIG,
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=8,
    intermediate_size=352,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def other_quantized(
    debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    checkpoint = replace(debug_checkpoint, config=OTHER, weights=MemoryWeights(OTHER))
    folder = tmp_path_factory.mktemp("other-quantized")
    return quantize_checkpoint(checkpoint, W4A8_RTN, folder, SilentProgress())


def written(checkpoint: QuantizedCheckpoint, backend: str, folder: Path) -> int:
    options = LowerOptions(max_context=CONTEXT)
    artifact = get_exporter(backend).lower(checkpoint, folder, options, SilentProgress())
    return artifact.size_bytes


@pytest.mark.parametrize("backend", BACKENDS)
def test_planned_size_is_the_written_one(
    backend: str, debug_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    planned = artifact_size(DEBUG_CONFIG, W4A8_RTN, backend, CONTEXT).file_bytes
    assert planned == pytest.approx(written(debug_quantized, backend, tmp_path), rel=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_planned_size_of_other_widths_and_two_tables(
    backend: str, other_quantized: QuantizedCheckpoint, tmp_path: Path
) -> None:
    size = written(other_quantized, backend, tmp_path)
    assert artifact_size(OTHER, W4A8_RTN, backend, CONTEXT).file_bytes == pytest.approx(
        size, rel=0.01
    )
    # A table too few, a context too long or a layer too many would be noticed.
    for wrong, context in (
        (replace(OTHER, tie_word_embeddings=True), CONTEXT),
        (OTHER, 2 * CONTEXT),
        (replace(OTHER, num_hidden_layers=4), CONTEXT),
    ):
        assert artifact_size(wrong, W4A8_RTN, backend, context).file_bytes != pytest.approx(
            size, rel=0.01
        )


@pytest.mark.coreml
def test_planned_size_of_int4_tables(debug_checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = replace(W4A8_RTN, name="int4-tables", activation_bits=None, table_bits=4)
    (tmp_path / "q").mkdir()
    quantized = quantize_checkpoint(debug_checkpoint, recipe, tmp_path / "q", SilentProgress())
    size = written(quantized, "coreml", tmp_path)
    planned = artifact_size(DEBUG_CONFIG, recipe, "coreml", CONTEXT)
    assert planned.file_bytes == pytest.approx(size, rel=0.01)
    wide = artifact_size(DEBUG_CONFIG, replace(recipe, table_bits=8), "coreml", CONTEXT)
    assert wide.file_bytes != pytest.approx(size, rel=0.01)
    assert planned.streamed_bytes < wide.streamed_bytes


def test_a_block_of_r4_is_one_small_matrix() -> None:
    config = SHAPES["llama-3.2-1b"].config
    full, block, none = (
        quantized_config(config, recipe)
        for recipe in (
            W4A8_HADAMARD,
            replace(W4A8_HADAMARD, r4_block=16),
            replace(W4A8_HADAMARD, rotations=(Rotation.R1, Rotation.R2)),
        )
    )
    assert block.down_proj_rotation == (16,)
    for backend in BACKENDS:
        sizes = [
            artifact_size(each, W4A8_HADAMARD, backend, CONTEXT) for each in (none, block, full)
        ]
        streamed = [size.streamed_bytes - sizes[0].streamed_bytes for size in sizes]
        assert streamed == [0, 4 * 16**2, 4 * (64**2 + 128**2)]
        files = [size.file_bytes - sizes[0].file_bytes for size in sizes]
        assert files == pytest.approx(streamed, abs=4096), "aligned to a page at most"


def test_a_block_of_r4_is_a_twelfth_of_the_products() -> None:
    shape = SHAPES["llama-3.2-1b"].config

    def products(block: int | None) -> int:
        recipe = replace(W4A8_HADAMARD, r4_block=block)
        config = quantized_config(shape, recipe)
        return bundle_workload(config, recipe, "onnx", KVCacheDtype.FLOAT32, 2048).float_macs

    assert products(None) == shape.num_hidden_layers * shape.intermediate_size * (64 + 128)
    assert products(None) == 12 * products(16)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["android_bundle", "onnx_bundle"])
def test_planned_size_of_a_real_model(bundle: str, request: pytest.FixtureRequest) -> None:
    found: Bundle = request.getfixturevalue(bundle)
    manifest = found.manifest
    artifact = get_exporter(manifest.backend).open(found.root).artifact
    planned = artifact_size(
        manifest.model.config, manifest.recipe, manifest.backend, artifact.max_context
    )
    assert planned.file_bytes == pytest.approx(artifact.size_bytes, rel=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_groups_that_are_planned_are_those_that_are_written(backend: str) -> None:
    """The plan knows them without the backend's SDK."""
    config = SHAPES["llama-3.2-1b"].config
    able = []
    for activation_bits in (8, None):
        if activation_bits is None and backend == "executorch":
            continue  # refused whatever the groups are
        for group_size in (2, 8, 16, 32, 48, 64, 96, 128, 256):
            recipe = replace(W4A8_RTN, group_size=group_size, activation_bits=activation_bits)
            with suppress(ConfigError, UsageError):
                get_exporter(backend).check_supported(config, recipe, LowerOptions())
                able.append(recipe)
            assert BACKENDS[backend].takes_groups(recipe) is (recipe in able), recipe
    assert able


def layout_bytes(layout: Layout) -> int:
    return sum(layout.matrix_bytes(name) for name in block_linear_names(layout.config))


@pytest.mark.parametrize("config", [DEBUG_CONFIG, *(shape.config for shape in SHAPES.values())])
def test_block_bytes_are_the_quantized_checkpoints(config: ModelConfig) -> None:
    plain = layout_bytes(Layout(config, W4A8_RTN))
    assert block_bytes(config, W4A8_RTN) == plain
    assert block_bytes(config, W4A8_MIXED) == pytest.approx(1.05 * plain, abs=1)


@pytest.mark.parametrize(
    ("shape", "published_mib"), [("llama-3.2-1b", 1083), ("llama-3.2-3b", 2435)]
)
def test_ours_are_smaller_than_metas(shape: str, published_mib: float) -> None:
    """bfloat16 scales, and one table where Meta's files have two."""
    for recipe in RECIPES.values():
        config = quantized_config(SHAPES[shape].config, recipe)
        for backend in BACKENDS:
            size = artifact_size(config, recipe, backend, 2048).file_bytes
            assert size / 2**20 < published_mib


def test_a_rotated_head_is_stored_and_read() -> None:
    config = SHAPES["llama-3.2-1b"].config
    plain = artifact_size(config, W4A8_RTN, "executorch", 2048)
    rotated = quantized_config(config, W4A8_HADAMARD)
    assert rotated.head_rotation
    assert rotated.down_proj_rotation is not None
    size = artifact_size(rotated, W4A8_HADAMARD, "executorch", 2048)
    added = 4 * 2048**2 + sum(4 * order**2 for order in set(rotated.down_proj_rotation))
    assert size.file_bytes - plain.file_bytes == pytest.approx(added, abs=512)
    assert size.streamed_bytes - plain.streamed_bytes == added
