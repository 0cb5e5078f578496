"""A stored system prompt: made, used, proved, refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from llama_edge.backends import get_exporter
from llama_edge.bundle import prompt_state
from llama_edge.bundle.doctor_bundle import examine_bundle
from llama_edge.bundle.folder import Bundle, list_files, open_bundle, parse_manifest, write_manifest
from llama_edge.bundle.manifest import SIGNATURE_FILE, Verdict
from llama_edge.bundle.prompt_state import (
    STATE_FILE,
    PromptState,
    read_prompt_state,
    write_prompt_state,
)
from llama_edge.bundle.signing import Trust, load_public_key, new_key
from llama_edge.core.cache_state import CacheState
from llama_edge.core.errors import (
    ArtifactError,
    CheckFailedError,
    OutputError,
    UsageError,
)
from llama_edge.core.progress import SilentProgress
from llama_edge.core.session import Session
from llama_edge.gate import check_bundle as gate
from llama_edge.gate.check_bundle import check_bundle
from llama_edge.gate.gate import GateOutcome
from llama_edge.generate.assistant import AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.chat import Chat
from llama_edge.generate.run import PromptRequest, Run
from llama_edge.generate.warm import WarmedBundle, WarmRequest, remove_state, warm_bundle
from llama_edge.runtimes.child import ChildSession

SYSTEM = "Answer in one sentence, and on no other day than the one that is named here."
QUICK = AnswerConfig(max_new_tokens=6)


def warm(folder: Path, system: str = SYSTEM, **options: object) -> WarmedBundle:
    return warm_bundle(folder, WarmRequest(system=system, **options), SilentProgress())  # type: ignore[arg-type]


def answer(folder: Path, **options: object) -> tuple[str, Run]:
    request = PromptRequest(prompt="the rain", config=QUICK, **options)  # type: ignore[arg-type]
    run = Run(folder, request)
    return "".join(run), run


def state_of(folder: Path) -> PromptState:
    manifest = parse_manifest(folder).manifest
    artifact = get_exporter(manifest.backend).open(folder).artifact
    state = read_prompt_state(folder, manifest, artifact)
    assert state is not None
    return state


def rehash(folder: Path) -> None:
    """Make the manifest agree with changed files, as a forger would."""
    manifest = parse_manifest(folder).manifest
    names = [entry.path for entry in manifest.files if (folder / entry.path).exists()]
    write_manifest(folder, replace(manifest, files=list_files(folder, names)))


@pytest.fixture
def copied(debug_bundles: Mapping[str, Bundle], tmp_path: Path) -> Callable[[str], Path]:
    def copy(target: str) -> Path:
        shutil.copytree(debug_bundles[target].root, tmp_path / target)
        return tmp_path / target

    return copy


@pytest.fixture(scope="module")
def warmed(debug_bundles: Mapping[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a state; not to be changed."""
    folder = tmp_path_factory.mktemp("warmed") / "onnx"
    shutil.copytree(debug_bundles["onnx"].root, folder)
    warm(folder)
    return folder


@pytest.fixture
def changed(warmed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(warmed, tmp_path / "changed")
    return tmp_path / "changed"


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_only_the_question_is_read(copied: Callable[[str], Path], target: str) -> None:
    folder = copied(target)
    cold, before = answer(folder, system=SYSTEM)
    made = warm(folder)
    assert made.report.passed
    assert made.report.deterministic
    assert made.report.same_rows
    assert made.report.same_logits
    assert made.size_bytes == (folder / STATE_FILE).stat().st_size
    assert open_bundle(folder).manifest == made.manifest
    text, run = answer(folder, system=SYSTEM)
    assert text == cold
    assert run.state_note is None
    assert before.read_tokens == before.prompt_tokens == run.prompt_tokens
    assert run.read_tokens == run.prompt_tokens - made.tokens
    assert made.tokens > run.read_tokens
    _, run = answer(folder, system="Be brief.")
    assert run.read_tokens == run.prompt_tokens
    diagnosis = examine_bundle(folder, None, SilentProgress())
    assert diagnosis.passed, diagnosis.findings
    assert "prompt state" in diagnosis.checked


def test_a_dialog_begins_with_it_again_and_again(warmed: Path) -> None:
    tokens = len(state_of(warmed).tokens)
    with Chat(warmed, system=SYSTEM, config=QUICK) as chat:
        chat.send("the")
        first = chat.prompt_tokens
        assert first == chat.dialog_tokens - tokens
        chat.begin("Be brief.")
        chat.send("the")
        assert chat.prompt_tokens > chat.dialog_tokens - tokens, "they have a header in common"
        chat.begin(SYSTEM)
        chat.send("the")
        assert chat.prompt_tokens == first


def test_logits_are_those_of_a_prompt_that_was_read(warmed: Path) -> None:
    """In the same calls: the prompt up to the question, then the question."""
    model = BundleModel(warmed)
    prefix = state_of(warmed).tokens
    question = model.tokenizer.encode("the rain and the thing")
    with model.open() as session:
        session.prefill(prefix)
        expected = [session.prefill(question), session.decode(9)]
    with Assistant(model) as assistant:
        cache = assistant._cache
        found = [cache.prefill([*prefix, *question]), cache.decode(9)]
    assert all(map(np.array_equal, found, expected))


def test_the_gate_passes_and_says_so(warmed: Path) -> None:
    outcome = check_bundle(warmed, None, SilentProgress())
    assert outcome.passed, outcome.reason
    assert outcome.prompt_state is not None
    assert outcome.to_json()["prompt_state"]["same_logits"] is True


def forge(folder: Path, change: Callable[[CacheState], CacheState]) -> None:
    """Another cache, in a bundle that is as consistent as the first."""
    state = state_of(folder)
    (folder / STATE_FILE).unlink()
    write_prompt_state(folder / STATE_FILE, replace(state, cache=change(state.cache)))
    rehash(folder)


def one_number(cache: CacheState) -> CacheState:
    array = cache.arrays["key.1"].copy()
    array[2, 0, 3] += 0.5
    return replace(cache, arrays={**cache.arrays, "key.1": array})


def all_values(cache: CacheState) -> CacheState:
    return replace(cache, arrays={name: array * 1.01 for name, array in cache.arrays.items()})


@pytest.fixture
def only_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the gate is shown elsewhere."""
    passed = GateOutcome(parity=None, fidelity=None, reason=None)
    monkeypatch.setattr(gate, "run_gate", lambda subject, progress: passed)


@pytest.mark.usefixtures("only_the_state")
@pytest.mark.parametrize("change", [one_number, all_values])
def test_the_gate_finds_other_rows(
    changed: Path, change: Callable[[CacheState], CacheState]
) -> None:
    forge(changed, change)
    assert examine_bundle(changed, None, SilentProgress()).passed, "nobody ran it"
    outcome = check_bundle(changed, None, SilentProgress())
    assert outcome.reason is not None
    assert outcome.reason.startswith("prompt_state: rows: a row of the cache has a relative error")
    report = outcome.prompt_state
    assert report is not None
    assert {finding.code for finding in report.findings} == {"state.values"}
    assert not report.same_rows
    assert not report.same_logits


@pytest.mark.usefixtures("only_the_state")
def test_the_gate_forgives_another_order_of_additions(changed: Path) -> None:
    """What another machine's kernels make of the same prompt."""

    def rounded(cache: CacheState) -> CacheState:
        return replace(cache, arrays={n: a * np.float32(1 + 1e-6) for n, a in cache.arrays.items()})

    forge(changed, rounded)
    outcome = check_bundle(changed, None, SilentProgress())
    assert outcome.passed, outcome.reason
    assert outcome.prompt_state is not None
    assert not outcome.prompt_state.same_logits


def test_what_cannot_be_restored_is_not_stored(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("onnx")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def lose(session: Session, state: CacheState) -> None:
        """A runtime that forgets what it is given, but for the number of tokens."""
        session.reset()
        session.prefill([5] * state.tokens)

    monkeypatch.setattr(ChildSession, "restore", lose)
    with pytest.raises(CheckFailedError, match="not stored: logits: the same rows give other log"):
        warm(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_model_s_state_is_refused(changed: Path) -> None:
    """By the manifest; and by what it is bound to, where somebody wrote the manifest anew."""
    (changed / "tokenizer_config.json").write_bytes(
        (changed / "tokenizer_config.json").read_bytes() + b"\n"
    )
    with pytest.raises(CheckFailedError, match=r"other content than the manifest|another size"):
        answer(changed)
    rehash(changed)
    with pytest.raises(CheckFailedError, match="made for another model, tokenizer or chat temp"):
        answer(changed)
    outcome = check_bundle(changed, None, SilentProgress())
    assert "made for another model" in str(outcome.reason)
    findings = examine_bundle(changed, None, SilentProgress()).findings
    assert "state.binding" in {finding.code for finding in findings}


def test_another_version_s_state_is_left_alone(
    warmed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_state, "runtime_version", lambda backend: f"{backend} 99")
    _, run = answer(warmed, system=SYSTEM)
    assert run.read_tokens == run.prompt_tokens
    assert "is not used: it was made with onnx" in str(run.state_note)
    with Chat(warmed, system=SYSTEM, config=QUICK) as chat:
        assert chat.state_note == run.state_note


@pytest.mark.usefixtures("only_the_state")
def test_the_gate_says_what_it_cannot_run(warmed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_state, "runtime_version", lambda backend: f"{backend} 99")
    outcome = check_bundle(warmed, None, SilentProgress())
    assert outcome.passed
    assert outcome.prompt_state is not None
    assert "run llama-edge warm again" in str(outcome.prompt_state.not_run)


def test_it_is_replaced_and_removed(copied: Callable[[str], Path]) -> None:
    folder = copied("onnx")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    warm(folder)
    again = warm(folder, "Be brief.")
    assert state_of(folder).origin.system == "Be brief."
    assert [entry.path for entry in again.manifest.files].count(STATE_FILE) == 1
    # As after a kill between two writes, and after damage.
    (folder / STATE_FILE).write_bytes((folder / STATE_FILE).read_bytes()[:-1])
    with pytest.raises(CheckFailedError, match="another size"):
        open_bundle(folder)
    warm(folder)
    open_bundle(folder)
    remove_state(folder, None, SilentProgress())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(UsageError, match="has no prompt state"):
        remove_state(folder, None, SilentProgress())


def test_what_is_not_ours_stays(copied: Callable[[str], Path]) -> None:
    folder = copied("onnx")
    (folder / STATE_FILE).write_bytes(b"somebody's")
    for act in (lambda: warm(folder), lambda: remove_state(folder, None, SilentProgress())):
        with pytest.raises(OutputError, match="is no prompt state of llama-edge"):
            act()
    assert (folder / STATE_FILE).read_bytes() == b"somebody's"
    (folder / STATE_FILE).unlink()
    (folder / "more").write_bytes(b"")
    with pytest.raises(CheckFailedError, match="does not list"):
        warm(folder)
    (folder / "more").unlink()
    (folder / STATE_FILE).symlink_to("manifest.json")
    with pytest.raises(ArtifactError, match="symbolic link"):
        warm(folder)


def test_a_signed_bundle_is_signed_again_or_left_alone(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, key, other = copied("onnx"), tmp_path / "key", tmp_path / "other"
    public = new_key(key)
    new_key(other)
    warm(folder, key=key)  # not signed before; it is now
    trust = Trust(key=load_public_key(public))
    open_bundle(folder, trust)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"is signed.*--key to sign it again.*manifest\.sig"):
        warm(folder)
    with pytest.raises(CheckFailedError, match="another key"):
        warm(folder, key=other)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    warm(folder, "Be brief.", key=key)
    open_bundle(folder, trust)
    remove_state(folder, key, SilentProgress())
    open_bundle(folder, trust)
    assert (folder / SIGNATURE_FILE).exists()


def test_a_failed_bundle_is_not_warmed(copied: Callable[[str], Path]) -> None:
    folder = copied("onnx")
    manifest = parse_manifest(folder).manifest
    write_manifest(folder, replace(manifest, verdict=Verdict.FAILED))
    with pytest.raises(CheckFailedError, match="failed its gate"):
        warm(folder)


@pytest.mark.parametrize(
    ("system", "message"),
    [(" \n", "is empty"), ("x" * ((1 << 20) + 1), "has 1048577 bytes; at most 1048576")],
)
def test_a_prompt_that_cannot_be_stored(system: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        WarmRequest(system=system)


def test_a_prompt_that_fills_the_context(copied: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match=r"has \d+ tokens.*the context 512: no question"):
        warm(copied("onnx"), "on the " * 400)


def test_a_day_in_the_template_is_named_and_kept(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle's template gets a day, and the manifest the hash of the template."""
    folder, day = copied("onnx"), date(2026, 11, 28)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = "{{ strftime_now('%d %b %Y') }}\n" + config["chat_template"]
    path.write_text(json.dumps(config))
    rehash(folder)
    with pytest.raises(UsageError, match=r"writes the current day.*name it with --date"):
        warm(folder)
    made = warm(folder, day=day)
    assert made.day == day
    model = BundleModel(folder)
    assert model.day_of(SYSTEM) == day
    assert model.day_of("Be brief.") is model.day_of(None) is None
    _, run = answer(folder, system=SYSTEM)
    assert run.read_tokens == run.prompt_tokens - made.tokens
    with Chat(folder, system=SYSTEM, config=QUICK) as chat:
        chat.send("the")
        assert chat.prompt_tokens == chat.dialog_tokens - made.tokens
    assert warm(folder, "Be brief.", day=day).day == day
