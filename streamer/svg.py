"""Matplotlib's drawings as SVG with the page's text colour, so that they read on dark and light."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#3b82c4", "#d9730d", "#2f9e6e", "#c2528b", "#8f7ad6", "#a08020", "#3d9494", "#7d7d7d")
"""At least 3:1 against white and against the page's dark ground (WCAG 2.2, 1.4.11)."""

INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "streamer",  # the same plot gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.markersize": 4.0,
}


def draw_svg(title: str, paint: Callable[[Axes], None], *, inches: tuple[float, float] = (4.2, 3.2)) -> str:
    """An <svg> element to stand in HTML, with a title for those who do not see it."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        paint(axes)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="[a-zA-Z]+[a-zA-Z0-9.]*_\d+"', "", svg
    )  # the same in every plot, and never referred to
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(title)}', 1)
