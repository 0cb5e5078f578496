"""SIGKILL at random and at the worst moments: the next run ends with an undisturbed one's bytes.

The worst are between the two renames that replace an output: the old one is out of its place, and
the new one not yet in it.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Exports:
    """Exports of one model to one target, in processes that may be killed."""

    def __init__(self, model: Path, target: str | None, recipe: str, place: Path) -> None:
        self._model, self._target, self._recipe = model, target, recipe
        self.cache, self.out = place / "cache", place / "bundles" / "out"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.export_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, kill_after_s: float | None = None, *, kill_at: str | None = None, force: bool = False
    ) -> dict[str, Any]:
        request = {
            "model": str(self._model),
            "target": self._target,
            "recipe": self._recipe,
            "out": str(self.out),
            "cache": str(self.cache),
            "kill_after_s": kill_after_s,
            "kill_at": kill_at,
            "force": force,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        found: dict[str, Any] = json.loads(self._server.stdout.readline())
        return found

    def complete(self) -> dict[str, bytes]:
        """The bundle, by a further run unless the killed one had just put it in place."""
        if not self.out.exists():
            assert self.run()["exit_code"] == 0
            assert [path.name for path in self.out.parent.iterdir()] == [self.out.name]
            assert not (self.cache / "unfinished").exists()
        return contents(self.out)

    def forget(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        shutil.rmtree(self.out.parent, ignore_errors=True)

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture
def exports(
    request: pytest.FixtureRequest, debug_folder: Path, tmp_path: Path
) -> Iterator[Exports]:
    target, recipe = request.param
    found = Exports(debug_folder, target, recipe, tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize("exports", [("onnx", "w4a8-rtn")], indirect=True)
def test_a_chain_of_kills_changes_no_byte(exports: Exports) -> None:
    seconds = exports.run()["seconds"]
    wanted = exports.complete()
    exports.forget()
    moments = random.Random(0)
    for _ in range(3):
        killed = exports.run(kill_after_s=moments.uniform(0, seconds))
        assert killed["exit_code"] in (-signal.SIGKILL, 0)
        if exports.out.exists():
            break
    assert exports.complete() == wanted


@pytest.mark.parametrize(
    "exports", [("onnx", "w4a8-rtn"), (None, "w4a8-rtn")], indirect=True, ids=["export", "quantize"]
)
def test_a_kill_between_two_renames_loses_neither_output(exports: Exports) -> None:
    assert exports.run()["exit_code"] == 0
    wanted = exports.complete()
    work = exports.out.parent / ".out.unfinished"
    for at in (".out.unfinished/new-out", ".out.unfinished/old-out", "bundles/out"):
        assert exports.run(kill_at=at, force=True)["exit_code"] == -signal.SIGKILL
        old = work / "old-out" if at == "bundles/out" else exports.out
        new = work / "output" if at.endswith("new-out") else work / "new-out"
        assert contents(old) == contents(new) == wanted
        # Without --force nothing of it is replaced, and what is whole is in its place.
        assert exports.run()["exit_code"] == 1
        assert exports.complete() == wanted
        assert exports.run(force=True)["exit_code"] == 0
        assert exports.complete() == wanted
        assert [path.name for path in exports.out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("exports", [(None, "w4a8-gptq")], indirect=True)
def test_a_kill_before_a_result_is_in_the_cache_loses_none(exports: Exports) -> None:
    assert exports.run()["exit_code"] == 0
    wanted = exports.complete()
    (entry,) = exports.cache.glob("quantized/*")
    cached = contents(entry)
    (entry / "weights.safetensors").write_bytes(b"damaged")
    shutil.rmtree(exports.out)
    for _ in range(2):
        killed = exports.run(kill_at="quantized/*")
        assert killed["exit_code"] == -signal.SIGKILL
        assert not entry.exists()
        assert not exports.out.exists()
    assert exports.complete() == wanted
    assert contents(entry) == cached
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


@pytest.mark.slow
@pytest.mark.parametrize("exports", [("android", "w4a8-mixed")], indirect=True)
def test_twenty_kills_and_twenty_whole_bundles(exports: Exports) -> None:
    seconds = exports.run()["seconds"]
    wanted = exports.complete()
    moments, killed, runs = random.Random(0), 0, 0
    while killed < 20:
        exports.forget()
        found = exports.run(kill_after_s=moments.uniform(0, seconds))
        runs += 1
        if found["exit_code"] == -signal.SIGKILL:
            killed += 1
        else:  # done before its moment: the run that was timed was a slower one
            seconds = min(seconds, found["seconds"])
        assert exports.complete() == wanted
        assert runs < 60, f"{killed} of {runs} runs were killed"
