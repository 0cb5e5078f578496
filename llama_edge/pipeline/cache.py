"""Where results that took minutes are kept, for their owner alone.

The cache is `$LLAMA_EDGE_CACHE`, else `llama-edge` in the system's folder for caches
(`$XDG_CACHE_HOME` or `~/.cache` on Linux). An entry is a folder under the hash of everything that
it depends on, so a stale one is never met; and it is sealed, so that one that was changed, damaged
or put there by somebody else is made again. Deleting the cache loses only time.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from llama_edge.core.errors import OutputError
from llama_edge.core.files import output_folder, private_folder
from llama_edge.core.ownership import remove_tree
from llama_edge.core.progress import Progress
from llama_edge.core.sealed import fault, seal
from llama_edge.core.unfinished import unfinished_folder

QUANTIZED: Final = "quantized"
CALIBRATION: Final = "calibration"
ANSWERS: Final = "answers"
_KINDS: Final = (QUANTIZED, CALIBRATION, ANSWERS)
_UNFINISHED: Final = "unfinished"
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_REMEDY: Final = "set LLAMA_EDGE_CACHE to a folder that can be"


def cache_folder() -> Path:
    """Where results that took minutes are kept."""
    chosen = os.environ.get("LLAMA_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    return platformdirs.user_cache_path("llama-edge", appauthor=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One result, which this process alone works on."""

    #: where it is, or will be
    folder: Path
    #: for what is done of it while it is made; a run that was stopped left its own there
    work: Path
    key: str
    progress: Progress

    def is_there(self) -> bool:
        """Whether it is whole and as it was left; what is there and is not so is removed."""
        if not os.path.lexists(self.folder):
            return False
        why = fault(self.folder, self.key)
        if why is None:
            return True
        self.progress.remark(f"{self.folder}: {why}; this result of an earlier run is made again")
        remove_tree(self.folder)
        return False

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """An empty folder that becomes the entry when the block ends well."""
        with output_folder(self.folder, force=False) as unfinished:
            yield unfinished
            seal(unfinished, self.key)


def require_cache() -> None:
    """Make the cache's folders, before any work.

    Raises:
        OutputError: They cannot be written, or others could change what is there.
    """
    root = cache_folder()
    try:
        _require_root(root)
        for name in (*_KINDS, _UNFINISHED):
            private_folder(root / name)
            if not os.access(root / name, os.W_OK | os.X_OK):
                raise OutputError(f"{root / name}: cannot be written; {_REMEDY}")
    except OSError as error:
        raise OutputError(f"{root}: cannot be written: {error.strerror}; {_REMEDY}") from error


def _require_root(root: Path) -> None:
    """It may be a folder with other things of the user's in it; then its mode is the user's too."""
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        private_folder(root)
    mode = root.stat().st_mode
    if not mode & _OTHERS_WRITE or mode & stat.S_ISVTX:
        return  # in a sticky folder, as the system's for temporary files, nobody moves ours away
    if {entry.name for entry in root.iterdir()} - {*_KINDS, _UNFINISHED}:
        raise OutputError(
            f"{root}: others may write there, and could change what is exported; take their right "
            "away (`chmod go-w`), or set LLAMA_EDGE_CACHE to a folder of your own"
        )
    private_folder(root, follow_links=True)


@contextmanager
def cache_entry(kind: str, key: str, progress: Progress) -> Iterator[CacheEntry]:
    """Hold an entry; an equal run elsewhere is waited for.

    Args:
        kind: `QUANTIZED`, `CALIBRATION` or `ANSWERS`.
        key: Of everything that the result depends on.
        progress: Told of a run that is waited for, and of an entry that is made again.

    Raises:
        OutputError: As `require_cache`.
    """
    require_cache()
    root = cache_folder()
    parent = root / _UNFINISHED
    with ExitStack() as stack:
        try:
            held = unfinished_folder(parent / key, keep=True, waiting=progress)
            work = stack.enter_context(held)
        except OSError as error:
            raise OutputError(
                f"{parent}: cannot be written: {error.strerror}; {_REMEDY}"
            ) from error
        yield CacheEntry(folder=root / kind / key, work=work, key=key, progress=progress)
    with suppress(OSError):  # another run's work is in it
        parent.rmdir()
