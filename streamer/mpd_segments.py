"""Segments of one rendition in one period of an MPEG-DASH manifest: SegmentTemplate and SegmentList."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.adaptive import Segment
from streamer.fetch import ByteRange, resolve
from streamer.files import SourceError
from streamer.messages import MAX_SECONDS

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LIVE_SEGMENTS = 1000
"""Of a live period, so many from its end are looked at: half an hour of two-second segments."""

MIN_SEGMENT_SECONDS, MAX_SEGMENT_SECONDS = 0.001, 3600.0
MAX_NUMBER = 2**53
"""Of a segment: players in JavaScript count no further."""

_XLINK = "{http://www.w3.org/1999/xlink}href"
_PLACEHOLDER = re.compile(r"\$(?:(\w+)(?:%0(\d{1,2})d)?)?\$")


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of the presentation, with one address scheme and clock."""

    element: Element
    start_seconds: float
    end_seconds: float | None
    """Both from the start of the presentation; None: not known yet."""


@dataclass(frozen=True, slots=True)
class Representation:
    """One rendition in one period."""

    levels: tuple[Element, Element, Element]
    """Representation, AdaptationSet, Period; what several say, the first of them means."""
    references: list[str]
    """BaseURLs, outermost first."""

    def attribute(self, name: str) -> str:
        return next((value for level in self.levels[:2] if (value := level.get(name))), "")


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is in a presentation."""

    origin_seconds: float | None
    """Unix time of a live video's start; None of any other."""
    now_seconds: float | None
    """From there; None if the video is not, or no longer, live."""


@dataclass(frozen=True, slots=True)
class _Time:
    """When a segment is shown."""

    index: int
    """In the period, from 0."""
    start: int
    """Ticks, of the media's time."""
    duration: int
    """Ticks."""
    is_supposed: bool = False
    """As in Segment."""


class _Addressing:
    """SegmentTemplate or SegmentList: of what several levels say, the innermost counts."""

    def __init__(self, representation: Representation) -> None:
        for kind in ("SegmentTemplate", "SegmentList"):
            found = [level.find(f"{{*}}{kind}") for level in representation.levels]
            if any(one is not None for one in found):
                break
        else:
            raise unsupported(
                "one file whose index names the segments (SegmentBase)", "publish that file itself"
            )
        self._levels = [one for one in found if one is not None]
        self.is_template = kind == "SegmentTemplate"
        self.timescale = self.integer("timescale", 1, low=1, high=2**32)
        self.offset = self.integer("presentationTimeOffset", 0)
        self.duration = self.integer("duration", 0)
        self.first_number = self.integer("startNumber", 1, high=MAX_NUMBER)
        self.media = self.attribute("media") or ""
        self.urls = next((urls for level in self._levels if (urls := level.findall("{*}SegmentURL"))), [])
        self.timeline = self.child("SegmentTimeline")

    def attribute(self, name: str) -> str | None:
        return next((value for level in self._levels if (value := level.get(name)) is not None), None)

    def integer(self, name: str, default: int, *, low: int = 0, high: int = 2**63) -> int:
        holder = next((level for level in self._levels if level.get(name) is not None), self._levels[0])
        return integer(holder, name, default, low, high)

    def child(self, name: str) -> Element | None:
        found = (level.find(f"{{*}}{name}") for level in self._levels)
        return next((one for one in found if one is not None), None)


class PeriodReader:
    """Lists a representation's segments. Raises SourceError if there is no telling what they are."""

    def __init__(self, address: str, period: Period, representation: Representation, clock: Clock) -> None:
        """address: of the manifest."""
        self._address, self._representation = address, representation
        self._period, self._clock = period, clock
        self._how = _Addressing(representation)

    def segments(self, most: int) -> list[Segment]:
        """In order, of a live video the last ones; most: how many the period may have."""
        how = self._how
        times = self._times_by_duration(most) if how.timeline is None else self._times_of_timeline(most)
        if not how.is_template:
            times = times[: len(how.urls)]
        init = self._init()
        return [self._segment(time, init) for time in times[-LIVE_SEGMENTS if self._is_live else 0 :]]

    @property
    def _is_live(self) -> bool:
        return self._clock.origin_seconds is not None

    def _times_of_timeline(self, most: int) -> list[_Time]:
        assert self._how.timeline is not None
        refuse_remote(self._how.timeline)
        runs = self._how.timeline.findall("{*}S")
        times: list[_Time] = []
        index = at = 0
        for run, following in zip(runs, [*runs[1:], None], strict=True):
            at = integer(run, "t", at, 0, 2**63)
            duration = integer(run, "d", 0, 1, 2**63)
            repeats = integer(run, "r", 0, -(2**63), 2**63)
            if repeats < 0 and (following is None or following.get("t") is None):
                times += self._times_until_end(index, at, duration, most)
                break
            if repeats < 0:
                assert following is not None
                count = max(0, -((at - integer(following, "t", 0, 0, 2**63)) // duration))
            else:
                count = repeats + 1
            _refuse_more(index + count, most)
            times += (_Time(index + number, at + number * duration, duration) for number in range(count))
            index, at = index + count, at + count * duration
        return times

    def _times_by_duration(self, most: int) -> list[_Time]:
        how = self._how
        if not how.duration:
            raise SourceError("not_media", "the manifest does not say how long its segments are")
        if how.is_template:
            return self._times_until_end(0, how.offset, how.duration, most)
        if self._is_live:  # whose first segment is when?
            raise unsupported("a live SegmentList without SegmentTimeline", "have SegmentTemplate written")
        _refuse_more(len(how.urls), most)
        return [
            _Time(index, how.offset + index * how.duration, how.duration) for index in range(len(how.urls))
        ]

    def _times_until_end(self, index: int, at: int, duration: int, most: int) -> list[_Time]:
        """Segments of the same duration from `at` to the period's end, or as far as there are yet."""
        end, now = self._period.end_seconds, self._clock.now_seconds
        is_ended = end is not None and (now is None or end <= now)
        until = end if is_ended else now
        if until is None:
            raise SourceError("not_media", "the manifest does not say how long the video is")
        ticks = (until - self._period.start_seconds) * self._how.timescale - (at - self._how.offset)
        count = max(0, math.floor(ticks / duration + 0.001))
        rest = ticks - count * duration
        has_rest = is_ended and rest > duration / 100  # lengths are rounded
        if not self._is_live:
            _refuse_more(index + count + has_rest, most)
        first = max(0, count - LIVE_SEGMENTS) if self._is_live else 0
        times = [
            _Time(index + number, at + number * duration, duration, now is not None)
            for number in range(first, count)
        ]
        if has_rest:
            times.append(_Time(index + count, at + count * duration, max(1, round(rest)), True))
        return times

    def _segment(self, time: _Time, init: tuple[str, ByteRange | None] | None) -> Segment:
        how = self._how
        start = self._period.start_seconds + (time.start - how.offset) / how.timescale
        start = max(0.0, start + (self._clock.origin_seconds or 0.0))
        duration = time.duration / how.timescale
        if not MIN_SEGMENT_SECONDS <= duration <= MAX_SEGMENT_SECONDS or start + duration > MAX_SECONDS:
            raise SourceError("not_media", f"a segment at {start:.6g} s lasts {duration:.6g} s")
        number = how.first_number + time.index
        if how.is_template:
            media, part = self._filled(how.media, number=number, time=time.start), None
        else:
            url = how.urls[time.index]
            media, part = url.get("media") or "", _byte_range(url.get("mediaRange"))
        return Segment(
            number=-1 if how.is_template and "$Number" not in how.media else number,
            address=self._resolve(media),
            part=part,
            init=init,
            duration_seconds=duration,
            captured_at_ms=round(1000 * (start + duration)) if self._is_live else None,
            start_seconds=start,
            is_supposed=time.is_supposed,
        )

    def _init(self) -> tuple[str, ByteRange | None] | None:
        """Address of the init segment; MPEG-TS has none."""
        template = self._how.attribute("initialization")
        if template is not None:
            return self._resolve(self._filled(template)), None
        element = self._how.child("Initialization")
        if element is None:
            return None
        return self._resolve(element.get("sourceURL") or ""), _byte_range(element.get("range"))

    def _resolve(self, reference: str) -> str:
        return resolve(self._address, *self._representation.references, reference)

    def _filled(self, template: str, **values: int) -> str:
        """A template with its identifiers replaced."""
        element = self._representation.levels[0]

        def value(match: re.Match[str]) -> str:
            name, width = match.group(1), int(match.group(2) or 1)
            if name is None:
                return "$"
            if name == "RepresentationID":
                return element.get("id") or ""
            if name == "Bandwidth":
                return f"{integer(element, 'bandwidth', 0, 0, MAX_NUMBER):0{width}d}"
            if name.lower() not in values:
                raise unsupported(f"${name[:30]}$ in an address", "have $Number$ or $Time$ written")
            return f"{values[name.lower()]:0{width}d}"

        return _PLACEHOLDER.sub(value, template)


def integer(element: Element, name: str, default: int, low: int, high: int) -> int:
    """An attribute in [low, high]; raises SourceError."""
    text = element.get(name)
    if text is None and default >= low:
        return default
    try:
        number = int(text or "")
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        tag = element.tag.rpartition("}")[2]
        raise SourceError("not_media", f"{tag}@{name} of the manifest is {text!r:.40}")
    return number


def unsupported(what: str, instead: str) -> SourceError:
    """What to say of a manifest that we do not read."""
    return SourceError("unsupported_format", f"the manifest has {what}, which is not supported; {instead}")


def refuse_remote(element: Element) -> None:
    """Raise SourceError if an element is kept elsewhere."""
    if element.get(_XLINK) is not None:
        tag = element.tag.rpartition("}")[2]
        raise unsupported(f"{tag} by reference (xlink)", "have it written into the manifest")


def _refuse_more(count: int, most: int) -> None:
    if count > most:
        raise SourceError("not_media", f"the manifest has more than {most} segments")


def _byte_range(text: str | None) -> ByteRange | None:
    """`first-last`, both included. Raises SourceError."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,18})-(\d{1,18})", text.strip())
    if match is None or int(match[1]) > int(match[2]):
        raise SourceError("not_media", f"not a byte range: {text!r:.50}")
    return ByteRange(int(match[1]), int(match[2]) - int(match[1]) + 1)
