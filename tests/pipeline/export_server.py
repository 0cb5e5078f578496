"""Exports on request, each in a process forked from this one, which has imported everything.

A line of JSON on stdin is a request, `{"model", "target", "recipe", "out", "force", "cache",
"kill_after_s", "kill_at"}`; a line of JSON on stdout is how that export ended, `{"exit_code",
"seconds"}`. Without a target it quantizes only. With `kill_after_s` it dies by SIGKILL at that
moment, wherever it is; with `kill_at` before it renames something to a path whose last two parts
match.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import llama_edge.backends.executorch.exporter
import llama_edge.backends.onnx.exporter  # noqa: F401 (so that no fork imports it again)
from llama_edge.backends.base import LowerOptions
from llama_edge.core.progress import SilentProgress
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.pipeline.quantize import QuantizeRequest, quantize_model


def _die(after_s: float) -> None:
    time.sleep(after_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(pattern: str) -> None:
    rename = Path.rename

    def killing(self: Path, target: Path) -> Path:
        if fnmatch(f"{target.parent.name}/{target.name}", pattern):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = killing  # type: ignore[method-assign, assignment]


def _export(request: dict[str, Any]) -> None:
    os.environ["LLAMA_EDGE_CACHE"] = request["cache"]
    if request["kill_after_s"] is not None:
        threading.Thread(target=_die, args=(request["kill_after_s"],), daemon=True).start()
    if request["kill_at"] is not None:
        _die_at(request["kill_at"])
    if request["target"] is None:
        asked = QuantizeRequest(
            model=request["model"],
            recipe=request["recipe"],
            out=Path(request["out"]),
            force=request["force"],
        )
        quantize_model(asked, SilentProgress())
        return
    wanted = ExportRequest(
        model=request["model"],
        target=request["target"],
        recipe=request["recipe"],
        out=Path(request["out"]),
        force=request["force"],
        options=LowerOptions(max_context=512),
    )
    export_model(wanted, SilentProgress())


def _in_fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        _export(request)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        began = time.monotonic()
        code = _in_fork(json.loads(line))
        seconds = time.monotonic() - began
        sys.stdout.write(json.dumps({"exit_code": code, "seconds": seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
