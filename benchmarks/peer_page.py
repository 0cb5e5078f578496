"""The page of `peers.py`: its rows as a table, and where the default recipe is behind and why.

Every figure on the page is a row's, or is computed from the rows and the recipe.
"""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Recipe, Rotation, Rounding

#: Two readings of one artifact differ by as much; a closer ratio counts as level.
LEVEL: Final = 0.03
WIDTH: Final = 100
#: QK_K of ggml.
K_QUANT_BLOCK: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; `missing` says why there is no more."""

    name: str
    title: str
    missing: str = ""
    cpu_s: float = 0.0
    peak_mib: float = 0.0
    file_mib: float = 0.0
    decode_tokens_per_s: float = 0.0
    long_decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    mean_kl_nats: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A figure of a row."""

    heading: str
    field: str
    digits: int
    more_is_better: bool = False

    def value(self, row: Row) -> float:
        """The row's figure."""
        found: float = getattr(row, self.field)
        return found

    def cell(self, row: Row) -> str:
        """The figure as the table shows it."""
        return f"{self.value(row):.{self.digits}f}"

    def best(self, rows: Sequence[Row]) -> Row:
        """The row with the best figure."""
        return (max if self.more_is_better else min)(rows, key=self.value)

    def verdict(self, row: Row, other: Row) -> str:
        """`ahead`, `level` or `behind`."""
        ratio = self.value(row) / self.value(other)
        if abs(ratio - 1) <= LEVEL:
            return "level"
        return "ahead" if (ratio > 1) == self.more_is_better else "behind"


CPU: Final = Column(heading="CPU s", field="cpu_s", digits=0)
MEMORY: Final = Column(heading="peak MiB", field="peak_mib", digits=0)
FILE: Final = Column(heading="file MiB", field="file_mib", digits=1)
DECODE: Final = Column(
    heading="decode tok/s", field="decode_tokens_per_s", digits=1, more_is_better=True
)
LONG_DECODE: Final = Column(
    heading="at 1024", field="long_decode_tokens_per_s", digits=1, more_is_better=True
)
PREFILL: Final = Column(
    heading="prefill tok/s", field="prefill_tokens_per_s", digits=0, more_is_better=True
)
KL: Final = Column(heading="mean KL nats", field="mean_kl_nats", digits=3)
COLUMNS: Final = (CPU, MEMORY, FILE, DECODE, LONG_DECODE, PREFILL, KL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was measured, and of what."""

    rows: Sequence[Row]
    #: names of the rows of llama-edge
    ours: frozenset[str]
    #: the row whose recipe is explained, and the plainest of ours
    default: str
    plain: str
    recipe: Recipe
    model: str
    config: ModelConfig
    context: int
    rounds: int
    #: CPU seconds of the text that the importance matrix is of; None where there is no such row
    text_cpu_s: float | None = None

    def found(self, *, ours: bool) -> list[Row]:
        """The complete rows of llama-edge, or of the others."""
        return [row for row in self.rows if not row.missing and (row.name in self.ours) == ours]

    def row(self, name: str) -> Row | None:
        """The complete row of that name, if there is one."""
        return next((row for row in self.rows if row.name == name and not row.missing), None)


def page(run: Run) -> str:
    """`peers.md`."""
    parts = ["# Peers", _introduction(run), _table(run.rows)]
    default, others = run.row(run.default), run.found(ours=False)
    if default and others:
        parts += ["## Where the default recipe is behind", _standings(default, others)]
        parts += _bullets([*_why(run, default, others), _as_close(default, others)])
    parts += ["## About the figures", *_bullets(_notes(run))]
    parts.append("![Speed and closeness of the artifacts](peers.svg)")
    return "\n\n".join(parts) + "\n"


def _introduction(run: Run) -> str:
    return _filled(
        f"Written by `python benchmarks/peers.py` on {platform.machine()}, {os.cpu_count()} "
        f"processors: {run.model}, context {run.context}. CPU seconds and peak memory are those of "
        "the whole export, ours with calibration and verification. Speeds are medians of "
        f"{run.rounds} readings in turns on this machine, not on a phone; decode after a prompt of "
        "128 tokens, and of 1024. All processes have memory in large pages, without which no two "
        "readings agree. KL is to full precision on plain English, token by token."
    )


def _table(rows: Sequence[Row]) -> str:
    headings = " | ".join(column.heading for column in COLUMNS)
    lines = [f"| | {headings} |", "|---|" + "--:|" * len(COLUMNS)]
    for row in rows:
        if row.missing:
            lines.append(f"| {row.title} | {row.missing.replace('|', ' ')} |" + " |" * 6)
            continue
        cells = " | ".join(column.cell(row) for column in COLUMNS)
        lines.append(f"| {row.title} | {cells} |")
    return "\n".join(lines)


def _standings(default: Row, others: Sequence[Row]) -> str:
    lines = ["| | default | best of the others | ratio | |", "|---|--:|---|--:|---|"]
    for column in COLUMNS:
        best = column.best(others)
        ratio = column.value(default) / column.value(best)
        lines.append(
            f"| {column.heading} | {column.cell(default)} | {column.cell(best)}, {best.title} | "
            f"{ratio:.2f} x | {column.verdict(default, best)} |"
        )
    return "\n".join(lines)


def _why(run: Run, default: Row, others: Sequence[Row]) -> Iterator[str]:
    """For each column in which the default is behind, the reason and what shows it."""
    plain = run.row(run.plain)
    for column in COLUMNS:
        if column.verdict(default, column.best(others)) != "behind":
            continue
        shown = ""
        if plain and column is not KL:
            shown = (
                f" Without calibration, rotations and int8 linears, {plain.title} has "
                f"{column.cell(plain)}."
            )
        yield f"**{column.heading}**: {_reason(run, column)}{shown}"


def _reason(run: Run, column: Column) -> str:
    recipe = run.recipe
    if column is CPU:
        text = "writes calibration text, rounds with it and "
        calibrates = text if recipe.rounding is Rounding.GPTQ else ""
        return (
            f"the fastest of the others rounds and writes. Ours {calibrates}compares the written "
            "file with the checkpoint, block by block and token by token."
        )
    if column is MEMORY:
        return (
            "the float32 weights are in memory while calibration text is written and while the "
            "file is compared with them, next to Python and torch."
        )
    if column is KL:
        return "the best of the others loses less per weight; its file and speed are in the table."
    kept = ["linears that cost most in int4 are int8"] * (recipe.extra_bytes > 0)
    if column is FILE:
        kept += ["the embedding and the head are one int8 table"] * (recipe.table_bits == 8)
    else:
        kept += ["R4 is computed before each down projection"] * (Rotation.R4 in recipe.rotations)
    return f"{'; '.join(kept) or 'the kernels are slower'}."


def _as_close(default: Row, others: Sequence[Row]) -> str:
    close = [row for row in others if KL.verdict(default, row) != "ahead"]
    if close:
        names = ", ".join(row.title for row in close)
        return f"At least as close to full precision as the default: {names}."
    best = KL.best(others)
    return (
        "None of the others is as close to full precision: the closest, "
        f"{best.title}, has {KL.value(best) / KL.value(default):.1f} times the default's KL."
    )


def _notes(run: Run) -> Iterator[str]:
    elements = run.config.vocab_size * run.config.hidden_size
    group = run.recipe.group_size
    yield (
        f"Our head is int{run.recipe.table_bits}, and one table with the embedding. A token reads "
        f"{elements / 2**20:.0f} MiB of an int8 head, {elements * (0.5 + 2 / group) / 2**20:.0f} "
        f"of an int4 one in groups of {group}."
    )
    onnx, genai = run.row("onnx"), run.row("genai")
    if onnx and genai:
        yield (
            "In the same runtime, onnxruntime-genai, our model decodes at "
            f"{DECODE.value(onnx) / DECODE.value(genai):.2f} times the speed of its own builder's."
        )
    if run.config.hidden_size % K_QUANT_BLOCK:
        yield (
            f"A row of {run.config.hidden_size} weights is no multiple of llama.cpp's k-quant "
            f"block of {K_QUANT_BLOCK}: Q4_K_M falls back to larger types for most matrices, which "
            "it does not for Llama 3.2."
        )
    if run.text_cpu_s is not None:
        yield (
            "The importance matrix of llama.cpp is of the text that our recipes calibrate on, "
            "which the model writes itself: the same tokens in chunks of the same length. Writing "
            f"it took {run.text_cpu_s:.0f} CPU seconds, which are in our rows and not in theirs; "
            "computing the matrix is in theirs."
        )
    yield (
        "llama.cpp's cache is float16 and ours float32; all run the full number of processors as "
        "threads."
    )
    yield "Nothing here is a phone's speed: ExecuTorch's attention goes to MKL on this machine."


def _bullets(texts: Sequence[str] | Iterator[str]) -> list[str]:
    """One Markdown list."""
    items = ("\n".join(wrap(f"- {text}", WIDTH, subsequent_indent="  ")) for text in texts)
    return ["\n".join(items)]


def _filled(text: str) -> str:
    return "\n".join(wrap(text, WIDTH, break_on_hyphens=False))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Decode speed over KL, and CPU seconds of the export."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    found = [row for row in rows if not row.missing]
    figure, (speed, cost) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for place, row in enumerate(found):
        color = f"C{place}"
        speed.plot(row.mean_kl_nats, row.decode_tokens_per_s, "o", color=color, label=row.title)
        cost.barh(-place, row.cpu_s, color=color)
    speed.set(xlabel="mean KL to full precision, nats", ylabel="decode, tokens per second")
    cost.set(xlabel="CPU seconds of the export", xscale="log", yticks=[])
    figure.legend(loc="outside lower center", ncols=3, fontsize="x-small")
    figure.savefig(path)
