from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.bundle.full_precision import load_full_precision
from llama_edge.bundle.manifest import Manifest
from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import ModelConfig


def with_config(manifest: Manifest, config: ModelConfig) -> Manifest:
    return replace(manifest, model=replace(manifest.model, config=config))


def test_a_rotated_bundle_knows_the_model_it_came_from(
    debug_manifest: Manifest, debug_folder: Path
) -> None:
    config = debug_manifest.model.config
    rotated = replace(config, down_proj_rotation=(16, 10), head_rotation=True)
    found = load_full_precision(with_config(debug_manifest, rotated), str(debug_folder))
    assert found is not None
    assert found.config == config


def test_another_shape_is_refused(debug_manifest: Manifest, debug_folder: Path) -> None:
    config = replace(debug_manifest.model.config, rope_theta=20000.0)
    with pytest.raises(CheckpointError, match="give the model that the bundle was exported from"):
        load_full_precision(with_config(debug_manifest, config), str(debug_folder))


def test_a_source_that_is_not_built_in_must_be_named(debug_manifest: Manifest) -> None:
    assert load_full_precision(debug_manifest, None) is None
    source = replace(debug_manifest.model, source="smollm2-135m")
    with pytest.raises(CheckpointError, match="smollm2-135m: its config is not"):
        load_full_precision(replace(debug_manifest, model=source), None)
