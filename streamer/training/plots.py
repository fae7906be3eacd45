"""Plots of an evaluation as SVG with the page's text colour, so that they read on dark and light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from streamer.svg import COLOURS, INK, draw_svg
from streamer.training.figures import CurveFigures, SetFigures
from streamer.training.metrics import Bin, GainPoint

DASHES = ("--", "-.", ":")


def roc_plot(found: SetFigures) -> str:
    """Found against false alarms, over videos."""

    def paint(axes: Axes) -> None:
        for number, (name, corners) in enumerate(found.roc.items()):
            auc = found.scorer(name).video.auc
            x, y = zip(*corners, strict=True)
            axes.plot(x, y, label=f"{name}, AUC {auc:.3f}", **_line(number, main=name == found.best_name))
        _diagonal(axes, "random")
        axes.set(xlabel="real videos taken for fake", ylabel="fakes found", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower right")

    return draw_svg(f"ROC curves on {found.name}", paint)


def reliability_plot(found: SetFigures) -> str:
    """Share of fakes against predicted probability."""

    def paint(axes: Axes) -> None:
        both = {"calibrated": found.reliability, "as trained": found.reliability_uncalibrated}
        for number, (name, bins) in enumerate(both.items()):
            x, y = _filled(bins)
            axes.plot(x, y, marker="o", label=name, **_line(number, main=not number))
        _diagonal(axes, "perfect")
        axes.set(xlabel="predicted probability of fake", ylabel="share of fakes", xlim=(0, 1))
        axes.set(ylim=(-0.02, 1.02))
        axes.legend(loc="upper left")

    return draw_svg(f"Reliability on {found.name}", paint)


def gain_plot(points: Sequence[GainPoint], unit: str, name: str) -> str:
    """AUC against the number of frames or networks that are averaged."""

    def paint(axes: Axes) -> None:
        counts = [point.count for point in points]
        aucs, spreads = [point.auc for point in points], [point.auc_spread for point in points]
        axes.errorbar(counts, aucs, spreads, marker="o", capsize=3, **_line(0, main=True))
        if counts[-1] > 8:
            axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set(xlabel=f"{unit} averaged", ylabel="AUC per video")

    return draw_svg(f"Gain from more {unit} on {name}", paint)


def curve_plot(curve: CurveFigures) -> str:
    """AUC against the strength of one degradation; the first mark is the picture as it is."""

    def paint(axes: Axes) -> None:
        places = range(len(curve.points) + 1)
        names = list(curve.undegraded)
        for number, name in enumerate(names):
            aucs = [curve.undegraded[name], *(point.aucs[name] for point in curve.points)]
            axes.plot(places, aucs, marker="o", label=name, **_line(number, main=name == names[-1]))
        axes.set_xticks(places, ["as it is", *(f"{point.level:g}" for point in curve.points)])
        lowest = min(min(point.aucs.values()) for point in curve.points)
        axes.set(xlabel=curve.axis, ylabel="AUC per video", ylim=(min(0.48, lowest - 0.02), 1.01))
        axes.axhline(0.5, color=INK, linewidth=0.7, linestyle=":", alpha=0.6)
        axes.set_title(curve.degradation)
        axes.legend(loc="lower left")

    return draw_svg(f"{curve.degradation} on {curve.on}", paint)


def pairs_plot(found: SetFigures) -> str:
    """Each original joined with what was made of it."""

    def paint(axes: Axes) -> None:
        for pair in found.pairs:
            rises = pair.swapped_probability > pair.original_probability
            values = (pair.original_probability, pair.swapped_probability)
            axes.plot((0, 1), values, marker="o", color=COLOURS[0 if rises else 1], linewidth=1.2)
        axes.set_xticks((0, 1), ("original", "swapped"))
        axes.set(ylabel="mean probability of fake", xlim=(-0.3, 1.3), ylim=(-0.02, 1.02))

    return draw_svg(f"Pairs of {found.name}", paint)


def _line(number: int, *, main: bool) -> dict[str, Any]:
    """Solid for the main line; the others in dashes too, as colours do not tell lines apart for everybody."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": "-" if main else DASHES[number % len(DASHES)],
        "linewidth": 2.2 if main else 1.3,
        "zorder": 3 if main else 2,
    }


def _diagonal(axes: Axes, label: str) -> None:
    axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=":", alpha=0.6, label=label)


def _filled(bins: Sequence[Bin]) -> tuple[list[float], list[float]]:
    """Points of the bins that hold something."""
    points = [
        (b.mean_probability, b.fake_share)
        for b in bins
        if b.mean_probability is not None and b.fake_share is not None
    ]
    return [x for x, _ in points], [y for _, y in points]
