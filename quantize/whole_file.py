"""A file that is replaced atomically: a kill at any moment leaves the old one or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` when the block ends well.

    The name is always the same, so that what a kill leaves is overwritten by the next run; it
    serves a folder that one process has for itself.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        yield unfinished
        # On the disk before it is called finished: power may fail too.
        descriptor = os.open(unfinished, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
