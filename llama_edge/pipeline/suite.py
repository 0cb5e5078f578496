"""A suite on an artifact: full precision's answers are kept, as they depend on the model alone."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.files import write_json
from llama_edge.core.json_files import MAX_INDEX_BYTES, read_json_object
from llama_edge.core.progress import Progress
from llama_edge.core.session import Session
from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.full_answers import FullAnswers
from llama_edge.models.reference import Reference
from llama_edge.models.sources import FullPrecisionSource
from llama_edge.pipeline.cache import ANSWERS, cache_entry
from llama_edge.quantize.stage import hash_weights
from llama_edge.suites.answers import Examiner, Question, Tokens, encode_suite
from llama_edge.suites.request import SuiteRequest
from llama_edge.suites.requirements import Requirement, missed
from llama_edge.suites.scores import SuiteReport, group_scores
from llama_edge.suites.suite import Suite, load_suite

#: Of a bundle that was exported with one.
SUITE_FILE: Final = "suite.json"
_ANSWERS_FILE: Final = "answers.json"
#: Another version may answer otherwise.
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSuite:
    """A suite that was read."""

    suite: Suite
    requirements: tuple[Requirement, ...]

    @classmethod
    def of(cls, request: SuiteRequest) -> Self:
        """Read the suite, and see that what is required is measured.

        Raises:
            TextError: The file is no suite.
            UnknownNameError: There is no such suite.
            UsageError: A requirement is not of the suite.
        """
        suite = load_suite(request.suite).first(request.per_task)
        requirements = tuple(map(Requirement.parse, request.require))
        for requirement in requirements:
            requirement.require_measured(suite)
        return cls(suite=suite, requirements=requirements)

    def encode(self, text: TextAssets, max_context: int) -> tuple[Question, ...]:
        """See `encode_suite`."""
        return encode_suite(self.suite, text, max_context)

    def measure(
        self, session: Session, text: TextAssets, full: Checkpoint, progress: Progress
    ) -> SuiteReport:
        """Ask both.

        Args:
            session: Of the artifact.
            text: Its text side.
            full: The full-precision model.
            progress: Advances once per prompt.

        Raises:
            UsageError: A prompt does not fit the context.
            SessionError: The runtime refuses an input.
            OutputError: The cache cannot be written.
        """
        questions = self.encode(text, session.max_context)
        limit = self.suite.max_new_tokens
        key = _key(full, text, questions, limit)
        with cache_entry(ANSWERS, key, progress) as entry:
            is_kept = entry.is_there()
            known = _read(entry.folder / _ANSWERS_FILE, questions) if is_kept else {}
            in_full = _InFull(full, text, limit, known)
            examiner = Examiner(
                session=session,
                text=text,
                vocab_size=full.config.vocab_size,
                max_new_tokens=limit,
                answer_in_full=in_full,
            )
            results = examiner.examine(questions, progress)
            if not is_kept:
                with entry.filled() as folder:
                    answers = [known[question.tokens] for question in questions]
                    write_json(folder / _ANSWERS_FILE, {"answers": answers})
        groups = group_scores(results)
        return SuiteReport(
            suite=self.suite.name,
            max_new_tokens=limit,
            against=full.source,
            groups=groups,
            require=tuple(map(str, self.requirements)),
            missed=missed(self.requirements, groups),
            results=results,
        )


class _InFull:
    """Full precision's answers, those that are known first; the network is loaded if one is not."""

    def __init__(
        self, full: Checkpoint, text: TextAssets, limit: int, known: dict[Tokens, list[int]]
    ) -> None:
        self._full, self._text, self._limit = full, text, limit
        self._known = known
        self._network: FullAnswers | None = None

    def __call__(self, prompt: Tokens, draft: Sequence[int]) -> list[int]:
        if prompt not in self._known:
            self._known[prompt] = self._opened().answer(prompt, draft)
        return self._known[prompt]

    def _opened(self) -> FullAnswers:
        if self._network is None:
            config = self._full.config
            model = Reference(config, FullPrecisionSource(config, self._full.weights))
            self._network = FullAnswers(model, self._text, self._limit)
        return self._network


def _key(full: Checkpoint, text: TextAssets, questions: Sequence[Question], limit: int) -> str:
    depends_on = {
        "version": _VERSION,
        "weights": hash_weights(full.weights),
        "config": full.config.to_json(),
        "ends": sorted(text.eos_token_ids),
        "prompts": [question.tokens for question in questions],
        "max_new_tokens": limit,
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def _read(path: Path, questions: Sequence[Question]) -> dict[Tokens, list[int]]:
    """The cache is sealed: what is there is what was written."""
    answers = read_json_object(path, limit=MAX_INDEX_BYTES)["answers"]
    return {question.tokens: found for question, found in zip(questions, answers, strict=True)}
