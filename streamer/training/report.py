"""An evaluation as one HTML file that needs nothing else, and as report.json with every figure."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from streamer.errors import TrainingError
from streamer.training import plots
from streamer.training.figures import CONSTANT, RANDOM, CurveFigures, Evaluation, SetFigures
from streamer.training.words import interval, number, percent, size_of, summary
from streamer.whole_file import write_whole

HTML, JSON = "report.html", "report.json"


class _SetPart(NamedTuple):
    """One set and its plots, each (caption, SVG)."""

    found: SetFigures
    plots: list[tuple[str, str]]


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write `report.html` and `report.json`; returns the path of the first. Raises TrainingError."""
    html = render_html(evaluation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / JSON, (evaluation.model_dump_json(indent=1) + "\n").encode())
        write_whole(folder / HTML, html.encode())
    except OSError as error:
        raise TrainingError(f"{folder}: cannot write the report: {error.strerror}") from error
    return folder / HTML


def render_html(evaluation: Evaluation) -> str:
    """The whole page; the same evaluation gives the same bytes."""
    template = templates().get_template("report.html.j2")
    page: str = template.render(
        evaluation=evaluation,
        summary=summary(evaluation),
        parts=[_SetPart(found, _plots_of(found)) for found in evaluation.sets],
        curves=_curves_by_set(evaluation),
        baselines=(RANDOM, CONSTANT),
        number=number,
        percent=percent,
        interval=interval,
        size_of=size_of,
    )
    return page


def templates() -> Environment:
    """The templates beside this module; in those of HTML, values are escaped."""
    return Environment(
        loader=PackageLoader("streamer.training", package_path=""),
        autoescape=select_autoescape(("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def _plots_of(found: SetFigures) -> list[tuple[str, str]]:
    drawn = []
    if found.roc:
        drawn.append(("ROC curves over videos", plots.roc_plot(found)))
        drawn.append(
            ("Reliability over frames: on the diagonal, probabilities mean what they say",
             plots.reliability_plot(found))
        )  # fmt: skip
    if found.frames_gain:
        caption = (
            "Gain from averaging more frames, over those videos alone that have "
            f"{found.frames_gain[-1].count} or more; bars: standard deviation over random choices of frames"
        )
        drawn.append((caption, plots.gain_plot(found.frames_gain, "frames", found.name)))
    if found.members_gain:
        caption = "Gain from averaging more networks; bars: standard deviation over choices of networks"
        drawn.append((caption, plots.gain_plot(found.members_gain, "networks", found.name)))
    if found.pairs:
        drawn.append(("Each line joins an original and what was made of it", plots.pairs_plot(found)))
    return drawn


def _curves_by_set(evaluation: Evaluation) -> list[tuple[str, list[tuple[CurveFigures, str]]]]:
    """Set -> its curves with their plots, in the order of measuring."""
    return [
        (on, [(curve, plots.curve_plot(curve)) for curve in group])
        for on, group in groupby(evaluation.curves, key=lambda curve: curve.on)
    ]
