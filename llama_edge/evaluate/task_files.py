"""lm-eval's task files, which are looked at before lm-eval opens them.

A task may name Python functions, which are run: it is code, and its author is trusted with that. It
may still come damaged, or be no file at all; and PyYAML follows nested values until the stack
overflows, and references until the memory is full.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from llama_edge.core.errors import TextError
from llama_edge.core.regular import open_regular, read_regular, real_path

#: Readers of the `datasets` library that take plain files.
LOCAL_READERS: Final = ("csv", "json", "parquet", "text")
#: lm-eval's own task files have some KB each, and include one or two.
MAX_TASK_BYTES: Final = 1 << 20
MAX_TASK_FILES: Final = 64
#: The largest of the published test sets have some 100 MB.
MAX_DATA_BYTES: Final = 1 << 30
_MAX_DEPTH: Final = 64
#: Characters with all references written out.
_MAX_CHARACTERS: Final = 4 << 20
_FUNCTION: Final = "!function"
_SHOWN: Final = 80
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_task(path: Path) -> dict[str, Any]:
    """The task with absolute paths of its data, which are on this machine.

    Raises:
        TextError: A file of it is absent, no regular file or too large; it names no single task, or
            data elsewhere.
        yaml.YAMLError: It is no YAML.
        Exception: What lm-eval, or the task's own code, raises.
    """
    _check_files(path)
    return _local(load_yaml(path), path)


def _check_files(path: Path) -> None:
    """The file, those that it includes, and the Python files that they name."""
    seen: set[Path] = set()
    unseen = [path]
    while unseen:
        file = unseen.pop()
        if file in seen:
            continue
        if len(seen) == MAX_TASK_FILES:
            raise TextError(f"{path}: includes more than {MAX_TASK_FILES} files")
        seen.add(file)
        source = read_regular(file, MAX_TASK_BYTES, TextError)
        _require_small(source, file)
        folder = real_path(file).parent
        for module in _modules(source, folder):
            if os.path.lexists(module):
                read_regular(module, MAX_TASK_BYTES, TextError)
        included = load_yaml(file, resolve_func=False, recursive=False).get("include", [])
        for name in included if isinstance(included, list) else [included]:
            if not isinstance(name, str):
                raise TextError(f"{file}: include is {name!r:.{_SHOWN}}; a file's name is needed")
            unseen.append(folder / name)


def _require_small(source: bytes, path: Path) -> None:
    """Refuse values that are nested too deeply, or too large with their references."""
    sizes: dict[str | None, int] = {}
    outer: list[tuple[str | None, int]] = []
    size = 0
    for event in yaml.parse(source, Loader=_LOADER):
        match event:
            case yaml.ScalarEvent():
                sizes[event.anchor] = 1 + len(event.value)
                size += sizes[event.anchor]
            case yaml.AliasEvent():
                # One that is in what it refers to has no size yet, and no end.
                size += sizes.get(event.anchor, _MAX_CHARACTERS + 1)
            case yaml.CollectionStartEvent():
                outer.append((event.anchor, size))
                sizes.pop(event.anchor, None)
                size = 1
            case yaml.CollectionEndEvent():
                anchor, before = outer.pop()
                sizes[anchor] = size
                size += before
        if len(outer) > _MAX_DEPTH:
            raise TextError(f"{path}: values are nested more than {_MAX_DEPTH} levels deep")
        if size > _MAX_CHARACTERS:
            raise TextError(
                f"{path}: has more than {_MAX_CHARACTERS} characters with its references (*name) "
                "written out"
            )


def _modules(source: bytes, folder: Path) -> Iterator[Path]:
    """Where lm-eval looks first for the functions that a task names."""
    for event in yaml.parse(source, Loader=_LOADER):
        if isinstance(event, yaml.ScalarEvent) and event.tag == _FUNCTION:
            module = event.value.rpartition(".")[0].replace(".", "/")
            yield folder / f"{module}.py"


def _local(config: dict[str, Any], path: Path) -> dict[str, Any]:
    task, reader, options = (config.get(key) for key in ("task", "dataset_path", "dataset_kwargs"))
    if not isinstance(task, str):
        raise TextError(f"{path}: `task` is {task!r:.{_SHOWN}}; the name of one task is needed")
    if reader not in LOCAL_READERS:
        raise TextError(
            f"{path}: dataset_path is {reader!r:.{_SHOWN}}; only local data is read, so it must be "
            f"one of {', '.join(LOCAL_READERS)}, with dataset_kwargs.data_files"
        )
    options = options if isinstance(options, dict) else {}
    files = options.get("data_files")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise TextError(f"{path}: dataset_kwargs.data_files must name a file for each split")
    named = {split: _data_file(path, name) for split, name in files.items()}
    return {**config, "dataset_kwargs": {**options, "data_files": named}}


def _data_file(path: Path, name: str) -> str:
    file = path.parent / name
    if not os.path.lexists(file):
        raise TextError(f"{path}: {file}: no such data file; paths begin at the task's folder")
    with open_regular(file, TextError) as stream:
        size = os.fstat(stream.fileno()).st_size
    if size > MAX_DATA_BYTES:
        raise TextError(f"{file}: has {size} bytes; at most {MAX_DATA_BYTES} are read")
    return str(real_path(file))
