import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from torch import Tensor

from llama_edge.checkpoints import load_checkpoint, load_config
from llama_edge.checkpoints.hub import (
    HubModel,
    download,
    download_adapter,
    is_hub_id,
    parse_hub_id,
    with_revision,
)
from llama_edge.core.errors import CheckpointError, UsageError
from llama_edge.models.weight_names import EMBEDDING
from tests.checkpoint_writers import random_weights, write_meta
from tests.conftest import DEBUG_CONFIG


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    httpx = pytest.importorskip("httpx2" if "httpx2" in str(HfHubHTTPError.__mro__) else "httpx")
    request = httpx.Request("GET", "https://huggingface.co/api")
    return kind("refused", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("kind", "status", "remedy"),
    [
        (GatedRepoError, 403, r"huggingface\.co/some/model, then run: hf auth login"),
        (RepositoryNotFoundError, 401, "check the spelling"),
        (RevisionNotFoundError, 404, "the repository has no branch, tag or commit v1; its"),
        (HfHubHTTPError, 500, "try again"),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, kind: type[HfHubHTTPError], status: int, remedy: str
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise http_error(kind, status)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=remedy) as caught:
        load_checkpoint("some/model@v1")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (LocalEntryNotFoundError("not cached"), "go online once"),
        (OSError("No space left on device"), "No space left"),
    ],
)
def test_no_network_and_no_disk(
    monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=remedy):
        load_checkpoint("some/model")


def test_offline_and_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library itself, in its offline mode, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        download("some/model")


def test_offline_and_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hf_folder: Path
) -> None:
    """The library's own cache layout: refs/main names the snapshot."""
    repository = tmp_path / "cache" / "models--some--model"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    hf_folder.rename(repository / "snapshots" / revision)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    checkpoint = load_checkpoint("some/model")
    assert checkpoint.source == "some/model"
    assert checkpoint.config.hidden_size == 96


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The snapshot of some/model in the library's own cache, which is all that can be reached."""
    repository = tmp_path / "cache" / "models--some--model"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return snapshot


def test_a_cached_gguf_model_without_the_hub(offline: Path) -> None:
    (offline / "m-Q8_0.gguf").touch()
    assert download("some/model") == download("some/model:Q8_0") == offline / "m-Q8_0.gguf"
    with pytest.raises(CheckpointError) as caught:
        download("some/model:Q4_0")
    assert str(caught.value) == (
        "some/model:Q4_0: the repository has no such GGUF model; there is some/model:Q8_0 (in the "
        "cache; huggingface.co cannot be reached, or HF_HUB_OFFLINE is set)"
    )


def test_only_the_config_is_cached(offline: Path, hf_folder: Path) -> None:
    shutil.copy(hf_folder / "config.json", offline)
    assert load_config("some/model").hidden_size == 96
    with pytest.raises(CheckpointError, match=r"cannot be reached, or HF_HUB_OFFLINE is set\)$"):
        load_checkpoint("some/model")


class Hub:
    """A repository with files; what is asked of it, and a cache that fills as it is asked."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source = source
        self.cache = cache
        self.revisions: set[str | None] = set()

    def files(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.source)) for path in self.source.rglob("*") if path.is_file()
        )

    def cached(self) -> list[str]:
        found = (path.relative_to(self.cache) for path in self.cache.rglob("*") if path.is_file())
        return sorted(map(str, found))

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None = None,
        dry_run: bool = False,
        allow_patterns: list[str] | None = None,
        ignore_patterns: list[str] | None = None,
    ) -> Any:  # noqa: ANN401
        assert name == "some/model"
        self.revisions.add(revision)
        if dry_run:
            return [SimpleNamespace(filename=file) for file in self.files()]
        kept = filter_repo_objects(
            self.files(), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for file in kept:
            target = self.cache / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.source / file, target)
        return str(self.cache)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hf_folder: Path) -> Hub:
    hub = Hub(hf_folder, tmp_path / "snapshot")
    hub.cache.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def refusal(model: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model)
    return str(caught.value)


def test_only_what_is_needed_is_downloaded(hub: Hub) -> None:
    text = [name for name in hub.files() if name != "model.safetensors"]
    for name in ("pytorch_model.bin", "README.md", "model.onnx", "model.gguf"):
        (hub.source / name).write_text("x")
    for name in ("original/params.json", "original/consolidated.00.pth", "onnx/model.onnx"):
        (hub.source / name).parent.mkdir(exist_ok=True)
        (hub.source / name).write_text("x")
    assert load_checkpoint("some/model").config.hidden_size == 96
    assert hub.cached() == sorted([*text, "model.safetensors"])


def test_of_torch_files_only_the_weights_are_downloaded(
    hub: Hub, debug_weights: dict[str, Tensor]
) -> None:
    (hub.source / "model.safetensors").unlink()
    torch.save(debug_weights, hub.source / "pytorch_model.bin")
    for name in ("optimizer.bin", "training_args.bin", "scheduler.pt"):
        (hub.source / name).write_text("x")
    checkpoint = load_checkpoint("some/model")
    assert torch.equal(checkpoint.weights.read(EMBEDDING), debug_weights[EMBEDDING].float())
    assert {name for name in hub.cached() if name.endswith((".bin", ".pt"))} == {
        "pytorch_model.bin"
    }


def test_only_the_config_is_downloaded_to_plan(hub: Hub) -> None:
    assert load_config("some/model").hidden_size == 96
    assert set(hub.cached()) <= {"config.json", "tokenizer_config.json", "generation_config.json"}


def test_a_model_that_is_not_read_is_refused_before_its_weights_are_downloaded(hub: Hub) -> None:
    config = json.loads((hub.source / "config.json").read_text())
    (hub.source / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "awq"}})
    )
    assert "the model was quantized with AWQ" in refusal("some/model")
    assert "model.safetensors" not in hub.cached()


def test_an_adapter(hub: Hub) -> None:
    (hub.source / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    assert "is a LoRA adapter of a/b; give its base model as MODEL" in refusal("some/model")
    assert hub.cached() == ["adapter_config.json"]
    for name in ("adapter_model.safetensors", "training_args.bin", "tokenizer.json"):
        (hub.source / name).write_text("{}")
    download_adapter("some/model")
    assert {"adapter_model.safetensors", "tokenizer.json"} <= {*hub.cached()}
    assert "training_args.bin" not in hub.cached()
    with pytest.raises(CheckpointError, match="PEFT's type None"):
        load_checkpoint("smollm2-135m+some/model")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["tf_model.h5", "config.json"], "is only there with TensorFlow weights (tf_model.h5)"),
        (["model_index.json", "unet/x.bin"], "is a diffusers pipeline"),
        (["a.txt", "b/c.txt"], "the repository has no model that is read: no config.json with"),
        ([], "there is nothing"),
    ],
)
def test_repositories_without_a_model(hub: Hub, files: list[str], said: str) -> None:
    shutil.rmtree(hub.source)
    for name in files:
        (hub.source / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.source / name).write_text("x")
    text = refusal("some/model")
    assert text.startswith("some/model: ")
    assert said in text
    assert hub.cached() == []


@pytest.mark.parametrize("folder", ["", "original"])
def test_a_repository_in_meta_s_form(
    hub: Hub, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_edge.checkpoints.meta.read_meta_text", lambda _: None)
    monkeypatch.setattr("llama_edge.text.text_assets.fit_vocabulary", lambda *_: None)
    shutil.rmtree(hub.source)
    config = replace(DEBUG_CONFIG, rope_scaling=None, max_position_embeddings=8192)
    weights = random_weights(config)
    write_meta(hub.source / folder, config, weights)
    (hub.source / folder / "checklist.chk").write_text("x")
    read = load_checkpoint("some/model").weights
    assert torch.equal(read.read(EMBEDDING), weights[EMBEDDING].float())
    assert "checklist.chk" not in "".join(hub.cached())


#: As repositories of GGUF models have them.
GGUF_FILES = (
    "model-Q4_K_M.gguf",
    "model-Q8_0.gguf",
    "model.IQ4_XS.gguf",
    "big/model-BF16-00001-of-00002.gguf",
    "big/model-BF16-00002-of-00002.gguf",
)


@pytest.fixture
def gguf_hub(hub: Hub) -> Hub:
    for name in GGUF_FILES:
        (hub.source / name).parent.mkdir(exist_ok=True)
        (hub.source / name).write_bytes(name.encode())
    (hub.source / "model.safetensors").unlink()
    return hub


@pytest.mark.parametrize(
    ("choice", "first", "count"),
    [
        ("Q4_K_M", "model-Q4_K_M.gguf", 1),
        ("q8_0", "model-Q8_0.gguf", 1),
        ("iq4_xs", "model.IQ4_XS.gguf", 1),
        ("model-Q8_0.gguf", "model-Q8_0.gguf", 1),
        ("BF16", "big/model-BF16-00001-of-00002.gguf", 2),
        ("big/model-BF16-00002-of-00002.gguf", "big/model-BF16-00001-of-00002.gguf", 2),
    ],
)
def test_one_of_several_gguf_models(gguf_hub: Hub, choice: str, first: str, count: int) -> None:
    path = download(f"some/model:{choice}")
    assert path == gguf_hub.cache / first
    assert path.read_bytes() == first.encode()
    assert len(gguf_hub.cached()) == count


def test_several_gguf_models_are_named(gguf_hub: Hub) -> None:
    assert refusal("some/model") == (
        "some/model: the repository has 4 GGUF models; choose one: some/model:BF16, "
        "some/model:Q4_K_M, some/model:Q8_0, some/model:IQ4_XS"
    )
    assert refusal("some/model:Q5_K_M@v1").startswith(
        "some/model:Q5_K_M@v1: the repository has no such GGUF model; there is some/model:BF16@v1, "
    )
    assert gguf_hub.cached() == []


def test_one_quantization_in_two_files(gguf_hub: Hub) -> None:
    (gguf_hub.source / "other-Q8_0.gguf").write_text("x")
    assert refusal("some/model:Q8_0") == (
        "some/model:Q8_0: is said of 2 models; name the file: model-Q8_0.gguf, other-Q8_0.gguf"
    )
    assert download("some/model:other-Q8_0.gguf").name == "other-Q8_0.gguf"


def test_the_only_gguf_model_needs_no_name(hub: Hub) -> None:
    (hub.source / "model.safetensors").unlink()
    (hub.source / "m.gguf").write_text("x")
    assert download("some/model") == hub.cache / "m.gguf"
    assert hub.cached() == ["m.gguf"]


def test_a_choice_where_there_is_none(hub: Hub) -> None:
    assert refusal("some/model:Q4_0") == (
        "some/model:Q4_0: the repository has no GGUF file to choose from; leave out :Q4_0"
    )


def test_a_revision_is_asked_for(hub: Hub) -> None:
    load_checkpoint("some/model@v1.0")
    assert hub.revisions == {"v1.0"}
    load_checkpoint(with_revision("some/model", "refs/pr/1"))
    assert hub.revisions == {"v1.0", "refs/pr/1"}


def test_the_option_and_the_name(hf_folder: Path) -> None:
    assert with_revision("some/model", None) == "some/model"
    assert with_revision("some/model:Q8_0", "v1") == "some/model:Q8_0@v1"
    assert with_revision("some/model@v1", "v1") == "some/model@v1"
    with pytest.raises(UsageError, match="names another revision"):
        with_revision("some/model@v2", "v1")
    with pytest.raises(UsageError, match="is no Hugging Face id; leave it out"):
        with_revision(str(hf_folder), "v1")
    with pytest.raises(UsageError, match="is no Hugging Face id"):
        with_revision("smollm2-135m", "v1")
    for odd in ("a:b", "", "v1\n", "\x1b[2J", "\udcff", "/dev/zero", "../../x", "refs/../x"):
        with pytest.raises(UsageError, match="a branch, a tag or a commit is needed"):
            with_revision("some/model", odd)
        assert not is_hub_id(f"some/model@{odd}")


def test_ids() -> None:
    assert is_hub_id("meta-llama/Llama-3.2-1B-Instruct")
    assert parse_hub_id("a/b:Q4_K_M@main") == HubModel("a/b", "Q4_K_M", "main")
    assert parse_hub_id("a/b@0123abc") == HubModel("a/b", None, "0123abc")
    assert parse_hub_id("a/b:f/m.gguf") == HubModel("a/b", "f/m.gguf", None)
    for text in (
        "model",
        "/etc/passwd",
        "a/b/c",
        "../x",
        "./x",
        "a b/c",
        "",
        "a/b:",
        "a/b@",
        "a@b",
    ):
        assert not is_hub_id(text)
