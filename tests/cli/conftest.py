import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from llama_edge.cli.app import run_program


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run one command line in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = run_program([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return run


Program = Callable[..., Result]
