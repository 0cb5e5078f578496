"""How far the plan is off on every published row, and what the rows say of the fitted numbers.

    python benchmarks/plan_calibration.py

Prints the tables of docs/plan.md, in Markdown. Nothing is measured: it takes no time and no device.
"""

from collections.abc import Iterator, Sequence

from llama_edge.plan.devices import DEVICES, get_device
from llama_edge.plan.estimate import DECODE_SHARE, estimate
from llama_edge.plan.published import CONTEXT, HELD_OUT, PROMPT, PUBLISHED

_COLUMNS = (
    ("file_mib", "file MiB", "{:.0f}"),
    ("decode_tokens_per_s", "decode tok/s", "{:.1f}"),
    ("rss_mib", "RSS MiB", "{:.0f}"),
    ("prefill_tokens_per_s", "prefill tok/s", "{:.1f}"),
    ("time_to_first_token_s", "first token s", "{:.2f}"),
)


def _table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def _published() -> Iterator[Sequence[str]]:
    for row in PUBLISHED:
        found = estimate(row.workload(), get_device(row.device), CONTEXT, PROMPT)
        cells = [row.shape, row.layout]
        for name, _, form in _COLUMNS:
            planned, published = getattr(found, name), getattr(row, name)
            error = planned / published - 1
            cells.append(f"{form.format(planned)} / {published:g} ({error:+.1%})")
        yield cells


def _held_out() -> Iterator[Sequence[str]]:
    for row in HELD_OUT:
        device = get_device(row.device)
        planned = device.bandwidth_gb_s * 1e9 * DECODE_SHARE / row.streamed_bytes
        error = planned / row.decode_tokens_per_s - 1
        speeds = f"{planned:.2f} / {row.decode_tokens_per_s:g} ({error:+.1%})"
        yield row.model, str(row.group_size), device.label, speeds


def _devices() -> Iterator[Sequence[str]]:
    for device in DEVICES.values():
        yield (
            f"`{device.name}`",
            f"[{device.chipset}]({device.source})",
            f"{device.ram_gib}",
            device.memory,
            f"{device.bandwidth_gb_s:.1f}",
            f"{device.int8_gmacs:.0f}",
            device.note or "",
        )


def main() -> None:
    """Print the three tables."""
    _table(("model", "file", *(f"{title}" for _, title, _ in _COLUMNS)), _published())
    _table(("model", "group size", "device", "decode tok/s"), _held_out())
    header = ("device", "chipset", "GiB", "memory", "GB/s", "int8 GMAC/s", "remark")
    _table(header, _devices())


if __name__ == "__main__":
    main()
