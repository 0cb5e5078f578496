"""What an examination of a folder gathers: every finding, what was looked at, and what was not."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_edge.bundle.finding_codes import (
    ContractCheckError,
    ContractFinding,
    ContractViolationError,
)
from llama_edge.bundle.folder import Bundle, parse_manifest
from llama_edge.bundle.signing import Trust
from llama_edge.core.errors import LlamaEdgeError, TokenizerError
from llama_edge.core.progress import Progress
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.contract import GOLDEN_CHATS
from llama_edge.text.special_tokens import TOKENIZER_CONFIG_FILE
from llama_edge.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What `llama-edge doctor` says of a folder or file."""

    path: Path
    #: "bundle", or what else the folder is taken for
    kind: str
    findings: tuple[ContractFinding, ...]
    #: what was looked at, in order
    checked: tuple[str, ...]
    #: what could not be looked at, and what is worth knowing without being wrong
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "passed": self.passed,
            "findings": [finding.to_json() for finding in self.findings],
            "checked": list(self.checked),
            "notes": list(self.notes),
        }


class Examination:
    """Collects while the checks go on: one that fails does not keep the others from running."""

    def __init__(self, path: Path, kind: str, progress: Progress) -> None:
        self.path = path
        self._kind = kind
        self._progress = progress
        self._findings: dict[ContractFinding, None] = {}
        self._checked: list[str] = []
        self._notes: list[str] = []

    def add(self, *findings: ContractFinding) -> None:
        """Keep findings; the same one is kept once."""
        self._findings |= dict.fromkeys(findings)

    def note(self, text: str) -> None:
        """Keep a remark."""
        self._notes.append(text)

    def check(self, what: str, findings: Iterable[ContractFinding]) -> bool:
        """Run one check; True: it found nothing."""
        self._progress.start(what, 1)
        found = tuple(findings)
        self.add(*found)
        self._checked.append(what)
        self._progress.advance()
        return not found

    def bundle(self, trust: Trust) -> Bundle | None:
        """Read the bundle's manifest, its signature first; None: one of them is not right."""
        self._progress.start("signature", 1)
        try:
            found = parse_manifest(self.path, trust)
        except (ContractViolationError, ContractCheckError) as error:
            self.add(error.finding)
            return None
        self._checked.append("signature")
        self._progress.advance()
        return found

    @contextmanager
    def guarded(self, code: str, where: str, expected: str) -> Iterator[None]:
        """What cannot be read is a finding as well: the error's text says why.

        A damaged text file is named by its own message, whatever `where` says.
        """
        try:
            yield
        except TokenizerError as error:
            self.add(self._unread("tokenizer.unreadable", where, expected, error))
        except LlamaEdgeError as error:
            self.add(self._unread(code, where, expected, error))

    def _unread(
        self, code: str, where: str, expected: str, error: LlamaEdgeError
    ) -> ContractFinding:
        # The folder's own name says nothing of the fault, and differs from machine to machine.
        found = str(error).replace(f"{self.path}/", "")
        return ContractFinding(code=code, where=where, expected=expected, found=found)

    def diagnosis(self) -> Diagnosis:
        """The result."""
        return Diagnosis(
            path=self.path,
            kind=self._kind,
            findings=tuple(self._findings),
            checked=tuple(self._checked),
            notes=tuple(self._notes),
        )


def renderable(examination: Examination, text: TextAssets) -> TextAssets:
    """The text files; without their chat template where it cannot be rendered, which is kept."""
    try:
        if text.chat_template is not None:
            tokenizer = Tokenizer(text)
            for messages in GOLDEN_CHATS:
                tokenizer.render_chat(tokenizer.form.accepted(messages))
    except TokenizerError as error:
        examination.add(
            ContractFinding(
                code="template.unrenderable",
                where=f"{TOKENIZER_CONFIG_FILE}: chat_template",
                expected="a template that renders the sample dialogs",
                found=str(error),
            )
        )
        return replace(text, chat_template=None)
    return text
