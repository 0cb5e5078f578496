"""The pytest plugin: `pytest --llama-edge-bundle PATH`, and the fixture of the bundle."""

from pathlib import Path
from typing import Final

import pytest

_OPTION: Final = "--llama-edge-bundle"
_FIXTURE: Final = "llama_edge_bundle"


def pytest_addoption(parser: pytest.Parser) -> None:
    """One option; it may be given more than once."""
    group = parser.getgroup("llama-edge")
    group.addoption(
        _OPTION,
        action="append",
        default=[],
        metavar="PATH",
        help="a bundle for tests that take the fixture llama_edge_bundle; each one runs them again",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for a bundle runs once for each that is given."""
    if _FIXTURE in metafunc.fixturenames:
        given: list[str] = metafunc.config.getoption(_OPTION)
        if given:
            paths = [Path(path) for path in given]
            metafunc.parametrize(_FIXTURE, paths, ids=[path.name for path in paths])


@pytest.fixture
def llama_edge_bundle() -> Path:
    """The folder of a bundle that the command line names; a gate without one does not pass."""
    pytest.fail(f"no bundle is given: pytest {_OPTION} PATH", pytrace=False)
