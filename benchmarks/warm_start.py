"""Tokens that are read and time to the first token, with a stored system prompt and without.

    python benchmarks/warm_start.py BUNDLE [--system FILE] [--repeats N] [--json FILE]

BUNDLE is copied, and the copy gets the state of the system prompt (`llama-edge warm`). Then both
answer the same questions, one after the other, so that what else the machine does meets both. A
start is a process of its own that loads the model; the time from the question to the first token is
taken after that. Without `--system`, one of about 200 tokens is used.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from llama_edge.core.progress import SilentProgress
from llama_edge.generate.assistant import AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.warm import WarmRequest, warm_bundle
from llama_edge.text.chat_template import REFERENCE_DATE

QUESTIONS: Final = (
    "When is it open?",
    "What does a card cost?",
    "May I take my bag to the rare books?",
)
SYSTEM: Final = (
    "You are the assistant of a library. Answer in one or two short sentences, in the language of "
    "the question. The library is open from nine in the morning until six in the evening, from "
    "Tuesday to Saturday; on Sundays and Mondays it is closed. A card costs ten euros a year, and "
    "nothing for children and students. A person may borrow eight books for four weeks, and may "
    "keep them for two more weeks if nobody else has asked for them. A book that comes back late "
    "costs twenty cents a day. Films and records are lent for one week. Rare books stay in the "
    "reading room on the second floor, where bags and drinks are not allowed. The rooms on the "
    "first floor can be reserved for groups of up to twelve people, for two hours a day. If you do "
    "not know something, say so, and tell the person to ask at the desk on the ground floor."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first token of one answer of a model that was just loaded."""

    read_tokens: int
    first_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All starts, cold and warm in turn."""

    system_tokens: int
    state_bytes: int
    cold: tuple[Start, ...]
    warm: tuple[Start, ...]

    @property
    def ratio(self) -> float:
        """Median time to the first token, cold to warm."""
        cold, warm = (statistics.median(s.first_token_s for s in x) for x in (self.cold, self.warm))
        return cold / warm


def start(model: BundleModel, system: str, question: str) -> Start:
    """Load the model and answer."""
    dialog = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    today = model.day_of(system) or REFERENCE_DATE
    prompt = model.tokenizer.encode_chat(dialog, today=today)
    with Assistant(model) as assistant:
        began = time.perf_counter()
        answer = assistant.answer(prompt, AnswerConfig(max_new_tokens=1))
        next(iter(answer))
        seconds = time.perf_counter() - began
        return Start(read_tokens=answer.read_tokens, first_token_s=seconds)


def compare(bundle: Path, system: str, repeats: int) -> Comparison:
    """Both in turn."""
    with tempfile.TemporaryDirectory() as place:
        warmed = Path(shutil.copytree(bundle, Path(place, "bundle")))
        made = warm_bundle(warmed, WarmRequest(system=system), SilentProgress())
        models = BundleModel(bundle), BundleModel(warmed)
        rows = [
            tuple(start(model, system, question) for model in models)
            for _ in range(repeats)
            for question in QUESTIONS
        ]
    cold, warm = zip(*rows, strict=True)
    return Comparison(system_tokens=made.tokens, state_bytes=made.size_bytes, cold=cold, warm=warm)


def show(name: str, found: Comparison) -> None:
    """Medians, and the ratio."""
    table = Table(title=f"{name}: a system prompt of {found.system_tokens} tokens")
    for column in ("", "tokens read", "first token", "slowest"):
        table.add_column(column)
    for kind, starts in (("cold", found.cold), ("warm", found.warm)):
        table.add_row(kind, *_cells(starts))
    console = Console()
    console.print(table)
    console.print(
        f"{found.state_bytes / 2**20:.1f} MiB in the bundle; the first token comes "
        f"{found.ratio:.1f} times sooner"
    )


def _cells(starts: Sequence[Start]) -> tuple[str, str, str]:
    times = [one.first_token_s * 1000 for one in starts]
    read = statistics.mean(one.read_tokens for one in starts)
    return f"{read:.0f}", f"{statistics.median(times):.0f} ms", f"{max(times):.0f} ms"


def main() -> None:
    """Read the options, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--system", type=Path, help="text file of a system prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the measurements there")
    given = parser.parse_args()
    system = SYSTEM if given.system is None else given.system.read_text("utf-8").rstrip("\n")
    found = compare(given.bundle, system, given.repeats)
    show(given.bundle.name, found)
    if given.json is not None:
        given.json.write_text(json.dumps({**asdict(found), "ratio": found.ratio}, indent=2))


if __name__ == "__main__":
    main()
