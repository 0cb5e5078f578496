"""`doctor` on anything at all: it ends, with findings or with one message."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from llama_edge.bundle import doctor
from llama_edge.bundle.doctor import diagnose
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import LlamaEdgeError, UsageError
from llama_edge.core.progress import SilentProgress, Steps, step_count


class Stages(SilentProgress):
    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        self.names.append(f"{stage}: {step_count(steps)}")


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_the_child_says_what_the_examination_says(
    debug_bundles: Mapping[str, Bundle], target: str
) -> None:
    path = debug_bundles[target].root
    here, there = Stages(), Stages()
    assert diagnose(path, None, there) == examine(path, None, here)
    assert there.names == here.names


def test_errors_keep_their_class(debug_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamaEdgeError, match="there is no such file"):
        diagnose(tmp_path / "none", None, SilentProgress())
    with pytest.raises(UsageError, match=r"key\.pem"):
        diagnose(debug_folder, tmp_path / "key.pem", SilentProgress())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no limit of memory")
def test_what_needs_too_much_is_a_finding(
    debug_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_MEMORY_BYTES", 1 << 20)
    (finding,) = diagnose(debug_folder, None, SilentProgress()).findings
    assert finding.code == "examination.stopped"
    assert "it takes more than 1 MiB of memory" in finding.found


def deep(folder: Path) -> None:
    """Deeper than a path may be long."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def loop(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    (folder / "tokenizer.json").symlink_to("tokenizer.json")


def sparse(folder: Path) -> None:
    with (folder / "model.pte").open("wb") as stream:
        stream.truncate(20 << 30)


def pipes(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.pte", "generation_config.json"):
        os.mkfifo(folder / name)


def nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)
    (folder / "genai_config.json").write_text('{"model": ' * 100_000)


def strange_names(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[2J.pte"))).write_bytes(b"\0" * 100)


HOSTILE: Final[Mapping[str, Callable[[Path], None]]] = {
    "nothing": lambda folder: None,
    "a deep folder": deep,
    "a loop of links": loop,
    "a sparse file": sparse,
    "pipes": pipes,
    "nested JSON": nested,
    "strange names": strange_names,
    "a link to a device": lambda folder: (folder / "config.json").symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_ends(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    HOSTILE[kind](folder)
    try:
        assert diagnose(folder, None, SilentProgress()).findings
    except LlamaEdgeError as error:
        assert "given" in str(error)
    finally:
        os.system(f"rm -rf {folder}")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/proc/self/mem"])
def test_devices(device: str) -> None:
    with pytest.raises(LlamaEdgeError, match=device):
        diagnose(Path(device), None, SilentProgress())
