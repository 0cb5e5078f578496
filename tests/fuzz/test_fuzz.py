"""Every reader on mutated files; a campaign finds what is planted; what was found stays mended."""

import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from llama_edge.core.errors import LlamaEdgeError
from tests.fuzz.campaign import run
from tests.fuzz.child import put
from tests.fuzz.mutations import mutate, parse_fields, written_fields
from tests.fuzz.readers import READERS

CORPUS = Path(__file__).parent / "corpus"
#: What a reader gets in the slow run; the fast ones read their 10^5 inputs in less.
SECONDS = 75
#: At least so many, on a machine as slow as that of the continuous integration.
LEAST = 200

pytestmark = [pytest.mark.executorch, pytest.mark.onnx, pytest.mark.coreml]


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        ("RAISES", "KeyError at tests/fuzz/planted.py"),
        ("HANGS", "SIGALRM"),
        ("FILLS", "MemoryError at tests/fuzz/planted.py"),
        ("ABORTS", "SIGABRT"),
        ("USAGE", "UsageError, exit code 2"),
    ],
)
def test_a_planted_fault_is_found(planted: str, kind: str) -> None:
    outcome = run(f"tests.fuzz.planted:{planted}", count=30)
    assert outcome.inputs == 30
    assert outcome.faults
    assert all(fault.kind.startswith(kind) for fault in outcome.faults)
    assert outcome.faults[0].target == "file"
    assert len(outcome.faults) < 30
    assert sum(outcome.counts.values()) == 30
    # Any input can be had again by its number.
    again = run(f"tests.fuzz.planted:{planted}", count=1, first=outcome.faults[0].number)
    assert again.faults == outcome.faults[:1]


def test_a_reader_without_faults_has_none() -> None:
    outcome = run("tests.fuzz.planted:GOOD", count=100)
    assert not outcome.faults
    assert sum(outcome.counts.values()) == 100


def test_in_a_process_of_its_own_a_reader_may_die() -> None:
    outcome = run("tests.fuzz.planted:ABORTS_IN_CHILD", count=30)
    assert not outcome.faults
    assert outcome.counts["died"] > 0


def test_a_seed_that_is_not_read_is_said() -> None:
    with pytest.raises(RuntimeError, match="the seed is not read: ArtifactError begins with no"):
        run("tests.fuzz.planted:UNREADABLE", count=1)


def test_a_campaign_ends_in_time() -> None:
    outcome = run("tests.fuzz.planted:GOOD", count=10**9, seconds=5)
    assert 0 < outcome.inputs < 10**9
    assert outcome.seconds < 15


def test_structures_are_kept_where_nothing_is_changed() -> None:
    message = b"\x08\x96\x01\x12\x07testing\x1d\x01\x02\x03\x04"
    fields = parse_fields(message)
    assert fields == [[1, 0, 150], [2, 2, b"testing"], [3, 5, b"\x01\x02\x03\x04"]]
    assert written_fields(fields) == message
    assert parse_fields(b"\x12\x07test") is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"a": [1, {"b": null}]}', b"PK\x03\x04", b"\x08\x80"]
)
def test_anything_can_be_mutated(data: bytes) -> None:
    made = {mutate(data, Random(number)) for number in range(300)}
    assert len(made) > 20
    assert made == {mutate(data, Random(number)) for number in range(300)}


@pytest.fixture(scope="module")
def seed_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """A reader's good files; those of several readers are made once."""
    built: dict[object, Path] = {}

    def seed(name: str) -> Path:
        build = READERS[name].build
        if build not in built:
            built[build] = tmp_path_factory.mktemp("seed")
            build(built[build])
        return built[build]

    return seed


def found() -> Mapping[str, tuple[str, Path]]:
    """Reader and file of each case in the corpus."""
    files = sorted(path for path in CORPUS.rglob("*") if path.is_file())
    cases = {}
    for path in files:
        reader, number, *target = path.relative_to(CORPUS).parts
        cases[f"{reader}-{number}"] = (reader, Path(*target))
    return cases


@pytest.mark.parametrize("case", found())
def test_what_was_found_once(case: str, seed_of: Callable[[str], Path], tmp_path: Path) -> None:
    name, target = found()[case]
    folder = tmp_path / "input"
    shutil.copytree(seed_of(name), folder)
    put(folder / target, (CORPUS / case.replace("-", "/", 1) / target).read_bytes())
    try:
        READERS[name].read(folder)
    except LlamaEdgeError as error:
        assert error.exit_code in (1, 3), error


@pytest.mark.slow
def test_no_reader_breaks_the_contract() -> None:
    """Two at a time, as many inputs as the time allows; `python -m tests.fuzz` reads 10^5 each."""
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(
            threads.map(lambda name: run(name, count=100_000, seconds=SECONDS), READERS)
        )
    for outcome in outcomes:
        sys.stdout.write(f"{outcome.reader}: {outcome.inputs} in {outcome.seconds:.0f} s\n")
    faults = {
        outcome.reader: sorted({fault.why for fault in outcome.faults})
        for outcome in outcomes
        if outcome.faults
    }
    assert not faults
    assert min(outcome.inputs for outcome in outcomes) >= LEAST
