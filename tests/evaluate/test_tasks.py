"""lm-eval's questions answered by a session, against sums worked out by hand."""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import TextError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.session import FloatArray
from llama_edge.evaluate import tasks
from llama_edge.evaluate.tasks import SessionLM, run_tasks
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession
from llama_edge.text.tokenizer import Tokenizer
from tests.conftest import debug_text

TOKENIZER = Tokenizer(debug_text())
TASK = r"""
task: rain
dataset_path: json
dataset_kwargs: {data_files: {test: rain.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
QUESTIONS = (
    {"question": "What falls?", "choices": ["rain", "ox"], "answer": 0},
    {"question": "What rises?", "choices": ["ox", "steam"], "answer": 1},
    {"question": "What lows?", "choices": ["ox", "stones"], "answer": 0},
)


@pytest.fixture(autouse=True)
def _forgotten_modules() -> Iterator[None]:
    """Tasks' code is imported, and its files are replaced by pipes, which hypothesis would read."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(tempfile.gettempdir()):
            del sys.modules[name]


class Parrot(EagerSession):
    """Wants to say `text` after any prompt, then to end; no other token is likelier than others."""

    def __init__(self, text: str, max_context: int) -> None:
        self._script = [*TOKENIZER.encode(text), *debug_text().eos_token_ids[:1]]
        self._max_context = max_context
        self._step = 0
        self.longest = 0
        self.used = 0

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        last: FloatArray = self.prefill_logits(tokens)[-1]
        return last

    def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
        self.longest = max(self.longest, len(tokens))
        self.used += len(tokens)
        assert self.used <= self._max_context
        logits = np.zeros((len(tokens), 256), np.float32)
        if self._step < len(self._script):
            logits[-1, self._script[self._step]] = 1
        self._step += 1
        return logits

    def reset(self, keep: int = 0) -> None:
        self._step = self.used = 0


def model_of(session: EagerSession) -> SessionLM:
    return SessionLM(session, debug_text(), SilentProgress())


def ask(kind: str, *arguments: object) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]


@pytest.fixture(scope="module")
def eager(debug_checkpoint: Checkpoint) -> EagerSession:
    config = debug_checkpoint.config
    source = CachedSource(FullPrecisionSource(config, debug_checkpoint.weights))
    return EagerSession(Reference(config, source), 64)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "rain.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    path = tmp_path / "rain.yaml"
    path.write_text(TASK)
    return path


@pytest.mark.parametrize("piece", [2, 128])
def test_a_continuations_likelihood_is_the_models(
    eager: EagerSession, debug_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(tasks, "PIECE", piece)
    context, continuation = TOKENIZER.encode("the rain"), TOKENIZER.encode(" in the north")
    config = debug_checkpoint.config
    full = Reference(config, FullPrecisionSource(config, debug_checkpoint.weights))
    rows = full.logits(torch.tensor(context + continuation)).log_softmax(-1)
    wanted = sum(
        float(rows[len(context) - 1 + step, token]) for step, token in enumerate(continuation)
    )
    [(found, greedy)] = model_of(eager).loglikelihood(
        ask("loglikelihood", "the rain", " in the north")
    )
    assert found == pytest.approx(wanted, rel=1e-4)
    assert greedy is False


def test_the_greedy_continuation_is_known_as_such() -> None:
    [(_, right)] = model_of(Parrot("x", 64)).loglikelihood(ask("loglikelihood", "a", "x"))
    [(_, wrong)] = model_of(Parrot("y", 64)).loglikelihood(ask("loglikelihood", "a", "x"))
    assert (right, wrong) == (True, False)


def test_an_empty_context_is_bos(eager: EagerSession) -> None:
    model = model_of(eager)
    assert model.prefix_token_id == 3
    [(found, _)] = model.loglikelihood(ask("loglikelihood", "", "rain"))
    [rolling] = model.loglikelihood_rolling(ask("loglikelihood_rolling", "rain"))
    assert rolling == pytest.approx(found)


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    session = Parrot("", 16)
    [(found, _)] = model_of(session).loglikelihood(ask("loglikelihood", "x" * 40, "yz"))
    assert session.used == 16
    # The stand-in prefers a token at the end of each call: two calls, the last scores y and z.
    assert found == pytest.approx(-math.log(256) - math.log(256), rel=1e-2)


def test_every_token_of_a_long_text_counts_once() -> None:
    """All tokens equally likely: 50 tokens in windows of 16."""

    class Even(Parrot):
        def prefill_logits(self, tokens: Sequence[int]) -> FloatArray:
            return np.zeros_like(super().prefill_logits(tokens))

    [found] = model_of(Even("", 16)).loglikelihood_rolling(ask("loglikelihood_rolling", "x" * 50))
    assert found == pytest.approx(-50 * math.log(256))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"until": []}, "one, two. three"),
        ({"until": ["."]}, "one, two"),
        ({"until": [". th", ","]}, "one"),
        ({"until": "two"}, "one, "),
        ({"until": [], "max_gen_toks": 3}, "one"),
    ],
)
def test_answers_end_at_a_stop_string_or_an_end_token(
    options: dict[str, object], expected: str
) -> None:
    session = Parrot("one, two. three", 300)
    length = len(TOKENIZER.encode("one"))
    options = {**options, "max_gen_toks": length} if "max_gen_toks" in options else options
    [found] = model_of(session).generate_until(ask("generate_until", "count:", options))
    assert found == expected


def test_a_prompt_leaves_room_for_the_answer() -> None:
    session = Parrot("yes", 20)
    options = {"until": [], "max_gen_toks": 8}
    assert model_of(session).generate_until(ask("generate_until", "x" * 40, options)) == ["yes"]
    assert session.longest == 12
    with pytest.raises(TextError, match="lower max_gen_toks"):
        model_of(session).generate_until(ask("generate_until", "x", {"max_gen_toks": 20}))


def test_a_task_runs_from_local_data(task: Path) -> None:
    """Even odds: the shorter answer is the likelier one, which is right in one of three."""
    [score] = run_tasks(Parrot("", 128), debug_text(), [task], SilentProgress())
    assert (score.task, score.metric, score.samples) == ("rain", "acc,none", 3)
    assert score.value == pytest.approx(1 / 3)
    assert score.standard_error == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task: rain", "task: [rain", "not a task that lm-eval can run"),
        ("task: rain", "group: rain", "the name of one task is needed"),
        ("dataset_path: json", "dataset_path: someone/rain", "only local data is read"),
        ("rain.jsonl", "https://example.org/rain.jsonl", "no such data file"),
        ("{data_files: {test: rain.jsonl}}", "{}", "must name a file for each split"),
        ("{{answer}}", "{{answer", "not a task that lm-eval can run"),
        ("{{question}}", "{{enquiry}}", "not a task that lm-eval can run"),
        ("multiple_choice", "telepathy", "not a task that lm-eval can run"),
        ("task: rain", "task: rain\ninclude: 5", "include is 5; a file's name is needed"),
        ("task: rain", "task: rain\ninclude: rain.yaml", "Include cycle"),
        ("{test: rain.jsonl}", "{test: [rain.jsonl]}", "must name a file for each split"),
    ],
)
def test_a_task_that_cannot_run_is_named(task: Path, old: str, new: str, message: str) -> None:
    task.write_text(TASK.replace(old, new))
    with pytest.raises(TextError, match=rf"rain\.yaml: .*{message}"):
        run_tasks(Parrot("", 128), debug_text(), [task], SilentProgress())


def test_a_missing_task_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nowhere\.yaml"):
        run_tasks(Parrot("", 128), debug_text(), [tmp_path / "nowhere.yaml"], SilentProgress())


def refusal(path: Path) -> str:
    with pytest.raises(TextError) as caught:
        run_tasks(Parrot("", 128), debug_text(), [path], SilentProgress())
    return str(caught.value)


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(20 << 30)


NO_FILES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is a named pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "a folder": (Path.mkdir, "is a folder"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "a sparse file": (sparse, "at most"),
}


@pytest.mark.parametrize("name", ["rain.yaml", "rain.jsonl", "base.yaml", "words.py"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_a_task_is_made_of_is_files(task: Path, kind: str, name: str) -> None:
    """A pipe that nobody writes to would be waited for; a device has no end."""
    task.write_text(f"{TASK}include: base.yaml\nprocess_docs: !function words.plain\n")
    (task.parent / "base.yaml").write_text("num_fewshot: 0")
    (task.parent / "words.py").write_text("def plain(docs):\n    return docs\n")
    assert len(run_tasks(Parrot("", 128), debug_text(), [task], SilentProgress())) == 1
    make, message = NO_FILES[kind]
    (task.parent / name).unlink()
    make(task.parent / name)
    said = refusal(task)
    assert name in said
    assert message in said


TEN = ", ".join(["x"] * 10)
LEVELS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("[" * 100_000, "more than 64 levels"),
        ("a: " + "{a: " * 50_000, "more than 64 levels"),
        ("- " * 30_000, "more than 64 levels"),
        (f"a0: &a0 [{TEN}]\n{LEVELS}\ntask: *a9", "written out"),
        (f"a: &a {'x' * 100_000}\ntask: [{', '.join(['*a'] * 100)}]", "written out"),
        ("task: &a [*a]", "written out"),
        ("&a {task: rain, b: &a {c: *a}}", "written out"),
        ("include: [" + ", ".join(f"{i}.yaml" for i in range(100)) + "]", "more than 64 files"),
    ],
)
def test_yaml_that_would_overflow_is_refused(task: Path, source: str, message: str) -> None:
    for number in range(100):
        (task.parent / f"{number}.yaml").write_text("{}")
    task.write_text(source)
    assert message in refusal(task)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class Odd(Exception): pass\ndef words(docs): raise Odd('no words')", "Odd: no words"),
        ("def words(docs): return words(docs)", "RecursionError"),
        ("def words(docs): assert docs is None", "AssertionError"),
        ("def words(docs): raise SystemExit(7)", "SystemExit: 7"),
        ("def words(:", "SyntaxError"),
    ],
)
def test_an_error_of_a_tasks_own_code_is_told(task: Path, body: str, message: str) -> None:
    task.write_text(f"{TASK}process_docs: !function code.words\n")
    (task.parent / "code.py").write_text(body)
    said = refusal(task)
    assert said.startswith(str(task))
    assert message in said
