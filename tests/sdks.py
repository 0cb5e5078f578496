"""Which vendors' libraries a test needs: a marker for each, and a run without what is missing.

A test has the marker `executorch`, `onnx` or `coreml` when its file imports that library, itself or
through a module of ours, when it uses a fixture that lowers or has a target as a parameter, or when
it says so with `@pytest.mark`. What needs a library that is not installed is left out, so that
`pip install -e .` and `pytest` are enough to work on the other rooms.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

import pytest

from llama_edge.backends import BACKENDS, TARGETS

#: Top-level packages by backend; the markers, and the extras of `pyproject.toml`, have its name.
PACKAGES: Final = {name: frozenset(backend.libraries) for name, backend in BACKENDS.items()}
#: Fixtures of `tests/conftest.py` that lower for a target.
FIXTURES: Final = {
    "debug_onnx": frozenset({"onnx"}),
    "smollm2_onnx": frozenset({"onnx"}),
    "onnx_bundle": frozenset({"onnx"}),
    "guard_bundle": frozenset({"onnx"}),
    "served_bundle": frozenset({"onnx"}),
    "android_bundle": frozenset({"executorch"}),
    "debug_bundles": frozenset({"executorch", "onnx"}),
}
#: It loads a part of the package without an import statement.
_LOADS: Final = {"llama_edge.formats.mil_messages": "coremltools"}
#: A parameter of a test with this value says what it lowers for.
_LOWERS_FOR: Final = {
    **{name: name for name in BACKENDS},
    **{name: target.formats[0].backend for name, target in TARGETS.items()},
}
_ROOT: Final = Path(__file__).parent.parent


class _Finder(Protocol):
    """See `importlib.abc.MetaPathFinder`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None: ...


class Without:
    """A finder of modules, which does not find some packages."""

    def __init__(self, finder: _Finder, packages: frozenset[str]) -> None:
        self._finder = finder
        self._packages = packages

    def __getattr__(self, name: str) -> object:
        return getattr(self._finder, name)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name.partition(".")[0] in self._packages:
            return None
        return self._finder.find_spec(name, path, target)


def hide(sdks: Iterable[str]) -> None:
    """Behave as where `sdks` are not installed, for the rest of this process."""
    packages = frozenset().union(*(PACKAGES[sdk] for sdk in sdks))
    sys.meta_path[:] = [Without(finder, packages) for finder in sys.meta_path]


def is_installed(sdk: str) -> bool:
    """Whether every package of the SDK can be imported."""
    return all(importlib.util.find_spec(package) is not None for package in PACKAGES[sdk])


def needed_sdks(item: pytest.Item) -> frozenset[str]:
    """What a collected test needs, apart from what its own markers say."""
    call = getattr(item, "callspec", None)
    values = [] if call is None else [v for v in call.params.values() if isinstance(v, str)]
    fixtures = [*getattr(item, "fixturenames", ()), *values]
    by_fixture = (FIXTURES.get(name, frozenset()) for name in fixtures)
    by_target = {_LOWERS_FOR[value] for value in values if value in _LOWERS_FOR}
    return imported_sdks(item.path).union(by_target, *by_fixture)


@cache
def imported_sdks(path: Path) -> frozenset[str]:
    """The SDKs that are imported with a test file or a folder, and with its `conftest.py`."""
    files = [
        path / "conftest.py" if path.is_dir() else path,
        *(folder / "conftest.py" for folder in path.parents if folder != _ROOT),
    ]
    ours = (
        file
        for file in files
        if file.suffix == ".py" and file.is_relative_to(_ROOT) and file.is_file()
    )
    packages = frozenset().union(*(_packages(file) for file in ours))
    return frozenset(sdk for sdk, names in PACKAGES.items() if names & packages)


def _packages(start: Path) -> frozenset[str]:
    """Top-level packages of the imports of a file and of our modules that it imports."""
    found: set[str] = set()
    seen: set[Path] = set()
    ahead = [start]
    while ahead:
        file = ahead.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _imports(file):
            ahead += _our_files(name)
            found.add(_LOADS.get(name, name.partition(".")[0]))
    return frozenset(found)


@cache
def _imports(file: Path) -> tuple[str, ...]:
    """Dotted names that a module imports at its top level; of `from a import b` also `a.b`."""
    found: list[str] = []
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Import(names=names):
                found += [name.name for name in names]
            case ast.ImportFrom(module=str(module), names=names):
                found += [module, *(f"{module}.{name.name}" for name in names)]
    return tuple(found)


@cache
def _our_files(name: str) -> tuple[Path, ...]:
    """The files of a dotted name of ours: the packages' `__init__.py` and the module's."""
    parts = name.split(".")
    if parts[0] not in {"llama_edge", "tests", "benchmarks"}:
        return ()
    places = [_ROOT.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
    files = [file for at in places for file in (at / "__init__.py", at.with_suffix(".py"))]
    return tuple(file for file in files if file.is_file())
