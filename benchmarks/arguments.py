"""Arguments that a benchmark checks before its first measurement, not when it is done."""

import argparse
import tempfile
from pathlib import Path


def writable_folder(text: str, *names: str) -> Path:
    """The absolute path of a folder that takes files; it is made where there is none.

    Args:
        text: The argument.
        names: Files that will be written there, or replaced.

    Raises:
        argparse.ArgumentTypeError: It cannot be made, or something cannot be written there.
    """
    folder = Path(text).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in names:
            if (folder / name).exists():
                (folder / name).open("r+b").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); name another folder"
        ) from error
    return folder
