from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.hub import ALLOWED_FILES, download, is_hub_id
from llama_edge.core.errors import CheckpointError


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    httpx = pytest.importorskip("httpx2" if "httpx2" in str(HfHubHTTPError.__mro__) else "httpx")
    request = httpx.Request("GET", "https://huggingface.co/api")
    return kind("refused", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("kind", "status", "remedy"),
    [
        (GatedRepoError, 403, r"huggingface\.co/some/model, then run: hf auth login"),
        (RepositoryNotFoundError, 401, "check the spelling"),
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
        load_checkpoint("some/model")
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


def test_only_what_is_needed_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def remember(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", remember)
    assert download("some/model") == tmp_path
    assert asked["allow_patterns"] == list(ALLOWED_FILES)
    assert asked["repository"] == "some/model"
    kept = filter_repo_objects(
        ["model-00001-of-00002.safetensors", "config.json", "chat_template.jinja", "README.md",
         "pytorch_model.bin", "original/consolidated.00.pth", "original/params.json"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )  # fmt: skip
    assert list(kept) == ["model-00001-of-00002.safetensors", "config.json", "chat_template.jinja"]


def test_ids() -> None:
    assert is_hub_id("meta-llama/Llama-3.2-1B-Instruct")
    for text in ("model", "/etc/passwd", "a/b/c", "../x", "./x", "a b/c", ""):
        assert not is_hub_id(text)
