"""How figures look: one colour and one marker an arm, the style sheet, and the frame around every figure.

An arm looks the same in every figure and table of a report. Arms of one sweep (their gamma or draft latency
differs, nothing else) are shades of one hue; the autoregressive arms are grey.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from specbench.report.cells import BASELINE, TWIN

# Okabe & Ito (2008) less yellow and black, then Tol's muted set: told apart by people with colour-blindness too.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#AA4499", "#999933", "#882255",
            "#44AA99")  # fmt: skip
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "*", "<", ">", "d")
GREYS = {BASELINE: "#7f7f7f", TWIN: "#a9a9a9"}
_DARKEST, _LIGHTEST = -0.2, 0.35
"""How far the shades of a hue go towards black and white; both still stand out on either paper."""

_INK = {"light": "#1b1d21", "dark": "#e6e6e7"}
_PAPER = {"light": "#fefefe", "dark": "#16181d"}
_QUIET = {"light": "#6b7280", "dark": "#9aa1ac"}
THEMES = ("light", "dark")


@dataclass(frozen=True)
class Look:
    """Colour and marker of every arm, what must be said beside its name, and the theme's ink."""

    colours: dict[str, str]
    markers: dict[str, str]
    theme: str
    notes: Mapping[str, str]

    @property
    def ink(self) -> str:
        """Colour of text."""
        return _INK[self.theme]

    @property
    def quiet(self) -> str:
        """Colour of what stands back: notes, the line at 1."""
        return _QUIET[self.theme]

    @property
    def paper(self) -> str:
        """Colour of the background."""
        return _PAPER[self.theme]

    def handle(self, arm: str, label: str | None = None, *, line: bool = False) -> Line2D:
        """The entry of an arm in a legend."""
        colour, style = self.colours[arm], "-" if line else ""
        name = f"{label or arm}{self.notes.get(arm, '')}"
        return Line2D([], [], color=colour, marker=self.markers[arm], linestyle=style, label=name)


def look(
    arms: Sequence[str],
    theme: str = "light",
    series: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Look:
    """The look of a report that shows these arms; the same arms give the same look.

    Args:
        arms: Names, in any order.
        theme: One of `THEMES`.
        series: The sweep that an arm belongs to, where it belongs to one.
        notes: What a legend adds to an arm's name.
    """
    names = sorted(set(arms) - set(GREYS), key=_natural)
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault((series or {}).get(name, name), []).append(name)
    colours: dict[str, str] = {}
    for index, members in enumerate(families.values()):
        hue = _PALETTE[index % len(_PALETTE)]
        colours |= dict(zip(members, _shades(hue, len(members)), strict=True))
    markers = {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(names)}
    return Look(colours | GREYS, markers | dict.fromkeys(GREYS, "o"), theme, notes or {})


def _shades(hue: str, count: int) -> list[str]:
    if count == 1:
        return [hue]
    steps = [_DARKEST + (_LIGHTEST - _DARKEST) * index / (count - 1) for index in range(count)]
    return [_mixed(hue, step) for step in steps]


def _mixed(colour: str, step: float) -> str:
    """The colour, moved towards white by a positive step and towards black by a negative one."""
    aim, share = (1.0 if step > 0 else 0.0), abs(step)
    return to_hex(tuple((1 - share) * part + share * aim for part in to_rgb(colour)))


def _natural(name: str) -> list[tuple[int, float, str]]:
    """A sort key by which gamma=4 comes before gamma=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


@contextmanager
def themed(theme: str) -> Iterator[None]:
    """Draw and save within this: the style sheet, with the theme's ink and paper."""
    ink, paper = _INK[theme], _PAPER[theme]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    colours: Any = dict.fromkeys(inked, ink)
    colours |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper)
    sheet = Path(__file__).parents[1] / "specbench.mplstyle"
    style: Any = mpl.rc_params_from_file(sheet, use_default_template=False)
    with mpl.rc_context({**style, **colours, "grid.color": _QUIET[theme]}):
        yield


def adaptive(svg: bytes) -> bytes:
    """A figure of the light theme that turns dark where its viewer is: ink, paper and quiet change, arms do not."""
    names = {"ink": _INK, "paper": _PAPER, "quiet": _QUIET}
    for name, colours in names.items():
        svg = svg.replace(colours["light"].encode(), f"var(--{name})".encode())
    light, dark = (";".join(f"--{name}:{colours[theme]}" for name, colours in names.items()) for theme in THEMES)
    style = f"<style>svg{{{light}}}@media screen and (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return svg.replace(b"<defs>", style.encode() + b"<defs>", 1)


def mark(style: Look, arm: str) -> str:
    """An arm's colour and marker as a small SVG to stand in text."""
    path = MarkerStyle(style.markers[arm])
    outline = path.get_path().transformed(path.get_transform())
    corners = np.asarray(outline.to_polygons()[0], dtype=np.float64)
    points = " ".join(f"{x:.2f},{-y:.2f}" for x, y in corners)
    shape = f'<polygon points="{points}" fill="{style.colours[arm]}"/>'
    return f'<svg class="mark" viewBox="-.55 -.55 1.1 1.1" aria-hidden="true">{shape}</svg>'


class Sketch(NamedTuple):
    """A drawn figure, not yet framed, and what its legend is to hold."""

    figure: Figure
    handles: Sequence[Artist]


def framed(sketch: Sketch, title: str, footer: str, style: Look) -> Figure:
    """Put a title above, the legend and the footer below, and settle the layout.

    The sketch keeps its size: what is added makes the figure taller.
    """
    figure, handles = sketch
    width, height = figure.get_size_inches()
    above = textwrap.wrap(title, int(10.5 * width))
    below = textwrap.wrap(footer, int(17 * width))
    columns = _legend_columns([str(handle.get_label()) for handle in handles], width)
    head_in, foot_in = 0.2 * len(above) + 0.14, 0.13 * len(below) + 0.12
    legend_in = 0.19 * -(-len(handles) // columns) + 0.1 if handles else 0.0
    total = height + head_in + foot_in + legend_in
    figure.set_size_inches(width, total)
    if handles:
        box = (0.0, foot_in / total, 1.0, legend_in / total)
        legend = figure.legend(handles=handles, loc="center", ncols=columns, bbox_to_anchor=box, borderpad=0)
        legend.set_in_layout(False)
    figure.text(0.1 / width, 1 - 0.1 / total, "\n".join(above), va="top", weight="bold", fontsize=11)
    figure.text(0.1 / width, 0.07 / total, "\n".join(below), va="bottom", fontsize=7, color=style.quiet)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, (foot_in + legend_in) / total, 1, height / total))
    engine.execute(figure)
    figure.set_layout_engine(None)  # it is settled; each file would settle it again, and draw twice for that
    return figure


def _legend_columns(labels: Sequence[str], width: float) -> int:
    longest = max(map(len, labels), default=0)
    return max(1, min(len(labels), int(width / (0.075 * longest + 0.55))))
