"""The page as HTML: everything from the bundle is untrusted, and escaped."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import prod
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from llama_edge.backends import TARGETS
from llama_edge.bundle.manifest import Manifest, TensorEntry
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.visible import visible_answer
from llama_edge.gate.samples import MAX_NEW_TOKENS
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.quantize.measured import read_measurements
from llama_edge.report import plots
from llama_edge.report.measurements import Measured

_MIB: Final = 2**20
#: In the head of every page: who made it.
GENERATOR: Final = '<meta name="generator" content="llama-edge">'
#: How far the worst blocks' table goes.
_WORST: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """Inline SVG; None where nothing was measured."""

    size: Markup
    blocks: Markup | None
    positions: Markup | None
    recipes: Markup | None


def render_page(manifest: Manifest, parity: Mapping[str, Any]) -> str:
    """The whole of `report.html`.

    Args:
        manifest: Its files without the report, so that the page does not depend on itself.
        parity: What `parity.json` holds.

    Raises:
        ArtifactError: `parity` is not what a gate writes.
    """
    measured = Measured.from_json(parity, "parity.json")
    parts = size_parts(manifest)
    target = TARGETS.get(manifest.target)
    forms = () if target is None else target.formats
    form = next((form for form in forms if form.backend == manifest.backend), None)
    page: str = _template().render(
        generator=Markup(GENERATOR),
        manifest=manifest,
        measured=measured,
        charts=_charts(manifest, measured, parts),
        parts=sorted(parts.items(), key=lambda part: -part[1]),
        total=sum(file.size_bytes for file in manifest.files),
        passed=manifest.verdict.value == "passed",
        reason=parity.get("reason"),
        not_verified=None if form is None else form.not_verified,
        worst=sorted(measured.blocks, key=lambda block: -block.severity)[:_WORST],
        bits=bits_per_weight(manifest),
        cache_bytes=_cache_bytes(manifest),
        widths=_widths(manifest),
        sample_tokens=MAX_NEW_TOKENS,
    )
    return page


def _widths(manifest: Manifest) -> str:
    blocks = [entry.bits for entry in manifest.tensors if entry.name not in (EMBEDDING, LM_HEAD)]
    return ", ".join(f"{blocks.count(bits)} in int{bits}" for bits in sorted(set(blocks)))


def _cache_bytes(manifest: Manifest) -> int:
    kind = KVCacheDtype(manifest.artifact.kv_cache)
    return int(kind.bytes_per_token(manifest.model.config) * manifest.artifact.max_context)


def _tensor_bytes(entry: TensorEntry) -> float:
    """Codes, and scales of two bytes."""
    return prod(entry.shape) * (entry.bits / 8 + 2 / entry.group_size)


def _part(name: str, *, tied: bool) -> str | None:
    if name == EMBEDDING:
        return "embedding and head" if tied else "embedding"
    if name == LM_HEAD:
        return None if tied else "head"
    return "attention" if ".self_attn." in name else "MLP"


def size_parts(manifest: Manifest) -> dict[str, int]:
    """Bytes by part of the network; the rest of the artifact, and the bundle's other files.

    A tied table that the backend stores twice shows as the rest.
    """
    tied = manifest.model.config.tie_word_embeddings
    parts: dict[str, float] = {}
    for entry in manifest.tensors:
        part = _part(entry.name, tied=tied)
        if part is not None:
            parts[part] = parts.get(part, 0.0) + _tensor_bytes(entry)
    model = sum(file.size_bytes for file in manifest.files if _is_model(file.path))
    others = sum(file.size_bytes for file in manifest.files) - model
    whole = {name: round(size) for name, size in parts.items()}
    rest = max(0, model - sum(whole.values()))
    return {**whole, "norms, RoPE, graph": rest, "tokenizer and text": others}


def _is_model(path: str) -> bool:
    first = path.split("/", 1)[0]
    return first.endswith((".pte", ".onnx", ".data", ".mlpackage"))


def bits_per_weight(manifest: Manifest) -> float:
    """Of the stored matrices, a tied table once."""
    tied = manifest.model.config.tie_word_embeddings
    kept = [entry for entry in manifest.tensors if not (tied and entry.name == LM_HEAD)]
    weights = sum(prod(entry.shape) for entry in kept)
    return 8 * sum(map(_tensor_bytes, kept)) / max(1, weights)


def _charts(manifest: Manifest, measured: Measured, parts: Mapping[str, int]) -> Charts:
    blocks = positions = recipes = None
    if measured.blocks and measured.block_limit is not None:
        rounds = manifest.artifact.activation_quantization != "none"
        most = measured.block_max_limit if rounds else None
        blocks = Markup(plots.block_chart(measured.blocks, measured.block_limit, most))
    drawn = [prompt for prompt in measured.prompts if prompt.kl]
    fidelity = manifest.fidelity
    if drawn:
        limit = None if fidelity is None else float(fidelity["limit_kl"])
        positions = Markup(plots.position_chart(drawn, limit))
    known = read_measurements()
    if manifest.model.source == known.model:
        mean = None if fidelity is None else float(fidelity["mean_kl"])
        bits = bits_per_weight(manifest)
        svg = plots.recipe_chart(known.recipes, manifest.recipe.name, bits, mean)
        recipes = Markup(svg)
    return Charts(
        size=Markup(plots.size_chart(parts)),
        blocks=blocks,
        positions=positions,
        recipes=recipes,
    )


def _shown(value: object) -> object:
    """A browser reorders text as a terminal does; what is marked as safe is ours."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible_answer(value)
    return value


def _size(size: float) -> str:
    return f"{size / _MIB:.1f} MiB" if size >= _MIB else f"{size / 1024:.1f} KiB"


@cache
def _template() -> Any:  # noqa: ANN401
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["mib"] = _size
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["g3"] = lambda number: f"{number:.3g}"
    environment.filters["short"] = lambda sha256: f"{sha256[:12]}…"
    text = files("llama_edge.report").joinpath("page.html.j2").read_text("utf-8")
    return environment.from_string(text)
