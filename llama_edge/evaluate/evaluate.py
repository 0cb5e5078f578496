"""How good a bundle is on the user's own text and tasks, through its own runtime."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import Bundle, is_bundle, open_bundle
from llama_edge.bundle.full_precision import load_full_precision
from llama_edge.bundle.session import open_session
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.checkpoints import BUILTIN_MODELS, load_checkpoint
from llama_edge.core.artifact import Artifact
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import MissingComponentError, TextError, UsageError
from llama_edge.core.progress import Progress
from llama_edge.core.regular import MAX_TEXT_BYTES, plain_newlines, read_regular_text
from llama_edge.core.session import Session
from llama_edge.core.text_assets import TextAssets
from llama_edge.evaluate.report import (
    TOTAL,
    EvalReport,
    EvalRequest,
    SubjectResult,
    TaskScore,
    TextResult,
)
from llama_edge.evaluate.windows import (
    Candidate,
    Scores,
    cut_windows,
    score_windows,
    summarize_difference,
    summarize_scores,
)
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, FullPrecisionSource
from llama_edge.pipeline.suite import OpenSuite
from llama_edge.runtimes import choose_runtime
from llama_edge.runtimes.eager import EagerSession
from llama_edge.suites.request import SuiteRequest
from llama_edge.suites.scores import SuiteReport
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A bundle or a full-precision model that was found, before anything runs."""

    name: str
    #: None for a full-precision model; so are `artifact` and `runtime`
    bundle: Bundle | None
    artifact: Artifact | None
    runtime: str | None
    text: TextAssets
    max_context: int
    vocab_size: int
    #: the model itself, or what the bundle is compared with; None when that is not available
    full: Checkpoint | None


def evaluate(request: EvalRequest, progress: Progress) -> EvalReport:
    """Run each subject over the same windows of every text, and through every task.

    Raises:
        MissingComponentError: Tasks are asked for and lm-eval is not installed.
        TextError: A file is missing, not UTF-8, or too short for one window.
        UsageError: The two subjects have different tokenizers, or the window exceeds a context.
        CheckFailedError: A bundle's file was changed, or its logits are not finite.
        LlamaEdgeError: What a reader or a runtime says.
    """
    texts = {str(path): read_text(path) for path in request.texts}
    subjects = [
        open_subject(name, request.against, request.runtime, request.trust)
        for name in request.subjects
    ]
    if all(subject.artifact is None for subject in subjects):
        request.trust.require_bundle(" and ".join(request.subjects))
    suite = None if request.suite is None else _open_suite(request.suite, subjects)
    run_tasks = _task_runner() if request.tasks else None
    parts = _score_texts(subjects, texts, request, progress)
    results = []
    for subject, scored in zip(subjects, parts, strict=True):
        tasks: tuple[TaskScore, ...] = ()
        if run_tasks is not None:
            with _session(subject) as session:
                tasks = run_tasks(session, subject.text, request.tasks, progress)
        measured = None if suite is None else _measure_suite(suite, subject, progress)
        results.append(_subject_result(subject, scored, tasks, measured))
    return EvalReport(
        window=request.window,
        subjects=tuple(results),
        difference=_differences(*parts) if len(parts) == 2 else (),
    )


#: A text's name, or `TOTAL`, and its scores.
NamedScores = tuple[str, Scores]
TaskRunner = Callable[[Session, TextAssets, Sequence[Path], Progress], tuple[TaskScore, ...]]


def _task_runner() -> TaskRunner:
    try:
        with _without_ipv6():
            from llama_edge.evaluate.tasks import run_tasks
    except ModuleNotFoundError as error:
        raise MissingComponentError(
            f"--tasks: the package {error.name!r} is not installed; pip install 'llama-edge[eval]'"
        ) from error
    return run_tasks


@contextmanager
def _without_ipv6() -> Iterator[None]:
    """For lm-eval's urllib3, which opens a socket on import to learn whether there is IPv6."""
    has_ipv6 = socket.has_ipv6
    socket.has_ipv6 = False
    try:
        yield
    finally:
        socket.has_ipv6 = has_ipv6


def _session(subject: Subject) -> Session:
    """A bundle's own runtime; the whole of a full-precision model in memory."""
    if subject.bundle is not None:
        assert subject.artifact is not None
        assert subject.runtime is not None
        return open_session(subject.bundle, subject.artifact, subject.runtime)
    assert subject.full is not None, "a subject is a bundle or a model"
    config = subject.full.config
    source = CachedSource(FullPrecisionSource(config, subject.full.weights))
    return EagerSession(Reference(config, source), subject.max_context)


def _score_texts(
    subjects: Sequence[Subject], texts: Mapping[str, str], request: EvalRequest, progress: Progress
) -> list[list[NamedScores]]:
    """Per subject, each text's scores, then all of them; nothing without texts."""
    if not texts:
        return [[] for _ in subjects]
    windows = _common_windows(subjects, texts, request)
    everything = [window for part in windows.values() for window in part]
    with ExitStack() as stack:
        candidates = _candidates(subjects, stack)
        scores = score_windows(candidates, everything, progress)
    counts = {name: len(part) for name, part in windows.items()}
    return [list(_split(one, counts)) for one in scores]


def _subject_result(
    subject: Subject,
    parts: Sequence[NamedScores],
    tasks: tuple[TaskScore, ...],
    suite: SuiteReport | None,
) -> SubjectResult:
    against = None
    if subject.artifact is not None and subject.full is not None:
        against = subject.full.source
    return SubjectResult(
        name=subject.name,
        runtime=subject.runtime,
        against=against,
        results=tuple(
            TextResult(text=name, windows=len(part.nll), metrics=summarize_scores(part))
            for name, part in parts
        ),
        tasks=tasks,
        suite=suite,
    )


def _open_suite(request: SuiteRequest, subjects: Sequence[Subject]) -> OpenSuite:
    """Everything about the suite that can be wrong is known before anything runs.

    Raises:
        UsageError: A subject is no bundle, its model is not available, or a prompt is too long.
    """
    suite = OpenSuite.of(request)
    for subject in subjects:
        if subject.artifact is None:
            raise UsageError(
                f"{subject.name}: a suite compares a bundle with its full-precision model, and "
                "this is a model; name a bundle"
            )
        if subject.full is None:
            raise UsageError(
                f"{subject.name}: a suite compares it with its full-precision model; name that "
                "with --against"
            )
        suite.encode(subject.text, subject.max_context)
    return suite


def _measure_suite(suite: OpenSuite, subject: Subject, progress: Progress) -> SuiteReport:
    assert subject.full is not None, "looked at when the suite was opened"
    with _session(subject) as session:
        return suite.measure(session, subject.text, subject.full, progress)


def _differences(
    first: Sequence[NamedScores], second: Sequence[NamedScores]
) -> tuple[TextResult, ...]:
    return tuple(
        TextResult(text=name, windows=len(a.nll), metrics=summarize_difference(a, b))
        for (name, a), (_, b) in zip(first, second, strict=True)
    )


def read_text(path: Path) -> str:
    """A UTF-8 file.

    Raises:
        TextError: It is missing, too large or not UTF-8.
    """
    return plain_newlines(read_regular_text(path, MAX_TEXT_BYTES, TextError))


def open_subject(
    name: str, against: str | None, runtime: str | None = None, trust: Trust = NO_KEY
) -> Subject:
    """Open a bundle and the model it came from, or a full-precision model.

    Raises:
        ArtifactError: An unsafe or damaged bundle.
        CheckFailedError: A file is not what the bundle's manifest says.
        CheckpointError: `name` is no model, or `against` is not the bundle's.
        UsageError: The runtime is another backend's.
    """
    root = Path(name)
    if name in BUILTIN_MODELS or not is_bundle(root):
        checkpoint = load_checkpoint(name)
        return Subject(
            name=name,
            bundle=None,
            artifact=None,
            runtime=None,
            text=checkpoint.text,
            max_context=checkpoint.config.max_position_embeddings,
            vocab_size=checkpoint.config.vocab_size,
            full=checkpoint,
        )
    bundle = open_bundle(root, trust)
    artifact = get_exporter(bundle.manifest.backend).open(root).artifact
    return Subject(
        name=name,
        bundle=bundle,
        artifact=artifact,
        runtime=choose_runtime(artifact.backend, runtime),
        text=read_text_assets(root),
        max_context=artifact.max_context,
        vocab_size=artifact.config.vocab_size,
        full=load_full_precision(bundle.manifest, against),
    )


def _common_windows(
    subjects: Sequence[Subject], texts: Mapping[str, str], request: EvalRequest
) -> dict[str, list[tuple[int, ...]]]:
    """Each text's windows, which must be the same token ids for every subject."""
    cut = [_windows(subject, texts, request) for subject in subjects]
    for subject, windows in zip(subjects, cut, strict=True):
        if windows != cut[0]:
            raise UsageError(
                f"{subjects[0].name} and {subject.name} make different tokens of the same text, so "
                "their numbers per token cannot be compared; evaluate each alone"
            )
    return cut[0]


def _windows(
    subject: Subject, texts: Mapping[str, str], request: EvalRequest
) -> dict[str, list[tuple[int, ...]]]:
    if request.window > subject.max_context:
        raise UsageError(
            f"window is {request.window} and the context of {subject.name} holds "
            f"{subject.max_context} tokens; give a smaller --window"
        )
    tokenizer = Tokenizer(subject.text)
    bos = subject.text.bos_token_id if subject.text.add_bos else None
    return {
        name: cut_windows(
            name, tokenizer.encode(text, add_bos=False), request.window, bos, request.max_windows
        )
        for name, text in texts.items()
    }


def _candidates(subjects: Sequence[Subject], stack: ExitStack) -> list[Candidate]:
    """Sessions that `stack` closes; subjects of one full-precision model share its network."""
    networks: dict[str, Reference] = {}
    candidates = []
    for subject in subjects:
        session = full = None
        if subject.artifact is not None:
            session = stack.enter_context(_session(subject))
        if subject.full is not None:
            model = subject.full
            source = FullPrecisionSource(model.config, model.weights)
            full = networks.setdefault(model.source, Reference(model.config, source))
        candidates.append(Candidate(session=session, vocab_size=subject.vocab_size, full=full))
    return candidates


def _split(scores: Scores, counts: Mapping[str, int]) -> Iterator[NamedScores]:
    """Each text's scores, then all of them."""
    start = 0
    for name, count in counts.items():
        yield name, scores.take(slice(start, start + count))
        start += count
    yield TOTAL, scores
