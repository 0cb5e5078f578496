"""Our own implementations over the fixtures that the apps' tests read too."""

import base64
import codecs
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llama_edge.bundle.app_check import AppTarget, check_for_app
from llama_edge.bundle.examine import examine
from llama_edge.bundle.finding_codes import finding_codes
from llama_edge.core.errors import GuardError, SessionError, TokenizerError, ToolCallError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.chat_template import ChatTemplate
from llama_edge.text.dialog import trim_dialog
from llama_edge.text.generate import SamplingConfig, token_probabilities
from llama_edge.text.guard_answer import parse_guard_answer
from llama_edge.text.native import open_tokenizer
from llama_edge.text.stop_filter import StopFilter
from llama_edge.text.tokenizer import Tokenizer, TokenStream
from llama_edge.text.tool_calls import parse_tool_calls
from tests.app_fixtures.files import FIXTURES, INDEX, RESOURCE_FOLDERS, Case, read_files
from tests.app_fixtures.generate import fixture_files, resource_files

pytestmark = [pytest.mark.executorch, pytest.mark.coreml]

CASES: list[Case] = json.loads((FIXTURES / INDEX).read_bytes())["cases"]
MAX_BYTES = 1_500_000


def cases(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case["name"]) for case in CASES if case["kind"] == kind]
    )


def test_the_committed_files_are_those_that_are_generated() -> None:
    generated = fixture_files()
    committed = read_files(FIXTURES)
    assert sorted(committed) == sorted(generated)
    assert [name for name in generated if generated[name] != committed[name]] == []
    assert sum(map(len, committed.values())) < MAX_BYTES


def test_the_apps_carry_the_catalog_and_the_schema() -> None:
    present = [folder for folder in RESOURCE_FOLDERS if folder.is_dir()]
    assert present
    for folder in present:
        assert resource_files().items() <= read_files(folder).items()


def test_there_is_enough_of_each_kind() -> None:
    kinds = [case["kind"] for case in CASES]
    names = [(case["kind"], case["name"]) for case in CASES]
    assert len(names) == len(set(names)) >= 60
    minimum = {"bundle": 40, "tokens": 60, "chat": 10, "chat_tokens": 4, "tool_calls": 20}
    minimum |= {"utf8": 10, "stop": 8, "trim": 8, "sampling": 20}
    assert {kind: kinds.count(kind) >= least for kind, least in minimum.items()} == dict.fromkeys(
        minimum, True
    )
    assert {code for case in CASES for code in case.get("codes", ())} <= set(finding_codes())


def build(case: Case, folder: Path) -> Path:
    """The bundle of a case, as the apps' tests build it too."""
    root = folder / "bundle"
    root.mkdir()
    for name, source in case["files"].items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((FIXTURES / source).read_bytes())
    for name, source in case.get("beside", {}).items():
        (folder / name).write_bytes((FIXTURES / source).read_bytes())
    for name, target in case.get("symlinks", {}).items():
        (root / name).symlink_to(target)
    for name in case.get("folders", ()):
        (root / name).mkdir()
    for name in case.get("pipes", ()):
        os.mkfifo(root / name)
    return root


@cases("bundle")
def test_bundle(case: Case, tmp_path: Path) -> None:
    accepts = [AppTarget(**accept) for accept in case["accepts"]]
    raw = base64.b64decode(case["public_key"]) if "public_key" in case else None
    key = None if raw is None else Ed25519PublicKey.from_public_bytes(raw)
    findings = check_for_app(build(case, tmp_path), accepts, key)
    assert list(dict.fromkeys(finding.code for finding in findings)) == case["codes"], [
        finding.message for finding in findings
    ]


#: Where an app is stricter than `doctor`, which tells of it in a note.
APPS_ALONE = {"template-absent"}  # a bundle for plain completion is a good one, but not to chat
#: What `doctor` says of every bundle whose places hold: no fixture has a model, or versions.
NO_MODEL = {"artifact.unreadable", "codes.missing", "runtime.version"}
#: What follows from the fault, in the steps that an app no longer takes.
CONSEQUENCES = {
    "failed-verdict": {"verdict.measurements"},
    "file-unlisted": {"template.source", "template.text"},
    "two-files-missing": {"verdict.measurements"},
}


@cases("bundle")
def test_doctor_says_the_same(case: Case, tmp_path: Path) -> None:
    key = None
    if "public_key" in case:
        trusted = Ed25519PublicKey.from_public_bytes(base64.b64decode(case["public_key"]))
        key = tmp_path / "trusted.pem"
        key.write_bytes(trusted.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    diagnosis = examine(build(case, tmp_path), key, SilentProgress())
    codes = {finding.code for finding in diagnosis.findings} - NO_MODEL
    if case["name"] in APPS_ALONE:
        assert codes == set()
        (note,) = diagnosis.notes
        assert f"({case['codes'][0]})" in note
    else:
        assert codes == set(case["codes"]) | CONSEQUENCES.get(case["name"], set())
        assert diagnosis.notes == ()


def text_assets(case: Case) -> TextAssets:
    source = (FIXTURES / case["tokenizer"]).read_text("utf-8")
    return TextAssets(
        tokenizer_json=source,
        chat_template=case.get("template"),
        special_tokens=case.get("special_tokens", {}),
        bos_token_id=case.get("bos_token_id"),
        eos_token_ids=tuple(case.get("eos_token_ids", (0,))),
        add_bos=False,
        generation_defaults={},
    )


@cases("tokens")
def test_tokens(case: Case) -> None:
    tokenizer = Tokenizer(text_assets(case))
    encode = tokenizer.encode_rendered if case["control_tokens"] else tokenizer.encode
    assert encode(case["text"]) == case["tokens"]
    stream = TokenStream(tokenizer)
    streamed = "".join(stream.push(token) for token in case["tokens"]) + stream.flush()
    assert streamed == tokenizer.decode(case["tokens"]) == case["decoded"]


@cases("chat_tokens")
def test_chat_tokens(case: Case) -> None:
    tokenizer = Tokenizer(text_assets(case))
    assert tokenizer.encode_chat(case["messages"]) == case["tokens"]
    assert tokenizer.form.parts is case["content_parts"]


@cases("chat_tokens")
def test_nobody_types_a_control_token(case: Case) -> None:
    """As many of each as in a dialog of as many turns in which nobody spells one."""
    tokenizer = Tokenizer(text_assets(case))
    harmless = [{"role": "user", "content": "x"} for _ in case["messages"]]
    ids = tokenizer.encode_chat(harmless)
    native = open_tokenizer("tokenizer.json", (FIXTURES / case["tokenizer"]).read_text("utf-8"))
    for number, token in native.added.items():
        if token in tokenizer._control and "\ufdd0" not in str(case["messages"]):
            assert case["tokens"].count(number) == ids.count(number), token.content


@cases("chat")
def test_chat(case: Case) -> None:
    def render() -> str:
        source = (FIXTURES / case["template"]).read_text("utf-8")
        return ChatTemplate(source, case["special_tokens"]).render(
            case["messages"],
            tools=case["tools"],
            add_generation_prompt=case["add_generation_prompt"],
            today=date.fromisoformat(case["date"]),
        )

    if case["text"] is None:
        with pytest.raises(TokenizerError):
            render()
    else:
        assert render() == case["text"]


@cases("sampling")
def test_sampling(case: Case) -> None:
    """The candidates are those of transformers, which knows no order among equal logits."""
    logits = torch.tensor([case["logits"]])
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(case["temperature"])]
    if case["top_k"]:
        warpers.append(TopKLogitsWarper(case["top_k"]))
    if case["top_p"] < 1:
        warpers.append(TopPLogitsWarper(case["top_p"]))
    scores = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), logits)
    expected = torch.softmax(scores[0].double(), -1).numpy()
    sampling = SamplingConfig(
        temperature=case["temperature"], top_p=case["top_p"], top_k=case["top_k"]
    )
    found = token_probabilities(np.array(case["logits"], np.float32), sampling)
    assert list(np.flatnonzero(found)) == case["tokens"]
    assert found[case["tokens"]] == pytest.approx(case["probabilities"], abs=1e-12)
    if len(set(case["logits"])) == len(case["logits"]):
        assert found == pytest.approx(expected, abs=1e-6)


@cases("guard")
def test_guard_answers(case: Case) -> None:
    if case["verdict"] == "none":
        with pytest.raises(GuardError, match="the guard's answer"):
            parse_guard_answer(case["text"])
        return
    codes = parse_guard_answer(case["text"])
    assert (codes is None) is (case["verdict"] == "safe")
    assert list(codes or ()) == case["categories"]


@cases("tool_calls")
def test_tool_calls(case: Case) -> None:
    if case["calls"] is None:
        with pytest.raises(ToolCallError):
            parse_tool_calls(case["text"])
        return
    calls = parse_tool_calls(case["text"])
    assert [{"name": call.name, "arguments": call.arguments} for call in calls] == case["calls"]


@cases("utf8")
def test_utf8(case: Case) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert [decoder.decode(bytes.fromhex(chunk)) for chunk in case["chunks"]] == case["pieces"]
    assert decoder.decode(b"", final=True) == case["rest"]


@cases("stop")
def test_stop(case: Case) -> None:
    stream = StopFilter(case["stops"])
    assert [stream.push(piece) for piece in case["pieces"]] == case["expected"]
    assert stream.stopped is case["stopped"]
    assert stream.flush() == case["rest"]


@cases("trim")
def test_trim(case: Case) -> None:
    def cost(messages: Any) -> int:  # noqa: ANN401
        return sum(4 + len(message["content"]) for message in messages)

    if case["kept"] is None:
        with pytest.raises(SessionError, match="shorten it"):
            trim_dialog(case["messages"], cost, case["limit"])
        return
    kept = trim_dialog(case["messages"], cost, case["limit"])
    assert list(kept) == [case["messages"][place] for place in case["kept"]]
