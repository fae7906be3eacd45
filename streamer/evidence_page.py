"""A page to read and print about a video: what its score rests on, and what the method cannot tell.

One HTML file that needs nothing else: verdict in words, timeline, each person's most suspicious crops with
their heat maps, the members.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.axes import Axes

from streamer.config import AlertConfig
from streamer.evidence import Evidence, tracks_to_show
from streamer.log import printable
from streamer.manifest import Manifest
from streamer.messages import ScoreUpdate
from streamer.suspects import jpeg_of, png_of_heat
from streamer.svg import COLOURS, INK, draw_svg
from streamer.terminal import count
from streamer.types import Float32Array

JPEG_QUALITY = 88

TIMELINE_INCHES = (9.0, 2.8)

LEGEND_ROWS, LEGEND_COLUMNS = 12, 3
"""What fits beside a timeline."""

WATCHED = {
    "track": "the last seconds of the most suspicious person, or of all faces",
    "window": "the last seconds",
    "video": "the whole video",
}
"""What `alert.score` names."""

LIMITS = (
    "A score is not proof. It says how much these pictures resemble the fakes that the models were trained "
    "on; decisions about people need a person who looks at the video.",
    "A video can be altered in ways that nothing here looks for: voice, cut, context, faces that are wholly "
    "synthetic, fakes made to deceive this method.",
    "Genuine video can score high: heavy compression, filters, make-up, glasses, poor light, and people and "
    "cameras that are rare in the training data.",
    "Only sampled frames were looked at, and in them only faces that were found.",
)


@dataclass(frozen=True, slots=True)
class Strip:
    """One person of the page."""

    title: str
    about: str
    crops: list[tuple[str, str, str | None]]
    """(caption, JPEG of the crop, greyscale PNG of its heat map): images as data URLs."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A timeline of the page."""

    svg: str
    caption: str


def report_html(
    update: ScoreUpdate,
    evidence: Evidence,
    *,
    file_name: str,
    was_raised: bool,
    file_sha256: str,
    manifests: Sequence[Manifest],
    alert: AlertConfig,
    heat_maps: dict[int, Float32Array],
) -> str:
    """The page about a video that has ended.

    update: its `final` one; its scores must be of trained members. was_raised: see `page_of`. heat_maps: of
    `crops_of`, by track, each (n, size, size) float32 in [0, 1]; may be empty.
    """
    tracks = tracks_to_show(evidence)
    missing = []
    if update.missing_chunks:
        missing.append(f"{count(update.missing_chunks, 'piece')} of the file, damaged in it, left out.")
    return page_of(
        update,
        alert,
        source={"File": printable(file_name), "SHA-256": file_sha256},
        was_raised=was_raised,
        people=len(tracks),
        drawings=[_timeline(evidence, tracks, alert)] if evidence.faces else [],
        strips=[_strip(evidence, track, heat_maps.get(track)) for track in tracks],
        manifests=manifests,
        missing=missing,
    )


def page_of(
    update: ScoreUpdate,
    alert: AlertConfig,
    *,
    source: Mapping[str, str],
    was_raised: bool,
    people: int,
    drawings: Sequence[Drawing],
    strips: Sequence[Strip],
    manifests: Sequence[Manifest],
    missing: Sequence[str],
) -> str:
    """The page, HTML.

    was_raised: whether the alert was at any time, even if it was cleared later. source: where what was
    scored is from, by name. missing: what is, a sentence each.
    """
    described = {manifest.name: manifest for manifest in manifests}
    template = _templates().get_template("evidence.html.j2")
    page: str = template.render(
        update=update,
        name=printable(update.video_id),
        verdict=verdict(update, alert, was_raised=was_raised),
        reasons=reasons(update, alert, people, was_raised=was_raised),
        missing=missing,
        drawings=drawings,
        strips=strips,
        heat=any(heat for strip in strips for *_, heat in strip.crops),
        source=source,
        members=[(name, described.get(name)) for name in dict.fromkeys((*described, *update.models))],
        alert=alert,
        limits=LIMITS,
        version=version("streamer"),
    )
    return page


def verdict(update: ScoreUpdate, alert: AlertConfig, *, was_raised: bool) -> str:
    """In plain words."""
    if update.fake_score is None:
        return "No verdict: no face was found."
    if update.alert.state == "raised" or update.fake_score >= alert.raise_at:
        return "Likely altered."
    if was_raised:
        return "Likely altered in part."
    worst = max([update.fake_score, *(track.fake_score for track in update.tracks)])
    if worst < 0.5 and (update.interval is None or update.interval[1] < alert.raise_at):
        return "No sign of alteration was found."
    return "Undecided: somewhat suspicious, below the threshold of an alert."


def reasons(update: ScoreUpdate, alert: AlertConfig, people: int, *, was_raised: bool) -> list[str]:
    """What the verdict rests on, a sentence each."""
    found = [
        f"{update.faces:,} faces of {people} {'person' if people == 1 else 'people'} in {update.frames:,} "
        "sampled frames were looked at."
    ]
    if update.fake_score is not None:
        raised = "raised, and cleared later" if was_raised else "not raised"
        if update.alert.state == "raised":
            raised = "raised"
        spread = ""
        if update.interval is not None:
            spread = f" (95 % interval over time: {update.interval[0]:.2f} to {update.interval[1]:.2f})"
        found.append(
            f"The mean probability of fake over models, faces and frames is {update.fake_score:.2f}{spread}."
        )
        found.append(
            f"An alert is raised from {alert.raise_at:g} on, of {WATCHED[alert.score]}, by at least "
            f"{alert.min_faces} faces; it was {raised}."
        )
    if update.unscored_faces:
        found.append(
            f"{update.unscored_faces} more faces were found and not scored: of a frame with many, those that "
            f"are least sure to be a face are left out."
        )
    if update.undecodable_chunks:
        found.append(
            f"{update.undecodable_chunks} pieces of the video could not be decoded and are left out."
        )
    return found


def _timeline(evidence: Evidence, tracks: Sequence[int], alert: AlertConfig) -> Drawing:
    def paint(axes: Axes) -> None:
        for number, track in enumerate(tracks):
            faces = sorted((f for f in evidence.faces if f.track == track), key=lambda f: f.at_seconds)
            axes.plot(
                [face.at_seconds for face in faces],
                [face.score for face in faces],
                color=COLOURS[number % len(COLOURS)],
                marker="o",
                linewidth=1.1,
                label=name_of(track),
            )
        finish_timeline(axes, alert, "seconds")

    svg = draw_svg("Probability of fake over time, by person", paint, inches=TIMELINE_INCHES)
    return Drawing(svg, "Each mark is a face in a sampled frame; dotted: where an alert is raised.")


def finish_timeline(axes: Axes, alert: AlertConfig, x_label: str) -> None:
    """What all timelines have."""
    axes.axhline(alert.raise_at, color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
    axes.set(xlabel=x_label, ylabel="probability of fake", ylim=(-0.02, 1.02))
    handles, labels = axes.get_legend_handles_labels()
    named = min(len(labels), LEGEND_ROWS * LEGEND_COLUMNS)  # a crowd would leave no room for the axes
    axes.legend(
        handles[:named],
        labels[:named],
        ncols=max(1, math.ceil(named / LEGEND_ROWS)),
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )


def _strip(evidence: Evidence, track: int, heat: Float32Array | None) -> Strip:
    faces = [face for face in evidence.faces if face.track == track]
    first, last = min(f.at_seconds for f in faces), max(f.at_seconds for f in faces)
    mean = float(np.mean([face.score for face in faces]))
    crops = [
        (
            f"{face.at_seconds:.2f} s: {face.score:.2f}",
            data_url(jpeg_of(crop, JPEG_QUALITY), "image/jpeg"),
            None if heat is None else data_url(png_of_heat(heat[place]), "image/png"),
        )
        for place, (face, crop) in enumerate(evidence.crops_of(track))
    ]
    about = f"mean {mean:.2f} over {len(faces)} faces, from {first:.1f} to {last:.1f} s"
    return Strip(name_of(track), about, crops)


def name_of(track: int) -> str:
    """How the page calls a track."""
    return f"person {track + 1}"


def data_url(content: bytes, media_type: str) -> str:
    """An address that is its content."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _templates() -> Environment:
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    return Environment(
        loader=PackageLoader("streamer", package_path=""),
        autoescape=select_autoescape(("html.j2",)),
        **options,
    )
