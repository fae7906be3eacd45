"""The evidence page of a video that the service has scored, from what the topics still hold of it.

Scores come from the scores topic; pictures, where the service was told to publish them, from the evidence
topic. What cannot be told from them is named on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog
from matplotlib.axes import Axes

from streamer.classify import model_set_of
from streamer.config import AlertConfig, Config
from streamer.errors import ConfigError, MessageError, ModelError, NoTopicError, StreamerError, UntrainedError
from streamer.evidence import CROPS_PER_TRACK
from streamer.evidence_page import (
    TIMELINE_INCHES,
    Drawing,
    Strip,
    data_url,
    finish_timeline,
    name_of,
    page_of,
)
from streamer.kafka.tail import retained
from streamer.log import printable
from streamer.manifest import Manifest, read_manifest
from streamer.messages import (
    MAX_SECONDS,
    EvidenceCrop,
    ScoreUpdate,
    VideoEvidence,
    decode_evidence,
    decode_score,
)
from streamer.svg import COLOURS, draw_svg
from streamer.terminal import CONNECT_SECONDS, UNIX_SECONDS, count
from streamer.watch import people_in
from streamer.whole_file import write_whole

MAX_POINTS = 1000
"""Of a timeline, where twice as many are thinned out: what can be told apart on paper."""

MAX_TRACKS = 24
"""Of which pictures are shown; whoever comes and goes for days has many."""

TRACKS_DRAWN = len(COLOURS) - 2
"""With a line of their own, beside two for all."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def report_video(config: Config, video_id: str, output: Path) -> None:
    """Write the page about a video.

    Raises StreamerError if the topic holds no score of it, UntrainedError if its scores are of untrained
    members, ConfigError if the page cannot be written, BrokerError.
    """
    kafka, key = config.kafka, video_id.encode("utf-8", "surrogatepass")
    history, pictures = ScoreHistory(), TrackCrops()
    await _read(config, kafka.scores_topic, key, lambda value: history.add(decode_score(value)))
    update = history.latest
    if update is None:
        raise StreamerError(f"topic {kafka.scores_topic} holds no score of {printable(video_id)}")
    if not update.trained:
        raise UntrainedError(f"no evidence is written of untrained members: {', '.join(update.models)}")
    no_pictures = None

    def take_evidence(value: bytes) -> None:
        if (evidence := decode_evidence(value)).model_set == update.model_set:
            pictures.add(evidence)

    try:
        await _read(config, kafka.evidence_topic, key, take_evidence)
    except NoTopicError:
        no_pictures = f"there is no topic {kafka.evidence_topic}"
    if not pictures.crops:
        no_pictures = no_pictures or (
            f"topic {kafka.evidence_topic} holds none of this video: evidence.publish was off, no face "
            "reached evidence.min_score, or they were older than the topic keeps them"
        )
    manifests = _manifests(config, update)
    page = page_of(
        update,
        config.alert,
        source={"From topic": kafka.scores_topic},
        was_raised=history.was_raised,
        people=people_in(update),
        drawings=drawings(history, config.alert),
        strips=pictures.strips(),
        manifests=manifests,
        missing=missing(history, no_pictures, described=bool(manifests)),
    )
    try:
        write_whole(output, page.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error


async def _read(config: Config, topic: str, key: bytes, take: Callable[[bytes], None]) -> None:
    log.info("reading all of a topic", topic=topic)
    async with aclosing(retained(config.kafka, topic, key, connect_seconds=CONNECT_SECONDS)) as records:
        async for record in records:
            try:
                take(record.value or b"")
            except MessageError as error:
                where = {"topic": topic, "partition": record.partition, "offset": record.offset}
                log.warning("record left out", **where, error=str(error))


def _manifests(config: Config, update: ScoreUpdate) -> list[Manifest]:
    """Of the members, if those configured here are the ones that scored; else none."""
    folder = config.classify.engines
    try:
        manifests = [read_manifest(folder / f"{member}.json") for member in config.classify.members]
    except ModelError:
        return []
    model_set = model_set_of(manifests, config.classify.precision)
    return manifests if model_set == update.model_set else []


@dataclass(frozen=True, slots=True)
class Point:
    """What an update adds to the timelines: means, of `fake`; tracks: of the last seconds."""

    at_seconds: float
    window: float | None
    overall: float | None
    tracks: dict[int, float]
    models: dict[str, float]


@dataclass(slots=True)
class ScoreHistory:
    """A video's updates by the latest ensemble, in order; bounded, however many there are."""

    points: list[Point] = field(default_factory=list)
    latest: ScoreUpdate | None = None
    chunks_before: int = 0
    """Counted before the first update that is retained."""
    thinned: bool = False
    was_raised: bool = False
    """Whether the alert was, after any of the updates that are retained."""
    other_models: bool = False
    """Whether another ensemble scored it before; then the scores began anew."""

    def add(self, update: ScoreUpdate) -> None:
        """Take in the next update."""
        if self.latest is None or self.latest.model_set != update.model_set:
            self.other_models = self.latest is not None
            self.points, self.thinned, self.was_raised = [], False, False
            self.chunks_before = max(0, update.chunks + update.undecodable_chunks - 1)
        self.latest = update
        self.was_raised = self.was_raised or update.alert.state == "raised"
        if update.end_seconds is None or update.status == "duplicate":
            return
        tracks = {t.track: t.window_score for t in update.tracks if t.window_score is not None}
        self.points.append(
            Point(update.end_seconds, update.window_score, update.fake_score, tracks, update.models)
        )
        if len(self.points) > 2 * MAX_POINTS:
            self.thinned = True
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points = [max(pair, key=lambda point: point.window or 0.0) for pair in pairs]


class TrackCrops:
    """The most suspicious crops of each track, most suspicious first; bounded."""

    def __init__(self) -> None:
        self.crops: dict[int, list[EvidenceCrop]] = {}

    def add(self, evidence: VideoEvidence) -> None:
        """Take in the crops of a chunk; those that were there before, as after a crash, are left out."""
        for crop in evidence.crops:
            kept = self.crops.setdefault(crop.track, [])
            if all(crop.time_seconds != each.time_seconds for each in kept):
                kept.append(crop)
                kept.sort(key=lambda each: (-each.fake_score, each.time_seconds))
                del kept[CROPS_PER_TRACK:]
        while len(self.crops) > MAX_TRACKS:
            del self.crops[min(self.crops, key=lambda track: self.crops[track][0].fake_score)]

    def strips(self) -> list[Strip]:
        """By the number of the track."""
        return [
            Strip(
                name_of(track),
                f"{count(len(crops), 'picture')}, the most suspicious of those published",
                [
                    (
                        f"{at_text(crop.time_seconds)}: {crop.fake_score:.2f}",
                        data_url(crop.jpeg, "image/jpeg"),
                        None if crop.heat_map is None else data_url(crop.heat_map, "image/png"),
                    )
                    for crop in crops
                ],
            )
            for track, crops in sorted(self.crops.items())
        ]


def missing(history: ScoreHistory, no_pictures: str | None, *, described: bool) -> list[str]:
    """What the page cannot show, a sentence each."""
    assert history.latest is not None
    latest = history.latest
    said = []
    if no_pictures is not None:
        said.append(f"There are no pictures: {no_pictures}.")
    if history.chunks_before:
        said.append(
            f"The timelines begin late: what was said after each of the first "
            f"{count(history.chunks_before, 'chunk')} is not kept any more. The means do count them; an "
            f"alert that was raised and cleared then is not known here."
        )
    if history.other_models:
        said.append(
            "What other models said of this video before is left out; the scores began anew with these."
        )
    if history.thinned:
        said.append("Not every update is drawn: of neighbours, the one with the higher score is.")
    if latest.missing_chunks:
        said.append(f"{count(latest.missing_chunks, 'chunk')} of the video never came.")
    if not latest.last:
        when = _utc(latest.processed_at_ms / 1000)
        said.append(f"The video had not ended when it was last heard of, {when}.")
    if not described:
        said.append(
            "What is known of the models is not here: those configured where this page was made are not the "
            "ones that scored."
        )
    return said


def drawings(history: ScoreHistory, alert: AlertConfig) -> list[Drawing]:
    """Timelines: of the whole and each track, and of each model."""
    points = sorted(history.points, key=lambda point: point.at_seconds)
    if not points:
        return []
    start = points[0].at_seconds if points[0].at_seconds >= UNIX_SECONDS else 0.0
    x = [point.at_seconds - start for point in points]
    x_label = f"seconds since {at_text(start)}" if start else "seconds"
    highest: dict[int, float] = {}
    for point in points:
        for track, score in point.tracks.items():
            highest[track] = max(score, highest.get(track, 0.0))
    worst = sorted(sorted(highest, key=lambda track: -highest[track])[:TRACKS_DRAWN])
    models = sorted({model for point in points for model in point.models})
    whole = {
        "last seconds": [point.window for point in points],
        "all so far": [point.overall for point in points],
    }
    by_track = {name_of(track): [point.tracks.get(track) for point in points] for track in worst}
    by_model = {model: [point.models.get(model) for point in points] for model in models}
    people = "by person" if len(worst) == len(highest) else f"by the {len(worst)} most suspicious people"
    found = [_draw(f"Probability of fake over time, {people}", x, whole | by_track, alert, x_label)]
    if by_model:
        found.append(_draw("Probability of fake over time, by model", x, by_model, alert, x_label))
    return found


def _draw(
    title: str, x: Sequence[float], lines: dict[str, list[float | None]], alert: AlertConfig, x_label: str
) -> Drawing:
    def paint(axes: Axes) -> None:
        for number, (name, values) in enumerate(lines.items()):
            y = [float("nan") if value is None else value for value in values]
            marker = "o" if len(x) == 1 else None
            axes.plot(
                x, y, color=COLOURS[number % len(COLOURS)], marker=marker, linewidth=1.1, label=_label(name)
            )
        finish_timeline(axes, alert, x_label)

    svg = draw_svg(title, paint, inches=TIMELINE_INCHES)
    return Drawing(svg, f"{title}. Lines are means: of the last seconds, else of all so far. Dotted: alert.")


def _label(name: str) -> str:
    """For a legend, where dollar signs make formulas, and names that begin with _ are left out."""
    return " " + printable(name).replace("$", r"\$")


def at_text(seconds: float) -> str:
    """A position in a video; where that is a time of day, with the date."""
    return f"{seconds:.2f} s" if seconds < UNIX_SECONDS else _utc(seconds)


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(min(max(seconds, 0.0), MAX_SECONDS), UTC):%Y-%m-%d %H:%M:%S} UTC"
