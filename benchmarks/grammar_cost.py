"""What constrained decoding costs: microseconds a token, and milliseconds a grammar.

    python -m benchmarks.grammar_cost

Prints the tables of docs/tools.md. Each answer is written token by token, as the model's tokenizer
has it: a mask is made, the token is taken. Near the limit of an answer, a way to its end is looked
for as well. With xgrammar installed, masks and tokens are measured with it too.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from llama_edge.checkpoints import load_checkpoint
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.grammar import Grammar, JsonSchema, Regex, ToolCalls, constraint_for
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_calls import CallFormat
from llama_edge.text.tools import ToolChoice, parse_tools
from tests.checkpoint_writers import llama3_text

SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "genres": {"type": "array", "items": {"enum": ["drama", "comedy", "thriller"]}},
        "rating": {"type": ["number", "null"]},
    },
    "required": ["title", "year", "genres", "rating"],
    "additionalProperties": False,
}
TOOLS: Final = parse_tools(
    [
        {
            "name": name,
            "description": f"Does {name}.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "limit": {"type": "integer", "minimum": 1, "maximum": 50},
                    "order": {"enum": ["newest", "oldest", "best"]},
                },
                "required": ["query"],
            },
        }
        for name in ("search_mail", "search_files", "search_photos", "search_web")
    ]
)
QUERY: Final = "invoices of the electricity company, März 2024"
REGEX: Final = r"(\+[0-9]{2} )?[0-9]{3} [0-9]{3} [0-9]{2} [0-9]{2}"


@dataclass(frozen=True)
class Case:
    """A grammar, and an answer that it allows."""

    name: str
    grammar: Grammar
    answer: str


def calls(form: CallFormat, choice: ToolChoice = ToolChoice.REQUIRED) -> ToolCalls:
    """A grammar of the tools."""
    return ToolCalls(tools=TOOLS, format=form, choice=choice)


CASES: Final = (
    Case(
        "JSON schema",
        JsonSchema(SCHEMA),
        '{"title": "The Lives of Others", "year": 2006, "genres": ["drama", "thriller"], '
        '"rating": 8.4}',
    ),
    Case("regex", Regex(REGEX), "+41 044 123 45 67"),
    Case(
        "call, json",
        calls(CallFormat.JSON),
        f'{{"name": "search_mail", "parameters": {{"query": "{QUERY}", "limit": 5}}}}',
    ),
    Case(
        "call, pythonic",
        calls(CallFormat.PYTHONIC),
        f"[search_mail(query='{QUERY}', limit=5)]",
    ),
    Case(
        "text where a call may be",
        calls(CallFormat.JSON, ToolChoice.AUTO),
        "The lighthouse stands on the northern cape; 214 steps lead to the top of it.",
    ),
)


def milliseconds(action: Callable[[], object], times: int) -> float:
    """The median."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        action()
        found.append(time.process_time() - begin)
    return statistics.median(found) * 1e3


def row(
    name: str, compile_ms: float, tokens_us: Sequence[float], near_us: Sequence[float] = ()
) -> str:
    """A line of a table."""
    near = f"{statistics.fmean(near_us):.0f}" if near_us else "-"
    ordered = sorted(tokens_us)
    mean = statistics.fmean(ordered)
    p95 = ordered[int(len(ordered) * 0.95)]
    return f"| {name} | {compile_ms:.1f} | {mean:.0f} | {p95:.0f} | {ordered[-1]:.0f} | {near} |"


def llguidance_row(case: Case, text: TextAssets, tokenizer: Tokenizer) -> str:
    """Write the answer ten times, as `generate` does."""
    ends, size = text.eos_token_ids, tokenizer.vocab_size

    def made() -> Any:  # noqa: ANN401
        return constraint_for(case.grammar, tokenizer, ends, size)

    compile_ms = milliseconds(made, 20)
    tokens = tokenizer.encode(case.answer, add_bos=False)
    taken, near = [], []
    for _ in range(10):
        constraint = made()
        for place, token in enumerate(tokens):
            begin = time.process_time()
            allowed = constraint.allowed()
            assert allowed[token], f"{case.name}: {tokenizer.decode([token])!r}"
            constraint.push(token)
            taken.append((time.process_time() - begin) * 1e6)
            if place + 1 < len(tokens):
                begin = time.process_time()
                constraint.in_time(tokens[place + 1], len(tokens) - place)
                near.append((time.process_time() - begin) * 1e6)
        assert constraint.allowed()[list(ends)].all()
    return row(case.name, compile_ms, taken, near)


def xgrammar_rows(text: TextAssets, tokenizer: Tokenizer) -> list[str]:
    """A schema and a regex; it has no grammar of pythonic calls with schemas."""
    import xgrammar

    vocabulary = [
        token if token else f"<added {number}>".encode()
        for number, token in enumerate(tokenizer.token_bytes)
    ]
    begin = time.process_time()
    info = xgrammar.TokenizerInfo(
        vocabulary,
        vocab_type=xgrammar.VocabType.RAW,
        stop_token_ids=list(text.eos_token_ids),
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    print(f"xgrammar, tables: {time.process_time() - begin:.2f} s")
    rows = []
    for case in CASES[:2]:
        made = partial(compiler.compile_regex, REGEX)
        if isinstance(case.grammar, JsonSchema):
            made = partial(compiler.compile_json_schema, json.dumps(case.grammar.schema))
        compiled, compile_ms = made(), milliseconds(made, 5)
        tokens = tokenizer.encode(case.answer, add_bos=False)
        mask = xgrammar.allocate_token_bitmask(1, tokenizer.vocab_size)
        taken = []
        for _ in range(10):
            matcher = xgrammar.GrammarMatcher(compiled)
            for token in tokens:
                begin = time.process_time()
                matcher.fill_next_token_bitmask(mask)
                bits = np.unpackbits(
                    mask.numpy().view(np.uint8)[0], count=tokenizer.vocab_size, bitorder="little"
                )
                assert bits[token] and matcher.accept_token(token)
                taken.append((time.process_time() - begin) * 1e6)
        rows.append(row(case.name, compile_ms, taken))
    return rows


HEADER: Final = (
    "| grammar | compile, ms | per token, µs | 95 % below | largest | near the limit, more |",
    "|---|---:|---:|---:|---:|---:|",
)


def measure(name: str, text: TextAssets) -> None:
    """Print the tables of one tokenizer."""
    tokenizer = Tokenizer(text)
    tokenizer.encode("warm")
    begin = time.process_time()
    constraint_for(Regex("a"), tokenizer, text.eos_token_ids, tokenizer.vocab_size)
    tables = time.process_time() - begin
    print(f"\n{name}, {tokenizer.vocab_size} tokens; once per model: {tables:.2f} s\n")
    print(*HEADER, sep="\n")
    for case in CASES:
        print(llguidance_row(case, text, tokenizer))
    if find_spec("xgrammar"):
        print(f"\n{name}, xgrammar {version('xgrammar')}\n")
        rows = xgrammar_rows(text, tokenizer)
        print(*HEADER, *rows, sep="\n")


def machine() -> str:
    """The processor's name where Linux tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measure both tokenizers."""
    print(f"llguidance {version('llguidance')}; {machine()}, {os.cpu_count()} cores; CPU time")
    measure("Llama 3.2", llama3_text())
    measure("SmolLM2", load_checkpoint("smollm2-135m").text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
