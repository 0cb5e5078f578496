"""A conversation between two guards' checks: of the question, and of the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.chat import Chat
from llama_edge.generate.guard import Guard, GuardVerdict
from llama_edge.text.dialog import Message
from llama_edge.text.guard_prompt import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a turn has no answer."""

    verdict: GuardVerdict
    #: names of the categories, by code
    categories: dict[str, str]

    def __str__(self) -> str:
        said = "the question" if self.verdict.side is Side.USER else "the answer"
        names = ", ".join(f"{code} {name}" for code, name in self.categories.items())
        return f"the guard finds {said} unsafe: {names}"


class Judges(Protocol):
    """What is asked: `Guard`."""

    def check(self, messages: Sequence[Message]) -> GuardVerdict:
        """Judge the last message."""
        ...

    def name_of(self, code: str) -> str:
        """The name of a category."""
        ...


def refused(guard: Judges, messages: Sequence[Message]) -> Refusal | None:
    """Why the last message is not passed on; None: it is safe.

    Raises:
        LlamaEdgeError: As `Guard.check`.
    """
    verdict = guard.check(messages)
    if verdict.safe:
        return None
    names = {code: guard.name_of(code) for code in verdict.codes}
    return Refusal(verdict=verdict, categories=names)


class GuardedChat(Chat):
    """A `Chat` of which nothing is given out before a guard has found it safe.

    An unsafe question is not answered, and an unsafe answer is withheld; neither becomes part of
    the dialog. So an answer comes as one piece, at its end. When the guard fails, the turn does.

    Args:
        folder: The bundle that answers.
        guard: Opened; the caller closes it.
        system: A system prompt, which the guard does not see.
        config: How an answer may be.
        runtime: None takes the one that the gate uses.
        trust: Whose signature the bundle must have.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says, or not listed there; or the
            signature is not the one that `trust` demands.
        UsageError: The runtime is another backend's, or an answer's length does not fit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        guard: Guard,
        system: str | None,
        config: AnswerConfig,
        runtime: str | None = None,
        trust: Trust = NO_KEY,
    ) -> None:
        self._guard = guard
        #: of the last turn; None where it was answered
        self.refusal: Refusal | None = None
        super().__init__(folder, system=system, config=config, runtime=runtime, trust=trust)

    def stream(self, text: str) -> Iterator[str]:
        """Say something; empty pieces while the answer is made, and then all of it if it is safe.

        Raises:
            GuardError: The guard gives no verdict.
            SessionError: The message does not fit one of the two contexts.
            RuntimeCrashError: A runtime died or hung.
        """
        before = self._messages
        question = {"role": "user", "content": text}
        self.refusal = refused(self._guard, [*before, question])
        if self.refusal is not None:
            return
        pieces = list[str]()
        for piece in super().stream(text):
            pieces.append(piece)
            yield ""
        after, self._messages = self._messages, before
        answer = "".join(pieces)
        self.refusal = refused(
            self._guard, [*before, question, {"role": "assistant", "content": answer}]
        )
        if self.refusal is None:
            self._messages = after
            yield answer
