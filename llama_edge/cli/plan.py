"""`plan`: what a model will take and give, before anything is exported."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_edge.backends import TARGETS
from llama_edge.cli.console import JsonOption, print_json, print_next, print_table, say
from llama_edge.cli.model import Adapters, Revision, revised, with_adapters
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.model_shapes import SHAPES
from llama_edge.plan.devices import DEVICES
from llama_edge.plan.estimate import DECODE_BAND, DEFAULT_PROMPT, RSS_BAND, SIZE_BAND
from llama_edge.plan.host import CPU_BAND, MEMORY_BAND
from llama_edge.quantize import DEFAULT_RECIPE

if TYPE_CHECKING:  # it imports torch, and `llama-edge --help` must not
    from llama_edge.plan.plan import Plan, PlannedDevice

HONEST = (
    f"Planned, not measured. On the six published rows that it is calibrated on, file sizes are "
    f"within {SIZE_BAND:.0%}, decoding within {DECODE_BAND:.0%} and memory within {RSS_BAND:.0%}; "
    "another device, and a target other than android, may be further off (docs/plan.md)."
)
HOST = (
    "The export's own cost is for a host of the kind that was measured: CPU minutes of x86-64 "
    f"cores, within {CPU_BAND:.0%} of the exports measured there, and memory within "
    f"{MEMORY_BAND:.0%}; another processor takes another time (docs/plan.md)."
)


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A model as `export` takes it, of which only the config is read; or a shape "
            f"without weights: {', '.join(SHAPES)}."
        ),
    ],
    *,
    revision: Revision = None,
    adapter: Adapters = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help=f"As often as needed; by default all: {', '.join(DEVICES)}."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens that the KV cache holds; by default as `export`.")
    ] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = DEFAULT_PROMPT,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="As `export` takes it; or a layout of Meta's own files: bf16, "
            f"published-spinquant, published-qat-lora. By default {DEFAULT_RECIPE} on devices, and "
            "all in the table of sizes.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(TARGETS)}; by default all.")
    ] = None,
    kv_cache: Annotated[
        KVCacheDtype | None, typer.Option(help="As `export` takes it; int8 on android only.")
    ] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Reckon file size, memory and speed on phones, and the export's own cost, from the config.

    Ends with 1 if a device that was named cannot hold the context.
    """
    from llama_edge.plan.plan import PlanRequest, plan_model

    request = PlanRequest(
        model=with_adapters(revised(model, revision), adapter),
        recipes=(recipe,) if recipe else (),
        targets=(target,) if target else (),
        devices=tuple(device or ()),
        context=context,
        prompt=prompt,
        kv_cache=kv_cache,
    )
    found = plan_model(request)
    too_small = found.too_small() if device else ()
    if as_json:
        print_json(_to_json(found, too_small))
    else:
        _print_sizes(found)
        _print_devices(found)
        say(HONEST, HOST)
        for name in too_small:
            say(_refusal(found, name), err=True, label="too small: ")
        _print_next(found)
    if too_small:
        raise typer.Exit(1)


def _to_json(found: Plan, too_small: tuple[str, ...]) -> dict[str, Any]:
    """All entries; a single one's keys are at the top as well."""
    entries = [entry.to_json() for entry in found.entries]
    used = dict.fromkeys(entry.device.name for entry in found.entries)
    devices = {
        name: {**asdict(DEVICES[name]), "bandwidth_gb_s": DEVICES[name].bandwidth_gb_s}
        for name in used
    }
    return {
        "model": found.model,
        "context": found.context,
        "prompt": found.prompt,
        "measured": False,
        "error_bands": {
            "file": SIZE_BAND,
            "decode": DECODE_BAND,
            "rss": RSS_BAND,
            "host_cpu": CPU_BAND,
            "host_memory": MEMORY_BAND,
        },
        **(entries[0] if len(entries) == 1 else {}),
        "plans": entries,
        "too_small": list(too_small),
        "devices": devices,
    }


def _print_sizes(found: Plan) -> None:
    """One row per recipe and target, whatever the device."""
    rows: dict[tuple[str, str], tuple[str, ...]] = {}
    for entry in found.entries:
        values, host = entry.estimate, entry.host
        rows[entry.recipe, entry.target] = (
            entry.recipe,
            entry.target,
            f"{values.file_mib:.0f}",
            f"{values.kv_cache_mib:.0f}",
            f"{values.rss_mib:.0f}",
            "" if host is None else f"{host.memory_mib / 1024:.1f}",
            "" if host is None else f"{host.cpu_minutes:.0f}",
        )
    header = (
        "recipe",
        "target",
        "file MiB",
        "KV cache MiB",
        "RSS MiB",
        "export: GiB",
        "CPU minutes",
    )
    print_table(f"{found.model}, context {found.context}", header, list(rows.values()))


def _print_devices(found: Plan) -> None:
    """One row per device and target, of the recipe that was asked for or is the default."""
    names = list(dict.fromkeys(entry.recipe for entry in found.entries))
    chosen = DEFAULT_RECIPE if DEFAULT_RECIPE in names else names[0]
    entries = [entry for entry in found.entries if entry.recipe == chosen]
    rows = [
        (
            entry.device.label,
            entry.target,
            f"{entry.estimate.decode_tokens_per_s:.1f}",
            f"{entry.estimate.prefill_tokens_per_s:.0f}",
            f"{entry.estimate.time_to_first_token_s:.2f}",
            f"{entry.estimate.rss_mib:.0f} of {entry.estimate.usable_mib:.0f}",
            "yes" if entry.estimate.fits else "NO",
            f"{entry.max_context}",
        )
        for entry in sorted(entries, key=lambda entry: list(DEVICES).index(entry.device.name))
    ]
    header = (
        "device",
        "target",
        "decode tok/s",
        "prefill tok/s",
        "first token s",
        "RSS MiB",
        "fits",
        "longest context",
    )
    print_table(f"{chosen}, prompt of {found.prompt} tokens", header, rows)


def _refusal(found: Plan, name: str) -> str:
    best = max(
        (entry for entry in found.entries if entry.device.name == name),
        key=lambda entry: entry.max_context,
    )
    needs = f"{best.estimate.rss_mib:.0f} MiB of {best.estimate.usable_mib:.0f}"
    remedy = (
        f"the longest context is {best.max_context} ({best.recipe}, {best.target})"
        if best.max_context
        else "no context fits; choose a smaller model"
    )
    return f"{name}: a context of {found.context} does not fit ({needs}); {remedy}"


def _print_next(found: Plan) -> None:
    if found.model in SHAPES:
        print_next(f"synth --like {found.model} random/{found.model}")
        return
    entry: PlannedDevice = found.entries[0]
    print_next(f"export {shlex.quote(found.model)} --target {entry.target}")
