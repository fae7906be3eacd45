"""MPEG-DASH manifests (ISO/IEC 23009-1) -> the segments they mean. Fetches nothing.

A manifest is a stranger's: DOCTYPE, and with it every entity, is refused, and numbers are bounded before
anything is made of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from streamer.adaptive import MAX_RELOAD_SECONDS, Listing, Segment, bounded_reload, choose, is_sound
from streamer.fetch import resolve
from streamer.files import SourceError
from streamer.messages import MAX_SECONDS
from streamer.mpd_segments import (
    MAX_NUMBER,
    Clock,
    Period,
    PeriodReader,
    Representation,
    integer,
    refuse_remote,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_SEGMENTS = 100_000
"""Of a manifest: two days of two-second segments."""

_TRICK_MODE = "http://dashif.org/guidelines/trickmode"
_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(
    rf"P(?:{_NUMBER}Y)?(?:{_NUMBER}M)?(?:{_NUMBER}D)?(?:T(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?"
)
_DURATION_UNITS = (365 * 86400, 30 * 86400, 86400, 3600, 60, 1)


class Manifest:
    """A parsed manifest. Raises SourceError wherever it is no use."""

    def __init__(self, data: bytes, address: str) -> None:
        try:
            self._root: Element = fromstring(data, forbid_dtd=True)
        except DefusedXmlException as error:
            raise SourceError("not_media", "the manifest has a DOCTYPE, which none needs") from error
        except (ParseError, ValueError, LookupError) as error:  # no XML; an encoding that there is not
            raise SourceError("not_media", f"not a DASH manifest: {error!s:.200}") from error
        if self._root.tag.rpartition("}")[2] != "MPD":
            raise SourceError("not_media", f"not a DASH manifest: the document is {self._root.tag!r:.60}")
        self._address = address
        self.is_dynamic = self._root.get("type") == "dynamic"
        self._update_seconds = _seconds(self._root, "minimumUpdatePeriod")
        self._video_seconds = _seconds(self._root, "mediaPresentationDuration")
        self.origin_seconds = _unix_seconds(self._root)
        """Unix time of a live video's start; None if there is none."""
        if self.is_dynamic and self.origin_seconds is None:
            raise SourceError("not_media", "the live manifest has no availabilityStartTime")

    @property
    def update_seconds(self) -> float:
        """Until it is to be fetched again, within bounds."""
        return bounded_reload(MAX_RELOAD_SECONDS if self._update_seconds is None else self._update_seconds)

    @property
    def location(self) -> str | None:
        """Where it is to be fetched from the next time, if it says so."""
        text = _text(self._root.find("{*}Location"))
        return resolve(self._address, text) if text else None

    def listing(self, min_height: int, origin_seconds: float | None, now_seconds: float) -> Listing:
        """The segments of the rendition that `choose` takes.

        origin_seconds: Unix time of a live video's start, None of any other; now_seconds: Unix time, by which
        a live video has segments that nothing names.
        """
        is_live = origin_seconds is not None
        now = now_seconds - origin_seconds if origin_seconds is not None and self.is_dynamic else None
        clock = Clock(origin_seconds, now)
        segments: list[Segment] = []
        for period in self._periods():
            if now is not None and period.start_seconds > now:
                break
            representation = self._chosen(period, min_height)
            if representation is not None:
                reader = PeriodReader(self._address, period, representation, clock)
                segments += reader.segments(MAX_SEGMENTS - len(segments))
        if not self.is_dynamic and not segments:
            raise SourceError("no_video", "the manifest has no segment of video")
        last = segments[-1] if segments else None
        return Listing(
            segments,
            not self.is_dynamic or self._has_ended(last, origin_seconds or 0.0),
            self._reload_seconds(last),
            None if is_live else self._video_seconds or (last.end_seconds if last else None) or None,
        )

    def _has_ended(self, last: Segment | None, origin_seconds: float) -> bool:
        if self._video_seconds is None or last is None:
            return False
        return last.end_seconds + last.duration_seconds / 2 >= origin_seconds + self._video_seconds

    def _reload_seconds(self, last: Segment | None) -> float:
        if last is not None and last.is_supposed:  # new ones come with time alone
            return bounded_reload(last.duration_seconds)
        return bounded_reload(self._update_seconds or (last.duration_seconds if last else 2.0))

    def _periods(self) -> Iterator[Period]:
        elements = self._root.findall("{*}Period")
        if not elements:
            raise SourceError("not_media", "the manifest has no Period")
        starts: list[float | None] = []
        for number, element in enumerate(elements):
            refuse_remote(element)
            start = _seconds(element, "start")
            if start is None and number == 0:
                start = 0.0
            elif start is None and starts[-1] is not None:
                duration = _seconds(elements[number - 1], "duration")
                start = None if duration is None else starts[-1] + duration
            starts.append(start)
        for number, (element, start) in enumerate(zip(elements, starts, strict=True)):
            if start is None:  # announced, but not placed yet
                continue
            duration = _seconds(element, "duration")
            following = starts[number + 1] if number + 1 < len(starts) else self._video_seconds
            yield Period(element, start, following if duration is None else start + duration)

    def _chosen(self, period: Period, min_height: int) -> Representation | None:
        """None if the period has no video."""
        clear: list[tuple[int, int, Representation]] = []
        encrypted = False
        above = [*_base(self._root), *_base(period.element)]
        for group in period.element.findall("{*}AdaptationSet"):
            refuse_remote(group)
            for element in group.findall("{*}Representation"):
                references = [*above, *_base(group), *_base(element)]
                one = Representation((element, group, period.element), references)
                if not _is_video(one):
                    continue
                if any(level.find("{*}ContentProtection") is not None for level in (element, group)):
                    encrypted = True
                    continue
                height = integer(element if element.get("height") else group, "height", 0, 0, 2**16)
                clear.append((integer(element, "bandwidth", 0, 0, MAX_NUMBER), height, one))
        if encrypted and not clear:
            raise SourceError(
                "encrypted",
                "the video is encrypted (ContentProtection); publish what goes into the packager instead",
            )
        return choose(clear, min_height) if clear else None


def _is_video(one: Representation) -> bool:
    """Whether it is pictures at normal speed that can be decoded without another representation."""
    group = one.levels[1]
    properties = group.findall("{*}EssentialProperty")
    if any(found.get("schemeIdUri") == _TRICK_MODE for found in properties) or one.attribute("dependencyId"):
        return False
    kind = group.get("contentType") or one.attribute("mimeType").partition("/")[0]
    return (kind == "video" or not kind) and not is_sound(one.attribute("codecs"))


def _base(element: Element) -> list[str]:
    """The first of its BaseURLs, if it has one; the others are the same elsewhere."""
    text = _text(element.find("{*}BaseURL"))
    return [text] if text else []


def _text(element: Element | None) -> str:
    return "" if element is None else (element.text or "").strip()


def _seconds(element: Element, name: str) -> float | None:
    """An attribute of type xs:duration. Raises SourceError."""
    text = element.get(name)
    if text is None:
        return None
    match = _DURATION.fullmatch(text.strip())
    seconds = -1.0
    if match is not None and any(match.groups()):
        seconds = sum(
            float(part or 0) * unit for part, unit in zip(match.groups(), _DURATION_UNITS, strict=True)
        )
    if not 0 <= seconds <= MAX_SECONDS:
        raise SourceError("not_media", f"{name} of the manifest is {text!r:.40}")
    return seconds


def _unix_seconds(root: Element) -> float | None:
    """availabilityStartTime. Raises SourceError."""
    text = root.get("availabilityStartTime")
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise SourceError("not_media", f"availabilityStartTime of the manifest is {text!r:.40}") from error
    return max(0.0, (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())
