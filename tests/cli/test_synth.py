from pathlib import Path

import pytest

import llama_edge.checkpoints.synthetic as synthetic
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.text_assets import TextAssets
from tests.checkpoint_writers import meta_tokenizer_path
from tests.cli.conftest import Program


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[ModelConfig]:
    """The command without its gigabytes; what it asked for is kept."""
    asked: list[ModelConfig] = []

    def write(
        folder: Path,
        name: str,
        config: ModelConfig,
        seed: int,
        progress: Progress,
        text: TextAssets | None,
    ) -> None:
        asked.append(config)
        made_up = "" if text is None else f" {len(text.eos_token_ids)} ends"
        (folder / "weights").write_text(f"{name} {seed}{made_up}")

    monkeypatch.setattr(synthetic, "write_synthetic", write)
    return asked


def test_a_shape_with_fewer_layers(
    program: Program, tmp_path: Path, small: list[ModelConfig]
) -> None:
    out = tmp_path / "model"
    arguments = ("synth", out, "--like", "llama-3.2-3b", "--layers", 2, "--seed", 7)
    result = program(*arguments, "--json")
    assert result.code == 0
    assert (out / "weights").read_text() == "llama-3.2-3b 7"
    assert small[0].num_hidden_layers == result.json["config"]["num_hidden_layers"] == 2
    assert small[0].hidden_size == 3072
    assert result.json["files"] == {"weights": 14}
    (out / "notes").write_text("mine")
    assert program(*arguments, "--force").code == 3
    assert (out / "notes").read_text() == "mine"
    (out / "notes").unlink()
    again = program(*arguments)
    assert again.code == 3
    assert "exists already; pass --force" in again.err
    forced = program(*arguments, "--force")
    assert forced.code == 0
    assert "2 of 28" in forced.out
    assert "mean nothing" in forced.out


def test_a_real_tokenizer(program: Program, tmp_path: Path, small: list[ModelConfig]) -> None:
    arguments = ("synth", tmp_path / "model", "--like", "llama-3.2-1b", "--tokenizer")
    assert program(*arguments, meta_tokenizer_path()).code == 0
    assert (tmp_path / "model" / "weights").read_text() == "llama-3.2-1b 0 3 ends"
    (tmp_path / "other").write_text("no tokenizer")
    refused = program("synth", tmp_path / "b", *arguments[2:], tmp_path / "other")
    assert refused.code == 3
    assert "neither a SentencePiece model nor a tiktoken" in refused.err
    missing = program("synth", tmp_path / "b", *arguments[2:], tmp_path / "nothing")
    assert missing.code == 3
    assert "the file is missing" in missing.err
    assert not (tmp_path / "b").exists()


def test_an_unknown_shape_is_bad_usage(program: Program, tmp_path: Path) -> None:
    result = program("synth", tmp_path / "out", "--like", "llama-9", "--json")
    assert result.code == 2
    assert "llama-3.2-1b" in result.json["error"]["message"]
    assert not (tmp_path / "out").exists()
