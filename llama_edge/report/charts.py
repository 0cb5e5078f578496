"""Charts by matplotlib: inline SVG for the report, PNG where a file is wanted.

SVG, since a page must stay one small file without scripts: a chart is 5 to 25 kB, and Plotly's
library alone 3.5 MB, as much as a debug bundle. Colours are placeholders that become CSS variables,
so that one drawing serves light and dark; the same data gives the same bytes.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llama_edge.core.files import open_new

if TYPE_CHECKING:
    # Loaded where a chart is drawn: 0.3 s, and every command would pay it.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Placeholder -> (CSS variable, colour on white). Colours of Okabe and Ito, darkened to a contrast
#: of at least 3 on white; the page has lighter ones for dark.
_INK: Final = "#010101"
_GRID: Final = "#020202"
FIRST: Final = "#030303"
SECOND: Final = "#040404"
THIRD: Final = "#050505"
_VARIABLES: Final[Mapping[str, tuple[str, str]]] = {
    _INK: ("--ink-soft", "#4a5058"),
    _GRID: ("--line", "#d5d9df"),
    FIRST: ("--first", "#0067a8"),
    SECOND: ("--second", "#b04a00"),
    THIRD: ("--third", "#007a5a"),
}
#: A phone's column; the SVG scales to what there is.
_SIZE: Final = (4.6, 2.7)
_STYLE: Final[Mapping[str, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "path.simplify": True,
}


@contextmanager
def figure(size: tuple[float, float] = _SIZE) -> "Iterator[tuple[Figure, Axes]]":
    """A figure in the page's style with one pair of axes; no state outlives it."""
    # Read on import, where a backend that is not installed is an error; none is needed here.
    os.environ.pop("MPLBACKEND", None)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A context of plain defaults: a user's own matplotlibrc must not change the bytes.
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}):
        made = Figure(figsize=size, layout="constrained")
        yield made, made.add_subplot()


def to_svg(made: "Figure", name: str, title: str) -> str:
    """Inline SVG, `name` before each of its ids; `title` is what a screen reader says."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        FigureCanvasSVG(made).print_svg(
            stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for placeholder, (variable, _) in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    # Text takes the page's font; white faces would be boxes in the dark.
    text = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = text.replace("fill: #ffffff", "fill: none")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    opening = f'<svg role="img" aria-labelledby="{name}-title" viewBox="{size.group()[9:-1]}">'
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    body = text[text.index(">") + 1 :]
    return f'{opening}<title id="{name}-title">{escaped}</title>{body}'


def draw_layers(
    rows: Sequence[tuple[str, float, float | None]], against: str | None, path: Path
) -> None:
    """A PNG of each layer's lowest operator, and of the residual stream where it was followed.

    Args:
        rows: Layer, dB of its lowest operator, dB of the stream or None.
        against: What the stream is compared with.
        path: The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with figure((8.0, 4.2)) as (made, axes):
        places = range(len(rows))
        axes.plot(
            places,
            [row[1] for row in rows],
            "o-",
            color=FIRST,
            markersize=4,
            label="lowest operator, on its own input",
        )
        stream = [
            (place, row[2]) for place, row in zip(places, rows, strict=True) if row[2] is not None
        ]
        if stream:
            axes.plot(
                [place for place, _ in stream],
                [value for _, value in stream],
                "s--",
                color=SECOND,
                markersize=4,
                label=f"residual stream against {against}",
            )
        step = max(1, len(rows) // 12)
        names = [{"embedding": "emb."}.get(row[0], row[0]) for row in rows]
        axes.set_xticks([*places][::step], names[::step])
        axes.set_xlabel("layer")
        axes.set_ylabel("signal to noise (dB)")
        axes.legend(loc="best", fontsize=9)
        _on_white(made)
        with open_new(path) as file:
            FigureCanvasAgg(made).print_png(file)


def _on_white(made: "Figure") -> None:
    """The placeholders' colours for a picture of its own."""
    for artist in made.findobj():
        for kind in ("color", "edgecolor", "facecolor", "markerfacecolor", "markeredgecolor"):
            getter = getattr(artist, f"get_{kind}", None)
            setter = getattr(artist, f"set_{kind}", None)
            if getter is None or setter is None:
                continue
            value = getter()
            if isinstance(value, str) and value in _VARIABLES:
                setter(_VARIABLES[value][1])
