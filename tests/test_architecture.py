"""The shape of the house: rooms, size of files, import direction, registries."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llama_edge.backends import BACKENDS
from llama_edge.backends.base import Exporter
from llama_edge.core.model_config import FAMILIES
from llama_edge.core.session import Runtime
from llama_edge.models.network import network_of
from llama_edge.runtimes import RUNTIMES
from tests.conftest import DEBUG_CONFIG

ROOT = Path(__file__).parents[1]
MAX_LINES = 800
#: by name in the package; `export` is a function of the API there
ROOMS = {"backends": "export", "quantize": "quantize", "runtimes": "runtimes"}
TEXT_SUFFIXES = ("", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml")
#: A folder of one machine has no place in a repository; a device's own (Android's
#: /data/local/tmp) does, and `/home/someone` is everybody's example.
MACHINE_PATH = re.compile(
    r"(?<![\w.~/])/(?:work|home(?!/someone)|Users|root|tmp|mnt|scratch)/[\w.-]+"
)


def repository_files(*suffixes: str) -> list[Path]:
    """Files under version control, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and (path.suffix in suffixes or not suffixes)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_one_folder_under_two_names(room: str) -> None:
    link = ROOT / "llama_edge" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..", ROOMS[room])
    assert link.resolve() == ROOT / ROOMS[room]
    assert (link / "__init__.py").is_file()


def test_a_block_is_defined_in_one_room() -> None:
    """Who else names a part of it knows how a Llama is made; the readers have the files' names."""
    parts = {
        node.part
        for family in FAMILIES
        for node in network_of(replace(DEBUG_CONFIG, family=family)).nodes
        if node.layer is not None and (node.has_weight or "_" in node.part)
    }
    assert {"q_proj", "q_norm", "input_layernorm", "mlp_residual"} <= parts
    written = re.compile(rf"\b({'|'.join(sorted(parts))})\b")
    allowed = ("llama_edge/models/", "llama_edge/checkpoints/")
    program = ("llama_edge/", "export/", "quantize/", "runtimes/")
    found = {}
    for path in repository_files(".py"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(program) or name.startswith(allowed):
            continue
        strings = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        # A sentence may say what a rotation is for; a name in code is a word alone or a path.
        named = [text for text in strings if " " not in text and written.search(text)]
        if named:
            found[name] = named
    assert found == {}


def test_no_file_is_longer_than_the_limit() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in repository_files(".py")
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["pipeline.export", "bundle.doctor", "debug.bisect", "cli"])
def test_what_draws_and_lowers_is_loaded_when_it_is_used(module: str) -> None:
    heavy = {"matplotlib", "onnx", "onnxruntime", "coremltools", "executorch", "lm_eval"}
    code = f"import sys, llama_edge.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy.intersection(done.stdout.split())
    assert f"llama_edge.{module}" in done.stdout.split()


def public_names(protocol: type) -> set[str]:
    names = {*vars(protocol), *getattr(protocol, "__annotations__", {})}
    return {name for name in names if not name.startswith("_")}


def assert_follows(value: object, protocol: type) -> None:
    """Every member of the protocol is there; methods take the same parameters."""
    for name in public_names(protocol):
        assert hasattr(value, name), f"{type(value).__name__} lacks {name}"
        wanted = getattr(protocol, name, None)
        if inspect.isfunction(wanted):
            parameters = [*inspect.signature(wanted).parameters][1:]
            assert [*inspect.signature(getattr(value, name)).parameters] == parameters, name


REGISTRIES: tuple[tuple[Mapping[str, Callable[[], object]], type], ...] = (
    ({name: each.load for name, each in BACKENDS.items()}, Exporter),
    (RUNTIMES, Runtime),
)
#: Of the same names as the backends.
MARKERS = {name: getattr(pytest.mark, name) for name in BACKENDS}


@pytest.mark.parametrize(
    ("load", "protocol"),
    [
        pytest.param(load, protocol, id=f"{protocol.__name__}-{name}", marks=MARKERS[name])
        for registry, protocol in REGISTRIES
        for name, load in registry.items()
    ],
)
def test_a_registrys_loader_gives_its_protocol(load: Callable[[], object], protocol: type) -> None:
    assert_follows(load(), protocol)


def test_an_object_that_lacks_a_method_does_not_follow() -> None:
    with pytest.raises(AssertionError, match="object lacks"):
        assert_follows(object(), Runtime)


def test_every_exporter_has_its_runtime() -> None:
    assert set(BACKENDS) == set(RUNTIMES)


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in repository_files(
            ".py", ".md", ".toml", ".json", ".yaml", ".yml", ".txt", ".sh", ""
        )
        for match in MACHINE_PATH.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


def test_a_machine_path_would_be_found() -> None:
    planted = "see " + "/".join(("", "home", "somebody", "model"))
    assert MACHINE_PATH.search(planted)
    assert not MACHINE_PATH.search("https://example.org/home/page and /data/local/tmp/llama")
