"""The program itself: its commands, and what becomes of an error."""

import logging
import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import typer

from llama_edge import __version__
from llama_edge.cli.artifacts import compare, inspect, parity, report
from llama_edge.cli.bench import bench
from llama_edge.cli.bisect import bisect
from llama_edge.cli.chat import chat
from llama_edge.cli.console import (
    open_closed_streams,
    print_error,
    print_json,
    print_usage_error,
    replace_unencodable,
    say,
)
from llama_edge.cli.diff import diff
from llama_edge.cli.evaluate import evaluate
from llama_edge.cli.export import export, quantize
from llama_edge.cli.guard import guard
from llama_edge.cli.lists import models, recipes, targets
from llama_edge.cli.phone import push
from llama_edge.cli.plan import plan
from llama_edge.cli.run import run
from llama_edge.cli.serve import serve
from llama_edge.cli.synth import synth
from llama_edge.cli.trust import doctor, keygen, sign, verify
from llama_edge.cli.warm import warm
from llama_edge.core.errors import LlamaEdgeError

INTERRUPTED: Final = 130
#: The framework's own class, which it exports by its subclass only.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
BAD_USAGE: Final = 2

app = typer.Typer(
    name="llama-edge",
    help=(
        "Turn a Llama checkpoint into a bundle for a phone, run the written files on this machine, "
        "and keep the bundle only if they compute what the checkpoint computes."
    ),
    epilog=(
        "Exit codes: 0 good, 1 a check failed, 2 bad usage, 3 bad input, 4 a missing component, "
        "130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("export")(export)
app.command("quantize")(quantize)
app.command("parity")(parity)
app.command("run")(run)
app.command("chat")(chat)
app.command("guard")(guard)
app.command("warm")(warm)
app.command("eval")(evaluate)
app.command("bench")(bench)
app.command("inspect")(inspect)
app.command("compare")(compare)
app.command("plan")(plan)
app.command("synth")(synth)
app.command("doctor")(doctor)
app.command("keygen")(keygen)
app.command("sign")(sign)
app.command("verify")(verify)
app.command("diff")(diff)
app.command("bisect")(bisect)
app.command("report")(report)
app.command("push")(push)
app.command("serve")(serve)
app.command("models")(models)
app.command("targets")(targets)
app.command("recipes")(recipes)


def _show_version(value: bool) -> None:
    if value:
        say(f"llama-edge {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """The options before the command."""


def _quiet_libraries() -> None:
    """Libraries' own remarks are for their developers; what matters is raised as an error."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def _modest_threads() -> None:
    """Half of the processors for torch, read when it is imported, and no spinning.

    The reference's many small operations wait for each other: on two busy processors, exporting
    SmolLM2 took 350 s with two spinning threads, 89 s with two that sleep, and 54 s with one.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """A polite kill cleans up as Ctrl-C does."""
    del number, frame
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Run the program and end the process with its exit code."""
    open_closed_streams()
    replace_unencodable()
    _quiet_libraries()
    _modest_threads()
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run_program(sys.argv[1:]))


def run_program(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every error that a user can cause is told."""
    as_json = "--json" in arguments
    try:
        _require_current_folder()
        code = app(arguments, standalone_mode=False) or 0
    except LlamaEdgeError as error:
        print_error(error, as_json=as_json)
        return error.exit_code
    except OSError as error:  # a name that is too long, a disk that fails: the system's own words
        path = "" if error.filename is None else f"{error.filename}: "
        failure = LlamaEdgeError(f"{path}{error.strerror or error}")
        print_error(failure, as_json=as_json)
        return failure.exit_code
    except _UsageError as error:
        print_usage_error(error)
        code = BAD_USAGE
    except SystemExit as end:  # nobody reads stdout any more
        return end.code if isinstance(end.code, int) else 0
    _explain(code, as_json=as_json)
    return int(code)


def _require_current_folder() -> None:
    """Where it is gone, libraries fail on import, and end the process with reasons of their own."""
    try:
        Path.cwd()
    except OSError as error:
        raise LlamaEdgeError(
            f"the current folder cannot be used: {error.strerror}; change to one that exists"
        ) from error


def _explain(code: int, *, as_json: bool) -> None:
    """What the framework's own exits leave unsaid, as far as it can be written."""
    with suppress(OSError):
        if code == INTERRUPTED:
            say("interrupted; nothing was left behind", err=True)
        if as_json and code in (BAD_USAGE, INTERRUPTED):
            message = "interrupted" if code == INTERRUPTED else "bad usage; stderr says what"
            print_json({"error": {"class": "UsageError", "message": message, "exit_code": code}})
