"""What one module alone does: writing files, and writing to a terminal.

Whoever writes elsewhere follows a link that somebody planted, replaces a file that is not ours, or
lets a stranger's escape sequence act.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.test_architecture import repository_files

ROOT: Final = Path(__file__).parents[1]
PROGRAM: Final = ("llama_edge/", "export/", "quantize/", "runtimes/")

#: Methods and functions that make, change, move or remove files, by the last part of their name.
WRITERS: Final = frozenset(
    (
        *("write_text", "touch", "mkdir", "makedirs", "mkfifo", "symlink_to", "hardlink_to"),
        *("rename", "renames", "unlink", "rmdir", "remove_dirs", "rmtree", "chmod", "truncate"),
        *("copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "symlink", "link"),
        *("save_file", "serialize_file", "savefig", "print_png", "print_svg", "tofile", "savez"),
        *("mkdtemp", "mkstemp", "TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile"),
        *("make_archive", "unpack_archive", "extractall", "save_model", "from_file"),
    )
)
#: Of these names, what is called is another thing in most places.
AMBIGUOUS: Final[Mapping[str, tuple[str, ...]]] = {
    "copy": ("shutil",),
    "move": ("shutil",),
    "link": ("os",),
    "remove": ("os",),
    "save": ("np", "numpy", "torch"),
    "dump": ("json", "pickle"),
}
#: The modules whose business it is.
HOMES: Final[Mapping[str, str]] = {
    "llama_edge/core/files.py": "the one place",
    "llama_edge/core/ownership.py": "removes what llama-edge wrote, for the one place",
    "llama_edge/core/unfinished.py": "makes and removes the private folders, for the one place",
}
#: Elsewhere, only in a folder that this process has for itself, and why it is one.
PRIVATE: Final[Mapping[tuple[str, str], str]] = {
    ("llama_edge/text/text_assets.py", "write_bytes"): "in a stage, which is in a work folder",
    ("llama_edge/checkpoints/synthetic.py", "write_text"): "in the folder of output_folder",
    ("llama_edge/formats/xnnpack.py", "TemporaryDirectory"): "the system's, for its owner alone",
    ("llama_edge/formats/xnnpack.py", "write_bytes"): "in it",
    ("llama_edge/formats/xnnpack.py", "write_text"): "in it",
    ("llama_edge/evaluate/tasks.py", "TemporaryDirectory"): "the system's, for its owner alone",
    ("llama_edge/generate/warm.py", "TemporaryDirectory"): "the system's, for its owner alone",
    ("llama_edge/bundle/signing.py", "unlink"): "a public key that write_new has just made",
    ("llama_edge/debug/bisect_repro.py", "mkdir"): "in the folder of output_folder",
    ("llama_edge/debug/bisect_repro.py", "save"): "to a stream of open_new",
    ("llama_edge/report/charts.py", "print_png"): "to a stream of open_new",
    ("llama_edge/report/charts.py", "print_svg"): "to a text in memory",
    ("llama_edge/pipeline/cache.py", "mkdir"): "the system's folder for caches, where it is absent",
    ("llama_edge/pipeline/cache.py", "rmdir"): "a private folder of the cache, when it is empty",
    ("llama_edge/pipeline/export.py", "replace"): "a stage of the work folder becomes its output",
    ("llama_edge/pipeline/stages.py", "rename"): "in a work folder",
    ("export/coreml/lower.py", "TemporaryDirectory"): "in a stage, which is in a work folder",
    ("export/coreml/package.py", "chmod"): "in a stage, which is in a work folder",
    ("quantize/kept.py", "unlink"): "in the work folder of one calibration",
    ("quantize/kept.py", "replace"): "in it",
    ("quantize/resume.py", "TemporaryDirectory"): "the system's, for its owner alone",
    ("quantize/resume.py", "mkdir"): "in the work folder of one calibration",
    ("quantize/resume.py", "rmtree"): "in it",
    ("quantize/resume.py", "unlink"): "in it",
    ("quantize/resume.py", "from_file"): "a scratch file in it, or in the system's own folder",
    ("quantize/sequential.py", "mkdir"): "in the work folder of one calibration",
    ("runtimes/executorch.py", "TemporaryDirectory"): "the system's, for its owner alone",
    ("runtimes/child.py", "TemporaryFile"): "has no name",
    ("llama_edge/confined/worker.py", "TemporaryFile"): "has no name",
    ("llama_edge/confined/worker.py", "TemporaryDirectory"): "the system's, for its owner alone",
    ("llama_edge/confined/child.py", "open"): "the null device",
    ("llama_edge/cli/console.py", "open"): "the null device",
}
#: Where the terminal is written to.
SPEAKERS: Final[Mapping[str, str]] = {
    "llama_edge/cli/console.py": "the one place",
    "llama_edge/debug/repro_script.py": "runs alone; its words were made visible when written",
    "llama_edge/serve/stdio.py": "JSON lines in ASCII, for a program",
}


def program_files() -> Iterator[tuple[str, ast.Module]]:
    for path in repository_files(".py"):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(PROGRAM):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def called(node: ast.Call) -> tuple[str, str]:
    """The last part of what is called, and the name before it."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return node.func.attr, owner.id if isinstance(owner, ast.Name) else ""
    return (node.func.id, "") if isinstance(node.func, ast.Name) else ("", "")


def opens_to_write(node: ast.Call) -> bool:
    """`open` with a mode that writes, or with flags that create."""
    words = [*node.args, *(word.value for word in node.keywords)]
    modes = [word.value for word in words if isinstance(word, ast.Constant)]
    flags = {
        part.attr for word in words for part in ast.walk(word) if isinstance(part, ast.Attribute)
    }
    return bool(flags & {"O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC"}) or any(
        isinstance(mode, str) and 0 < len(mode) < 4 and not set(mode).isdisjoint("wax+")
        for mode in modes
    )


def writes(node: ast.Call) -> str | None:
    """The name of a call that writes; None: it does not."""
    name, owner = called(node)
    if name in AMBIGUOUS:
        is_ours = owner in AMBIGUOUS[name]
        return name if is_ours or (name == "save" and owner == "model") else None
    if name == "open":
        return name if opens_to_write(node) else None
    if name == "replace":  # a text's takes two arguments, a dataclass's is no method
        is_method = isinstance(node.func, ast.Attribute)
        return name if is_method and len(node.args) == 1 and not node.keywords else None
    if name == "write_bytes":  # the one place's own is a function
        return name if isinstance(node.func, ast.Attribute) else None
    if name == "write_text":
        return name if isinstance(node.func, ast.Attribute) else None
    return name if name in WRITERS else None


def speaks(node: ast.Call) -> str | None:
    name, owner = called(node)
    if name in ("echo", "secho", "print") and owner in ("typer", "click", "", "rich", "console"):
        return name
    if name == "Console":
        return name
    if name in ("write", "writelines") and isinstance(node.func, ast.Attribute):
        stream = node.func.value
        is_ours = isinstance(stream, ast.Attribute) and stream.attr in ("stdout", "stderr")
        return name if is_ours else None
    return None


def found(what: Callable[[ast.Call], str | None]) -> set[tuple[str, str]]:
    return {
        (file, name)
        for file, tree in program_files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (name := what(node)) is not None
    }


def test_files_are_written_in_one_place() -> None:
    elsewhere = {(file, name) for file, name in found(writes) if file not in HOMES}
    assert elsewhere - PRIVATE.keys() == set(), "write it by llama_edge.core.files"
    assert PRIVATE.keys() - elsewhere == set(), "no longer there: take it off the list"


def test_the_terminal_is_written_to_in_one_place() -> None:
    elsewhere = {file for file, _ in found(speaks)}
    assert elsewhere - SPEAKERS.keys() == set(), "say it by llama_edge.cli.console"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("path.write_text('x')", "write_text"),
        ("path.write_bytes(b'x')", "write_bytes"),
        ("open(path, 'w')", "open"),
        ("path.open('r+b')", "open"),
        ("path.open(mode='ab')", "open"),
        ("os.open(path, os.O_WRONLY | os.O_CREAT)", "open"),
        ("shutil.copytree(a, b)", "copytree"),
        ("shutil.move(a, b)", "move"),
        ("path.replace(target)", "replace"),
        ("os.remove(path)", "remove"),
        ("np.save(path, array)", "save"),
        ("torch.save(value, path)", "save"),
        ("safetensors.torch.save_file(tensors, path)", "save_file"),
        ("figure.savefig(path)", "savefig"),
        ("json.dump(value, stream)", "dump"),
        ("path.mkdir()", "mkdir"),
        ("text.replace('a', 'b')", None),
        ("replace(value, a=1)", None),
        ("dataclasses.replace(value, a=1)", None),
        ("path.open('rb')", None),
        ("exporter.open(path)", None),
        ("write_text(path, 'x')", None),
        ("array.copy()", None),
        ("os.open(path, os.O_RDONLY)", None),
    ],
)
def test_what_writes_is_told_from_what_does_not(line: str, name: str | None) -> None:
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert writes(call) == name


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("typer.echo('x')", "echo"),
        ("print('x')", "print"),
        ("sys.stdout.write('x')", "write"),
        ("Console(stderr=True)", "Console"),
        ("stream.write(b'x')", None),
        ("say('x')", None),
    ],
)
def test_what_speaks_is_told_from_what_does_not(line: str, name: str | None) -> None:
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert speaks(call) == name
