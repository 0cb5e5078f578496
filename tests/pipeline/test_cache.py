"""Results of earlier runs are this user's, and are taken only as they were left."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llama_edge.core import sealed
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import OutputError
from llama_edge.core.progress import SilentProgress, Steps
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.models.weight_names import EMBEDDING
from llama_edge.pipeline.cache import CALIBRATION, QUANTIZED, cache_folder, require_cache
from llama_edge.pipeline.quantized import quantize_with_cache
from llama_edge.quantize import W4A8_GPTQ

WEIGHTS = "weights.safetensors"


class Said(SilentProgress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.remarks: list[str] = []

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.stages.append(stage)

    def remark(self, text: str) -> None:
        self.remarks.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(debug_checkpoint: Checkpoint) -> Checkpoint:
    """So short a context that it writes its calibration text at once."""
    config = replace(debug_checkpoint.config, max_position_embeddings=48)
    return replace(debug_checkpoint, config=config)


def quantize(model: Checkpoint, said: SilentProgress) -> QuantizedCheckpoint:
    return quantize_with_cache(model, W4A8_GPTQ, (), Path(), said)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def swap_rows(entry: Path) -> None:
    """One token speaks as another: every check of the model against itself holds."""
    tensors = load_file(entry / WEIGHTS)
    table = tensors[f"{EMBEDDING}.codes"]
    table[[10, 20]] = table[[20, 10]]
    save_file(tensors, entry / WEIGHTS)


def change_template(entry: Path) -> None:
    path = entry / "tokenizer_config.json"
    value = json.loads(path.read_text())
    value["chat_template"] = value["chat_template"].replace("assistant", "assistant, who lies")
    path.write_text(json.dumps(value))


def change_source(entry: Path) -> None:
    path = entry / "quantization.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source_sha256": "0" * 64}))


def replace_by_link(entry: Path) -> None:
    entry.rename(entry.with_name("elsewhere"))
    entry.symlink_to("elsewhere")


def empty(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()


def replace_by_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.touch()


CHANGES: dict[str, Callable[[Path], object]] = {
    "two rows": swap_rows,
    "the template": change_template,
    "the source": change_source,
    "cut": lambda entry: os.truncate(entry / WEIGHTS, 1000),
    "a template more": lambda entry: (entry / "chat_template.jinja").write_text("lies"),
    "no seal": lambda entry: (entry / sealed.SEAL_FILE).unlink(),
    "a link": replace_by_link,
    "a file": replace_by_file,
    "empty": empty,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_result_is_made_again(model: Checkpoint, kind: str) -> None:
    first = quantize(model, SilentProgress())
    wanted = contents(first.root)
    CHANGES[kind](first.root)
    said = Said()
    again = quantize(model, said)
    assert said.stages == ["quantize (w4a8-gptq)"]
    (remark,) = said.remarks
    assert remark.startswith(f"{first.root}: ")
    assert remark.endswith("; this result of an earlier run is made again")
    assert again.root == first.root
    assert contents(again.root) == wanted
    assert again.text == model.text
    quiet = Said()
    quantize(model, quiet)
    assert (quiet.stages, quiet.remarks) == ([], [])


def test_a_result_of_something_else_is_made_again(model: Checkpoint, cache: Path) -> None:
    """A whole entry, moved to another's name."""
    other = replace(model, config=replace(model.config, rope_theta=20000.0))
    first, second = quantize(model, SilentProgress()), quantize(other, SilentProgress())
    wanted = contents(second.root)
    shutil.rmtree(second.root)
    shutil.copytree(first.root, second.root)
    said = Said()
    assert quantize(other, said).config == other.config
    assert "was made for something else" in said.remarks[0]
    assert contents(second.root) == wanted


def test_a_changed_calibration_text_is_written_again(model: Checkpoint, cache: Path) -> None:
    first = quantize(model, SilentProgress())
    (tokens,) = cache.glob(f"{CALIBRATION}/*/tokens.safetensors")
    value = load_file(tokens)
    value["tokens"][0, 0] = 7
    save_file(value, tokens)
    said = Said()
    again = quantize(model, said)
    assert said.stages == ["write calibration text"]
    assert "tokens.safetensors is not as it was left" in said.remarks[0]
    assert again.calibration == first.calibration


def test_the_text_is_the_checkpoints(model: Checkpoint) -> None:
    """Even if somebody had sealed another one."""
    first = quantize(model, SilentProgress())
    change_template(first.root)
    sealed.seal(first.root, first.root.name)
    assert quantize(model, SilentProgress()).text == model.text


def test_each_file_is_hashed_once(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    root = quantize(model, SilentProgress()).root
    hashed: list[str] = []
    real = sealed._sha256

    def counting(folder: Path, name: str) -> str:
        if folder == root:
            hashed.append(name)
        return real(folder, name)

    monkeypatch.setattr(sealed, "_sha256", counting)
    quantize(model, SilentProgress())
    assert hashed == sorted(contents(root).keys() - {sealed.SEAL_FILE})


def modes(cache: Path) -> dict[str, int]:
    return {
        path.relative_to(cache).as_posix(): path.stat().st_mode & 0o777
        for path in (cache, cache / QUANTIZED, cache / CALIBRATION)
    }


PRIVATE = {".": 0o700, QUANTIZED: 0o700, CALIBRATION: 0o700}


def test_the_cache_is_its_owners_alone(model: Checkpoint, cache: Path) -> None:
    before = os.umask(0)
    try:
        quantize(model, SilentProgress())
    finally:
        os.umask(before)
    assert modes(cache) == PRIVATE


def test_what_others_could_write_is_taken_from_them(cache: Path) -> None:
    (cache / QUANTIZED).mkdir(parents=True)
    for path in (cache / QUANTIZED, cache):
        path.chmod(0o777)
    require_cache()
    assert modes(cache) == PRIVATE


def test_a_folder_of_the_users_is_left_as_it_is(cache: Path) -> None:
    cache.mkdir()
    (cache / "thesis.tex").touch()
    cache.chmod(0o755)
    require_cache()
    assert modes(cache) == {**PRIVATE, ".": 0o755}
    cache.chmod(0o777)
    with pytest.raises(OutputError, match=r"cache: others may write there.*`chmod go-w`"):
        require_cache()
    cache.chmod(0o1777)  # as the system's folder for temporary files
    require_cache()
    assert modes(cache) == {**PRIVATE, ".": 0o777}


@pytest.mark.parametrize("name", [QUANTIZED, CALIBRATION, "unfinished"])
def test_a_planted_link_is_not_followed(cache: Path, tmp_path: Path, name: str) -> None:
    cache.mkdir()
    (tmp_path / "victim").mkdir(0o755)
    (cache / name).symlink_to(tmp_path / "victim", target_is_directory=True)
    with pytest.raises(OutputError, match="cannot be written"):
        require_cache()
    assert (tmp_path / "victim").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_another_users_folder_is_refused(cache: Path) -> None:
    (cache / QUANTIZED).mkdir(parents=True)
    os.chown(cache / QUANTIZED, 65534, -1)
    with pytest.raises(OutputError, match="quantized: belongs to the user 65534"):
        require_cache()


def test_it_is_where_the_user_says(cache: Path) -> None:
    assert cache_folder() == cache
