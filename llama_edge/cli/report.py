"""The closing table: what was written, measured and left unchecked, and what to type next."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_edge.backends import Format, get_format
from llama_edge.bundle.folder import Bundle
from llama_edge.cli.console import print_next, print_table
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.checkpoint import FULL_PRECISION
from llama_edge.core.quantized import ScaleRounding
from llama_edge.formats.quantized_checkpoint import TABLES
from llama_edge.gate.gate import GateOutcome
from llama_edge.gate.prompt_state import StateReport
from llama_edge.plan.plan import expected


def scales_line(rounding: ScaleRounding) -> str:
    """What it cost to keep a checkpoint's own scales in bfloat16, in one line."""
    raised = f", {rounding.raised} raised to what backends hold" if rounding.raised else ""
    return (
        f"{rounding.rounded} of {rounding.scales} rounded to bfloat16{raised}; relative error "
        f"{rounding.rms_relative_error:.2g} (rms), at most {rounding.max_relative_error:.2g}; "
        f"KL {rounding.mean_kl:.2g} nats"
    )


_NOT_MEASURED = "not measured: the full-precision model was not available (--against MODEL)"


def parity_line(parity: Mapping[str, Any]) -> str:
    """Graph parity in one line: blocks, then the distance end to end next to what it may be."""
    if parity.get("reason") is not None:
        return f"FAILED: {parity['reason']}"
    blocks = parity["blocks"]
    line = (
        f"{blocks['count']} blocks right, the worst ({blocks['worst']}) at "
        f"{blocks['severity']:.0%} of its limit; end to end KL {parity['mean_kl']:.2g} nats"
    )
    if parity["noise_floor_kl"] is None:
        return f"{line}, top-1 {parity['top1_agreement']:.1%}"
    return f"{line} at a noise floor of {parity['noise_floor_kl']:.2g}"


def fidelity_line(fidelity: Mapping[str, Any] | None) -> str:
    """The distance to the full-precision model in one line."""
    if fidelity is None:
        return _NOT_MEASURED
    verdict = "" if fidelity["passed"] else "FAILED: "
    against = fidelity.get("against", FULL_PRECISION)
    against = "" if against == FULL_PRECISION else f" to {against}"
    return (
        f"{verdict}KL {fidelity['mean_kl']:.3g} nats{against} (limit {fidelity['limit_kl']:g}; "
        f"99.9th percentile {fidelity['p999_kl']:.3g}), top-1 {fidelity['top1_agreement']:.1%}, "
        f"perplexity x {fidelity['perplexity_ratio']:.3f}"
    )


def _size(bundle: Bundle) -> str:
    files = bundle.manifest.files
    total = sum(file.size_bytes for file in files)
    # A package is a folder, whose first file only names the others.
    main = files[0].path.split("/")[0]
    size = sum(file.size_bytes for file in files if file.path.split("/")[0] == main)
    return f"{total / 2**20:.1f} MiB ({main}: {size / 2**20:.1f})"


def _placement(bundle: Bundle) -> str:
    placement = bundle.manifest.placement
    share = placement.weight_bytes_delegated / placement.weight_bytes
    return (
        f"{placement.linears_delegated} of {placement.linears} linears, {share:.1%} of weights; "
        f"{placement.operators_delegated} of {placement.operators} operators"
    )


def _context(bundle: Bundle) -> str:
    artifact = bundle.manifest.artifact
    per_token = KVCacheDtype(artifact.kv_cache).bytes_per_token(bundle.manifest.model.config)
    return (
        f"{artifact.max_context} tokens; KV cache {artifact.kv_cache}, {per_token / 2**10:.1f} KiB "
        f"a token, {per_token * artifact.max_context / 2**20:.1f} MiB in all"
    )


def _model(bundle: Bundle) -> str:
    manifest = bundle.manifest
    line = f"{manifest.model.source}, recipe {manifest.recipe.name}"
    if manifest.scale_rounding is not None:
        line += f"; scales: {scales_line(manifest.scale_rounding)}"
    return line if manifest.model.note is None else f"{line}; {manifest.model.note}"


def _widths(bundle: Bundle) -> str:
    """How many block linears have which width of codes, and what the wider ones cost."""
    blocks = [entry for entry in bundle.manifest.tensors if entry.name not in TABLES]
    counts = Counter(entry.bits for entry in blocks)
    line = ", ".join(f"{count} int{bits}" for bits, count in sorted(counts.items()))
    mixed = bundle.manifest.mixed_precision
    if mixed is None:
        return line
    spent, budget = mixed.spent_bytes / 2**20, mixed.budget_bytes / 2**20
    return f"{line}, for {spent:.2f} MiB more (budget {budget:.2f})"


def _expected(bundle: Bundle) -> str:
    """Speed and memory on two devices, as `plan` estimates them for the file as written."""
    lines = [
        f"{device.label}: {value.decode_tokens_per_s:.0f} tok/s, first token in "
        f"{value.time_to_first_token_s:.2f} s, {value.rss_mib:.0f} MiB"
        + ("" if value.fits else f", which does not fit in {value.usable_mib:.0f}")
        for device, value in expected(bundle)
    ]
    return f"{'; '.join(lines)} (planned, not measured)"


def _format(bundle: Bundle) -> Format:
    return get_format(bundle.manifest.target, bundle.manifest.backend)


_ROWS: Mapping[str, Callable[[Bundle], str]] = {
    "model": _model,
    "verdict": lambda bundle: bundle.manifest.verdict.value,
    "size": _size,
    "block linears": _widths,
    "graph parity": lambda bundle: parity_line(bundle.manifest.parity),
    "fidelity": lambda bundle: fidelity_line(bundle.manifest.fidelity),
    "on the fast path": _placement,
    "context": _context,
    "expected": _expected,
    "not verified": lambda bundle: _format(bundle).not_verified,
}


def print_bundles(bundles: Sequence[Bundle]) -> None:
    """One column per bundle; below it, whether all hold the same quantized values."""
    header = ("", *(f"{b.manifest.target} ({b.manifest.backend})" for b in bundles))
    rows = [(name, *(show(bundle) for bundle in bundles)) for name, show in _ROWS.items()]
    if any(bundle.manifest.warnings for bundle in bundles):
        rows.insert(2, ("warnings", *("; ".join(b.manifest.warnings) for b in bundles)))
    if len(bundles) > 1:
        same = len({bundle.manifest.tensors for bundle in bundles}) == 1
        count = len(bundles[0].manifest.tensors)
        answer = f"the same in all bundles, {count} matrices" if same else "differ"
        rows.insert(3, ("values and scales", *([answer] * len(bundles))))
    print_table("", header, rows)
    question = shlex.quote("What is the capital of France?")
    print_next(*(f"run {shlex.quote(str(b.root))} {question}" for b in bundles))


def state_line(report: StateReport) -> str:
    """A prompt state in one line: its size, and how near it is to a prompt that was read."""
    line = f"{report.tokens} tokens, {report.size_bytes / 2**20:.1f} MiB"
    if report.not_run is not None:
        return f"{line}; not checked: {report.not_run}"
    if report.findings:
        return f"{line}; FAILED: {report.findings[0].where}: {report.findings[0].message}"
    if report.same_logits:
        near = "logits after it are, bit for bit, those after a prompt that was read"
    else:
        near = f"logits after it are {report.mean_kl:.2g} nats from those after a read prompt"
    return f"{line}; {near}; read in one call, {report.one_call_mean_kl:.2g} nats"


def print_gate(folder: Path, outcome: GateOutcome) -> None:
    """What `parity` found."""
    rows = [
        ("verdict", "passed" if outcome.passed else "failed"),
        ("graph parity", parity_line(outcome.parity_summary())),
        ("fidelity", fidelity_line(outcome.fidelity_summary())),
    ]
    if outcome.prompt_state is not None:
        rows.append(("prompt state", state_line(outcome.prompt_state)))
    print_table("", ("parity", str(folder)), rows)
