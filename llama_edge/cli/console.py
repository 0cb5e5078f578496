"""What a person sees: progress on stderr, results on stdout, one JSON object where asked for.

Nothing else writes to a terminal: here, strings of others lose what a terminal would act on.
"""

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table
from rich.text import Text
from typer.rich_utils import rich_format_error

from llama_edge.cli.pace import Pace, duration
from llama_edge.core.errors import LlamaEdgeError
from llama_edge.core.progress import Job, Progress, Steps
from llama_edge.core.visible import visible, visible_answer

if TYPE_CHECKING:
    from llama_edge.bundle.signing import Trust

#: `--json`, the same on every command.
TemperatureOption = typer.Option(help="0 takes the most probable token each time.")
TopPOption = typer.Option(help="Sample from the smallest set with this probability.")
TopKOption = typer.Option(help="Sample from so many tokens; 0: from all.")
SeedOption = typer.Option(help="The same seed samples the same text.")
JsonOption = typer.Option("--json", help="Print one JSON object on stdout; progress on stderr.")

#: `--runtime`, for the commands that run a bundle's artifact without judging it.
RuntimeOption = typer.Option(
    "--runtime",
    help="What runs the artifact; by default what the gate uses. ios bundles: coreml (our "
    "interpreter, float32), coreml-fp16 (rounds each result as a device does), coreml-apple.",
)

#: `--public-key`, for the commands that open a bundle; its file is read by `trust_in`.
PublicKeyOption = typer.Option(
    "--public-key",
    help="PEM file of the publisher's key: a bundle without a valid signature of it is refused.",
)

#: Columns of a table that goes to a file or a pipe.
_LOG_WIDTH: Final = 132
#: A stage that goes on tells a log this often what is left of it.
_SAY_EVERY_S: Final = 20.0
#: A command that takes less says nothing about its time at the beginning.
_SAY_IN_ALL_S: Final = 30.0
#: What JSON need not escape and a terminal acts on, or no encoding has.
_NOT_SHOWN: Final = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff]")


def open_closed_streams() -> None:
    """Stdin, stdout and stderr that the caller has closed lead nowhere.

    Python has None for them, and the next file that is opened would have their numbers: what a
    library writes to stdout or stderr would be in the middle of a model.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def replace_unencodable() -> None:
    """A terminal without UTF-8 shows a question mark for what it cannot show, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(*lines: str, err: bool = False, label: str = "") -> None:
    """Lines on stdout or stderr; each stays one line, and the first begins with a red `label`."""
    # Not by typer.echo: it takes a terminal for ASCII for one that is set up wrongly, and writes
    # UTF-8 to it.
    stream = sys.stderr if err else sys.stdout
    if label:
        stream.write(typer.style(label, fg="red", bold=True) if stream.isatty() else label)
    stream.writelines(f"{visible(line)}\n" for line in lines)
    stream.flush()


def say_answer(piece: str) -> None:
    """A piece of a model's answer on stdout, at once."""
    sys.stdout.write(visible_answer(piece))
    sys.stdout.flush()


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, with escapes for what the terminal cannot show or would act on."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    text = json.dumps(value, indent=2, ensure_ascii=encoding != "utf8")
    # Outside of its strings JSON has none of these.
    sys.stdout.write(_NOT_SHOWN.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n")
    sys.stdout.flush()


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is never wrapped."""
    table = Table(title=visible(title) or None, title_justify="left", header_style="bold")
    for index, name in enumerate(header):
        table.add_column(visible(name), no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    console.print(table)


def print_next(*commands: str) -> None:
    """What to type now, on lines of its own, with the program as the user has called it."""
    program = sys.argv[0] if "bin/llama-edge" in sys.argv[0] else "llama-edge"
    with contextlib.suppress(ValueError):
        program = str(Path(program).relative_to(Path.cwd()))
    say(*(f"next: {program} {command}" for command in commands))


def print_error(error: LlamaEdgeError, *, as_json: bool) -> None:
    """The message on stderr; with `as_json` also as an object on stdout.

    What cannot be written, on a full disk or a broken pipe, is left out: the exit code says it too.
    """
    name = type(error).__name__
    if as_json:
        description = {"class": name, "message": str(error), "exit_code": error.exit_code}
        with contextlib.suppress(OSError):
            print_json({"error": description})
    first, *others = str(error).split("\n")
    with contextlib.suppress(OSError):
        say(first, *(f"  {line}" for line in others), err=True, label="error: ")


def print_usage_error(error: Any) -> None:  # noqa: ANN401 (a class of the framework's own)
    """What the framework says of a wrong command line, in which arguments are repeated."""
    error.message = visible(error.message)
    with contextlib.suppress(OSError):
        rich_format_error(error)


def print_finding(code: str, *lines: str) -> None:
    """A finding: its code, with the place after it, and lines below."""
    say(*(f"  {line}" for line in lines), "", label=visible(code))


class _Left(ProgressColumn):
    """What is left of the running stage."""

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        left = None if task.stop_time is not None else pace.left_s()
        return Text("" if left is None else f"about {duration(left)} left", no_wrap=True)


#: Of a stage's bar.
COLUMNS: Final = (
    TextColumn("{task.description:<28}", markup=False),
    BarColumn(bar_width=20),
    TextColumn("{task.fields[doing]}", markup=False, table_column=Column(no_wrap=True)),
    TimeElapsedColumn(),
    _Left(),
)


class _Stages:
    """What bars and lines have in common: the pace, and what is said of the whole command."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._pace = Pace(clock)
        self._job: Job | None = None

    def expect(self, job: Job) -> None:
        """See `Progress`."""
        # Here, because it imports the networks.
        from llama_edge.plan.host import stage_seconds

        self._job = job
        self._pace.expect(stage_seconds(job))

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        """See `Progress`."""
        self.finish()
        self._pace.start(stage, steps, done)
        seconds = self._pace.in_all_s()
        if self._job is None or seconds is None:
            return
        # Said when the first stage begins: those before it were done by an earlier run.
        if seconds >= _SAY_IN_ALL_S:
            besides = f", and {self._job.besides}" if self._job.besides else ""
            self.remark(f"about {duration(seconds)} in all{besides} (planned)")
        self._job = None

    def remark(self, text: str) -> None:
        """See `Progress`."""
        raise NotImplementedError

    def finish(self) -> None:
        """The last stage has ended."""
        raise NotImplementedError


class _Bars(_Stages):
    """One bar per stage, on a terminal; its length is of the work, not of the number of steps."""

    def __init__(self, bars: RichProgress) -> None:
        super().__init__(bars.get_time)
        self._bars = bars
        self._running: TaskID | None = None

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        super().start(stage, steps, done)
        self._running = self._bars.add_task(visible(stage), total=1.0, doing="", pace=self._pace)
        self._show()

    def advance(self, steps: int = 1) -> None:
        self._pace.advance(steps)
        self._show()

    def _show(self) -> None:
        assert self._running is not None, "a stage advances after it has started"
        done, doing = self._pace.fraction, visible(self._pace.doing)
        self._bars.update(self._running, completed=done, doing=doing)

    def remark(self, text: str) -> None:
        self._bars.console.print(visible(text))

    def finish(self) -> None:
        """A stage that stops early, or says nothing about its steps, still ends full."""
        if self._running is not None:
            self._pace.finish()
            self._bars.update(self._running, completed=1.0, doing=self._pace.count)
            self._bars.stop_task(self._running)


class StageLines(_Stages):
    """One line per stage, for a log; a long stage also says every so often what is left of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._clock = clock
        self._spoke = 0.0

    def start(self, stage: str, steps: Steps, done: int = 0) -> None:
        """See `Progress`."""
        super().start(stage, steps, done)
        self._spoke = self._clock()
        if done:
            say(f"{stage}: {self._pace.count} are there already", err=True)

    def advance(self, steps: int = 1) -> None:
        """See `Progress`."""
        pace, now = self._pace, self._clock()
        pace.advance(steps)
        left = pace.left_s()
        if now - self._spoke < _SAY_EVERY_S or left is None or pace.fraction == 1:
            return
        self._spoke = now
        say(f"{pace.stage}: {pace.doing}; about {duration(left)} left", err=True)

    def remark(self, text: str) -> None:
        """See `Progress`."""
        say(text, err=True)

    def finish(self) -> None:
        """The last stage has ended."""
        if self._pace.stage:
            say(f"{self._pace.stage}: {self._pace.elapsed_s:.1f} s", err=True)
        self._pace.finish()


def trust_in(public_key: Path | None) -> "Trust":
    """Whose signature a bundle must have; stderr says of a signature that it was not checked.

    Raises:
        UsageError: The key cannot be read.
    """
    from llama_edge.bundle.signing import Trust, load_public_key

    key = None if public_key is None else load_public_key(public_key)
    return Trust(key=key, tell=lambda note: say(f"note: {note}", err=True))


@contextlib.contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """Bars on a terminal, plain lines elsewhere; the last stage counts as done on a good end."""
    console = Console(stderr=True, markup=False, emoji=False)
    if not console.is_terminal:
        lines = StageLines()
        yield lines
        lines.finish()
        return
    with RichProgress(*COLUMNS, console=console) as rich_progress:
        bars = _Bars(rich_progress)
        yield bars
        bars.finish()
