"""The same weights, tokenizer and template in three forms are the same model."""

from pathlib import Path

import pytest

from llama_edge.checkpoints import FORMS, checkpoint_form, load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.progress import SilentProgress
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from tests.checkpoint_writers import (
    LLAMA32_CONFIG,
    llama3_text,
    random_weights,
    write_gguf,
    write_meta,
)


@pytest.fixture(scope="module")
def forms(llama32_shaped: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("forms")
    weights = random_weights(LLAMA32_CONFIG)
    paths = {
        "huggingface": llama32_shaped,
        "meta": write_meta(folder / "meta", LLAMA32_CONFIG, weights, shards=2),
        "gguf": write_gguf(folder / "model.gguf", LLAMA32_CONFIG, weights, llama3_text()),
    }
    for form, path in paths.items():
        assert checkpoint_form(path) == form
    return {form: load_checkpoint(str(path)) for form, path in paths.items()}


def test_every_form_is_tried(forms: dict[str, Checkpoint]) -> None:
    assert list(forms) == list(FORMS)


@pytest.mark.parametrize("form", list(FORMS))
def test_config_and_text_are_the_same(forms: dict[str, Checkpoint], form: str) -> None:
    assert forms[form].config == LLAMA32_CONFIG
    assert forms[form].text == forms["huggingface"].text
    assert forms[form].text.eos_token_ids == (128001, 128008, 128009)


def test_the_quantized_checkpoint_is_the_same_byte_for_byte(
    forms: dict[str, Checkpoint], tmp_path: Path
) -> None:
    written = {}
    for form, checkpoint in forms.items():
        folder = tmp_path / form
        folder.mkdir()
        quantize_checkpoint(checkpoint, W4A8_RTN, folder, SilentProgress())
        written[form] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"weights.safetensors", "quantization.json"} < written["meta"].keys()
    assert written["meta"] == written["huggingface"]
    assert written["gguf"] == written["huggingface"]


def test_what_is_no_checkpoint_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*params\.json.*GGUF"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("model", ["nowhere", "/no/such/folder", "a/b/c", "", "~/model"])
def test_a_name_that_means_nothing(model: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(model)
