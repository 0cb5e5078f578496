"""The page's four charts."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from llama_edge.core.visible import visible
from llama_edge.quantize.measured import Measured as MeasuredRecipe
from llama_edge.report.charts import FIRST, SECOND, THIRD, figure, to_svg
from llama_edge.report.measurements import BlockError, PromptKL

#: Positions that are averaged: single ones jump by a factor of ten.
_BIN: Final = 16
#: What stands for an exact zero on a logarithmic axis: below what float32 resolves.
_NOTHING: Final = 1e-8
#: Recipes that are nearer to each other share a label.
_NEAR_BITS: Final = 0.25
_NEAR_KL: Final = 1.15


def plain(text: str) -> str:
    """One visible line, without the sign that would begin a formula."""
    return visible(text).replace("$", r"\$")


def size_chart(parts: Mapping[str, int]) -> str:
    """Where the bytes are, largest first."""
    order = sorted(parts.items(), key=lambda part: part[1])
    with figure((4.6, 0.42 * len(order) + 0.8)) as (made, axes):
        small = max(parts.values()) < 2**20
        shown = [size / (2**10 if small else 2**20) for _, size in order]
        bars = axes.barh([plain(name) for name, _ in order], shown, color=FIRST, height=0.62)
        axes.bar_label(bars, [f" {value:.1f}" for value in shown], fontsize=10)
        axes.set_xlabel("KiB" if small else "MiB")
        axes.margins(x=0.16)
        axes.grid(visible=False, axis="y")
        return to_svg(made, "size", "Size by part")


def block_chart(blocks: Sequence[BlockError], limit: float, most: float | None) -> str:
    """Relative error of each block, before and after rounding flips are taken back."""
    with figure((4.6, 3.3)) as (made, axes):
        places = np.arange(len(blocks))
        raw = [max(block.raw_largest, _NOTHING) for block in blocks]
        largest = [max(block.largest, _NOTHING) for block in blocks]
        p99 = [max(block.p99, _NOTHING) for block in blocks]
        axes.plot(places, raw, "x", color=SECOND, markersize=4, label="worst token, measured")
        axes.plot(places, largest, "o", color=THIRD, markersize=3, label="worst token, explained")
        axes.plot(places, p99, "-", color=FIRST, linewidth=1.4, label="99 %, explained")
        axes.axhline(
            limit, color=FIRST, linestyle="--", linewidth=1, label=f"limit of 99 %: {limit:g}"
        )
        if most is not None:
            label = f"limit of any: {most:g}"
            axes.axhline(most, color=THIRD, linestyle="--", linewidth=1, label=label)
        axes.set_yscale("log")
        axes.set_xlabel("block, in network order")
        axes.set_ylabel("relative error")
        made.legend(loc="outside upper left", fontsize=9.5, ncols=2, columnspacing=1)
        return to_svg(made, "blocks", "Relative error of each block against its limits")


def position_chart(prompts: Sequence[PromptKL], limit: float | None) -> str:
    """KL by position: each prompt thin, their mean thick."""
    with figure() as (made, axes):
        longest = max(len(prompt.kl) for prompt in prompts)
        rows = [_binned(prompt.kl) for prompt in prompts]
        for row in rows:
            places = _BIN * (np.arange(len(row)) + 0.5)
            axes.plot(places, row, color=FIRST, linewidth=0.8, alpha=0.45)
        width = -(-longest // _BIN)
        mean = [
            float(np.mean([row[place] for row in rows if place < len(row)]))
            for place in range(width)
        ]
        places = _BIN * (np.arange(width) + 0.5)
        axes.plot(places, mean, color=SECOND, linewidth=2.2, label="mean of all prompts")
        axes.plot([], [], color=FIRST, linewidth=0.8, label="one prompt each")
        axes.set_xlabel(f"position (tokens, in steps of {_BIN})")
        axes.set_ylabel("KL (nats)")
        axes.set_ylim(bottom=0)
        made.legend(loc="outside upper left", fontsize=10, ncols=2)
        title = "KL divergence to full precision by position in the text"
        return to_svg(made, "positions", title if limit is None else f"{title}; limit {limit:g}")


def _binned(values: Sequence[float]) -> list[float]:
    pieces = [values[start : start + _BIN] for start in range(0, len(values), _BIN)]
    return [float(np.mean(piece)) for piece in pieces]


def recipe_chart(
    recipes: Mapping[str, MeasuredRecipe], own: str, bits: float, mean_kl: float | None
) -> str:
    """Size against quality: the other recipes as the benchmark measured them, this bundle."""
    with figure((4.6, 3.0)) as (made, axes):
        others = {name: found for name, found in recipes.items() if name != own or mean_kl is None}
        axes.scatter(
            [found.bits_per_weight for found in others.values()],
            [found.mean_kl for found in others.values()],
            color=FIRST,
            s=28,
        )
        for (x, y), names in _clusters(others).items():
            axes.annotate(
                "\n".join(map(plain, names)),
                (x, y),
                (6, 0),
                textcoords="offset points",
                fontsize=9.5,
                verticalalignment="center",
            )
        if mean_kl is not None:
            axes.scatter([bits], [mean_kl], color=SECOND, s=60, marker="D")
            axes.annotate(
                plain(f"this bundle: {own}"),
                (bits, mean_kl),
                (8, 6),
                textcoords="offset points",
                fontsize=10,
                color=SECOND,
            )
        axes.set_yscale("log")
        axes.margins(x=0.35, y=0.2)
        axes.set_xlabel("bits per weight, tables and scales included")
        axes.set_ylabel("mean KL to full precision (nats)")
        return to_svg(made, "recipes", "Bits per weight against KL divergence, by recipe")


def _clusters(
    recipes: Mapping[str, MeasuredRecipe],
) -> Mapping[tuple[float, float], Sequence[str]]:
    """Names by place; those whose labels would lie on each other are written as one."""
    clusters: dict[tuple[float, float], list[str]] = {}
    for name, found in sorted(recipes.items(), key=lambda item: -item[1].mean_kl):
        near = next(
            (
                (bits, kl)
                for bits, kl in clusters
                if abs(bits - found.bits_per_weight) < _NEAR_BITS and kl < _NEAR_KL * found.mean_kl
            ),
            (found.bits_per_weight, found.mean_kl),
        )
        clusters.setdefault(near, []).append(name)
    return clusters
