"""What can be wrong with a bundle: stable codes, with one wording for every program that finds it.

`finding_codes.json` next to this file is the catalog in full. The apps ship the same file, so that
their error screens say what `llama-edge doctor` says. A code is never renamed or given another
meaning; a sentence may get better.
"""

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from llama_edge.core.errors import ArtifactError, CheckFailedError
from llama_edge.core.regular import kind_of

CATALOG_FILE: Final = "finding_codes.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingCode:
    """One kind of fault."""

    #: dotted and stable: its area, then what is wrong there
    code: str
    #: one sentence
    what: str
    #: what the reader can do about it
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractFinding:
    """One fault at one place."""

    code: str
    #: the file, and after a colon and a space the field or weight in it
    where: str
    expected: str
    found: str

    def __post_init__(self) -> None:
        assert self.code in finding_codes(), f"{self.code} is not in {CATALOG_FILE}"

    @property
    def what(self) -> str:
        """The catalog's sentence."""
        return finding_codes()[self.code].what

    @property
    def remedy(self) -> str:
        """The catalog's advice."""
        return finding_codes()[self.code].remedy

    @property
    def sentences(self) -> str:
        """All of it in one line, but for the place."""
        return f"{self.what} Expected {self.expected}; found {self.found}. {self.remedy}"

    @property
    def message(self) -> str:
        """All of it in one line."""
        return f"{self.where}: {self.sentences}"

    def to_json(self) -> dict[str, Any]:
        """For `--json` and for fixtures that the apps' tests read too."""
        return {
            "code": self.code,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "what": self.what,
            "remedy": self.remedy,
        }


def not_a_file(where: str, mode: int) -> ContractFinding:
    """Something in a bundle is neither a file nor a folder; `mode` is its `st_mode`."""
    return ContractFinding(
        code="files.symlink" if stat.S_ISLNK(mode) else "files.kind",
        where=where,
        expected="a file of the bundle's own",
        found=kind_of(mode),
    )


@cache
def finding_codes() -> Mapping[str, FindingCode]:
    """The catalog, by code."""
    text = resources.files("llama_edge.bundle").joinpath(CATALOG_FILE).read_text("utf-8")
    return {code: FindingCode(code=code, **entry) for code, entry in json.loads(text).items()}


class ContractViolationError(ArtifactError):
    """A bundle that cannot be trusted or read at all; `place` is where the reader knows it."""

    def __init__(self, finding: ContractFinding, place: object) -> None:
        super().__init__(f"{place}: {finding.sentences}")
        self.finding = finding


class ContractCheckError(CheckFailedError):
    """A bundle whose files are not those of its manifest."""

    def __init__(self, finding: ContractFinding, place: object) -> None:
        super().__init__(f"{place}: {finding.sentences}")
        self.finding = finding
