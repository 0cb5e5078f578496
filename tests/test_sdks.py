"""The tests that need no vendor's library are known, and run without any."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sdks import Without, imported_sdks, needed_sdks

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("file", "sdks"),
    [
        ("export/onnx/test_lower.py", {"onnx"}),
        ("export/coreml", {"coreml"}),
        # Through `llama_edge.formats.mlpackage`.
        ("runtimes/test_coreml_memory.py", {"coreml"}),
        ("quantize/test_gptq.py", set()),
    ],
)
def test_what_a_file_imports(file: str, sdks: set[str]) -> None:
    assert imported_sdks(TESTS / file) == sdks


def test_an_import_of_a_module_of_ours_counts(tmp_path: Path) -> None:
    assert imported_sdks(tmp_path / "test_it.py") == set()
    place = TESTS / "export" / "executorch" / "test_there_is_no_such_file.py"
    assert imported_sdks(place) == {"executorch"}, "by its conftest.py"


@pytest.mark.parametrize(
    ("parameters", "fixtures", "sdks"),
    [
        ({}, (), set()),
        ({"target": "ios", "count": 2}, (), {"coreml"}),
        ({"bundle": "onnx_bundle"}, (), {"onnx"}),
        ({}, ("tmp_path", "debug_bundles"), {"executorch", "onnx"}),
    ],
)
def test_a_parameter_and_a_fixture_count(
    parameters: dict[str, object], fixtures: tuple[str, ...], sdks: set[str]
) -> None:
    call = SimpleNamespace(params=parameters)
    path = TESTS / "quantize" / "test_gptq.py"
    item = SimpleNamespace(path=path, callspec=call, fixturenames=fixtures)
    assert needed_sdks(item) == sdks  # type: ignore[arg-type]


def test_what_is_hidden_is_not_found() -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> str:
            return f"spec of {name}"

    without = Without(Finder(), frozenset({"onnx"}))  # type: ignore[arg-type]
    assert without.find_spec("onnx", None) is None
    assert without.find_spec("onnx.checker", None) is None
    assert without.find_spec("onnxruntime", None) == "spec of onnxruntime"


def test_a_file_that_is_no_program_imports_nothing() -> None:
    """Such are in the corpus of mutated files, and pytest asks for each."""
    corpus = Path(__file__).parent / "fuzz" / "corpus"
    files = [path for path in corpus.rglob("*") if path.is_file()]
    assert files
    assert not any(imported_sdks(path) for path in files)
