"""`doctor` on what other programs write: right folders pass, contradictions are found."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llama_edge.bundle.examination import Diagnosis
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle
from llama_edge.core.progress import SilentProgress
from tests.faults.forging import edit_json, put, set_constant, shrink_caches

Found = list[tuple[str, str]]


def examined(path: Path) -> Diagnosis:
    return examine(path, None, SilentProgress())


def found(path: Path) -> Found:
    return [(finding.code, finding.where) for finding in examined(path).findings]


@pytest.fixture
def foreign(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Callable[[str], Path]:
    """A bundle without what makes it one: as another exporter would have left it."""

    def copy(target: str) -> Path:
        folder = tmp_path / target
        shutil.copytree(debug_bundles[target].root, folder)
        (folder / "manifest.json").unlink()
        (folder / "parity.json").unlink()
        return folder

    return copy


def edit(path: Path, place: str, value: object) -> None:
    edit_json(path, lambda whole: put(whole, place, value))


def test_a_genai_folder(foreign: Callable[[str], Path]) -> None:
    folder = foreign("onnx")
    diagnosis = examined(folder)
    assert diagnosis.kind == "ONNX Runtime GenAI folder"
    assert diagnosis.findings == ()


@pytest.mark.parametrize(
    ("file", "place", "value", "expected"),
    [
        (
            "genai_config.json",
            "model.eos_token_id",
            0,
            ("eos.precedence", "genai_config.json: model.eos_token_id"),
        ),
        (
            "genai_config.json",
            "model.eos_token_id",
            [2, 0, 7],
            ("eos.foreign", "genai_config.json: model.eos_token_id"),
        ),
        (
            "genai_config.json",
            "model.context_length",
            4096,
            ("context.cache", "model.onnx: rope.cos"),
        ),
        (
            "genai_config.json",
            "search.max_length",
            4096,
            ("context.cache", "genai_config.json: search.max_length"),
        ),
        (
            "genai_config.json",
            "model.decoder.num_hidden_layers",
            3,
            ("artifact.metadata", "model.onnx: inputs past_key_values.%d.key"),
        ),
        (
            "genai_config.json",
            "model.vocab_size",
            300,
            ("artifact.metadata", "model.onnx: output logits"),
        ),
        (
            "genai_config.json",
            "model.bos_token_id",
            1,
            ("tokenizer.bos", "genai_config.json: model.bos_token_id"),
        ),
        (
            "generation_config.json",
            "eos_token_id",
            [0],
            ("eos.precedence", "generation_config.json: eos_token_id"),
        ),
        (
            "genai_config.json",
            "model.decoder.filename",
            "../model.onnx",
            ("artifact.unreadable", "onnx"),
        ),
        ("genai_config.json", "model", None, ("artifact.unreadable", "onnx")),
        ("genai_config.json", "search", "words", ("artifact.unreadable", "onnx")),
        ("genai_config.json", "model.decoder.inputs", "words", ("artifact.unreadable", "onnx")),
        ("genai_config.json", "model.decoder.outputs", "words", ("artifact.unreadable", "onnx")),
    ],
)
def test_a_genai_folder_that_contradicts_itself(
    foreign: Callable[[str], Path], file: str, place: str, value: object, expected: tuple[str, str]
) -> None:
    folder = foreign("onnx")
    edit(folder / file, place, value)
    assert expected in found(folder)


def test_a_pte_with_its_tokenizer(foreign: Callable[[str], Path]) -> None:
    folder = foreign("android")
    assert examined(folder).kind == "executorch model"
    assert found(folder) == []
    assert found(folder / "model.pte") == []
    set_constant(folder, "get_eos_ids", 0)
    assert found(folder) == [("eos.precedence", "model.pte: get_eos_ids")]
    shrink_caches(folder, 64)
    assert ("context.cache", "model.pte: forward, cache 0") in found(folder)


def test_a_pte_alone_says_what_was_not_looked_at(
    foreign: Callable[[str], Path], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (foreign("android") / "model.pte").rename(alone / "llama.pte")
    diagnosis = examined(alone)
    assert diagnosis.passed
    assert any("no tokenizer.json" in note for note in diagnosis.notes)


@pytest.fixture
def checkpoint(debug_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(debug_folder, folder)
    return folder


def test_a_hugging_face_folder(checkpoint: Path, llama32_shaped: Path) -> None:
    assert examined(checkpoint).kind == "Hugging Face folder"
    assert found(checkpoint) == []
    diagnosis = examined(llama32_shaped)
    assert diagnosis.findings == ()
    assert any("begin with it twice" in note for note in diagnosis.notes)


def test_the_first_llama_3_instruct_folders(llama32_shaped: Path, tmp_path: Path) -> None:
    """They named the end of a text alone, and answers ran on."""
    folder = tmp_path / "llama"
    shutil.copytree(llama32_shaped, folder)
    edit(folder / "generation_config.json", "eos_token_id", 128001)
    edit(folder / "tokenizer_config.json", "eos_token", "<|end_of_text|>")
    assert found(folder) == [("eos.missing", "generation_config.json: eos_token_id")]


def test_end_tokens_that_only_config_names_are_a_note(checkpoint: Path) -> None:
    """`LlamaConfig`'s default of 2 where 2 is an ordinary word: nothing waits for it."""
    edit(checkpoint / "generation_config.json", "eos_token_id", [0, 2])
    edit(checkpoint / "config.json", "eos_token_id", 2)
    assert not any("alone counts" in note for note in examined(checkpoint).notes)
    edit(checkpoint / "config.json", "eos_token_id", 9)
    diagnosis = examined(checkpoint)
    assert diagnosis.findings == ()
    assert (
        "config.json names the end tokens [9] and generation_config.json [0, 2]: "
        "generation_config.json alone counts, as in transformers"
    ) in diagnosis.notes
    edit(checkpoint / "generation_config.json", "eos_token_id", None)
    assert not any("alone counts" in note for note in examined(checkpoint).notes)


def test_an_ordinary_word_as_eos_token_need_not_be_waited_for(checkpoint: Path) -> None:
    """It is no special token, which is a finding; generation_config.json is right without it."""
    edit(checkpoint / "tokenizer_config.json", "eos_token", "A")
    assert found(checkpoint) == [("tokenizer.special_tokens", "tokenizer.json: A")]
    edit(checkpoint / "generation_config.json", "eos_token_id", None)
    edit(checkpoint / "config.json", "eos_token_id", [0, 2])
    assert ("eos.precedence", "config.json: eos_token_id") in found(checkpoint)


def test_a_runner_waits_for_what_config_names(foreign: Callable[[str], Path]) -> None:
    """Where generation_config.json names no end token, config.json's count."""
    folder = foreign("onnx")
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": [2, 9]}')
    assert ("eos.missing", "genai_config.json: model.eos_token_id") in found(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {
                "eos_token": "<|im_end|>",
                "chat_template": "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}",
            },
            ("tokenizer.double_bos", "tokenizer_config.json: chat_template"),
        ),
        (
            {"chat_template": "{{ messages[0].content }}<|eot_id|>"},
            ("tokenizer.special_tokens", "tokenizer.json: <|eot_id|>"),
        ),
        (
            {"chat_template": "{% for"},
            ("template.unrenderable", "tokenizer_config.json: chat_template"),
        ),
        ({"eos_token": "<|gone|>"}, ("tokenizer.vocabulary", "tokenizer.json")),
    ],
)
def test_text_files_that_contradict_themselves(
    checkpoint: Path, change: dict[str, Any], expected: tuple[str, str]
) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda config: config.update(change))
    assert expected in found(checkpoint)


def test_a_refused_template_is_not_said_to_be_absent(checkpoint: Path) -> None:
    def noted() -> str:
        return " ".join(examined(checkpoint).notes)

    edit(checkpoint / "tokenizer_config.json", "chat_template", "{% for")
    assert "no chat template" not in noted()
    edit_json(checkpoint / "tokenizer_config.json", lambda config: config.pop("chat_template"))
    assert "there is no chat template" in noted()


def test_the_tokenizer_of_another_model(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", "vocab_size", 100)
    assert found(checkpoint) == [("tokenizer.vocabulary", "tokenizer.json")]


def test_a_config_of_noise(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("[")
    codes = [code for code, _ in found(checkpoint)]
    assert codes
    assert json.dumps(examined(checkpoint).to_json())
