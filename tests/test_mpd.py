"""Which segments a manifest lists, and when it is read again."""

from __future__ import annotations

import re

import hypothesis
import pytest
from hypothesis import strategies as st
from manifests import SINCE_1970, mpd, template, timeline

from streamer.adaptive import Listing
from streamer.fetch import ByteRange
from streamer.files import SourceError
from streamer.messages import MAX_SECONDS
from streamer.mpd import MAX_SEGMENTS, Manifest
from streamer.mpd_segments import LIVE_SEGMENTS, MAX_SEGMENT_SECONDS, MIN_SEGMENT_SECONDS


def listing(text: str, now_seconds: float) -> Listing:
    manifest = Manifest(text.encode(), "http://cdn/m.mpd")
    return manifest.listing(720, manifest.origin_seconds, now_seconds)


def test_of_a_live_video_the_latest_segments_are_listed() -> None:
    text = mpd(template(), attributes=f'type="dynamic" {SINCE_1970}')
    found = listing(text, 1.7e9 + 0.4).segments
    assert len(found) == LIVE_SEGMENTS
    assert (found[-1].number, found[-1].start_seconds) == (3_400_000_000, 1.7e9 - 0.5)
    runs = timeline(f'd="1" r="{MAX_SEGMENTS - 1}"')
    long = mpd(template("", runs), attributes=f'type="dynamic" {SINCE_1970}')
    assert [one.number for one in listing(long, 1e6).segments] == list(
        range(MAX_SEGMENTS - LIVE_SEGMENTS + 1, MAX_SEGMENTS + 1)
    )


def test_parts_of_one_file() -> None:
    text = mpd(
        """<SegmentList timescale="2" duration="1" startNumber="5" presentationTimeOffset="7">
        <Initialization sourceURL="v.mp4" range="0-99"/>
        <SegmentURL media="v.mp4" mediaRange="100-149"/><SegmentURL media="v.mp4" mediaRange="150-150"/>
        </SegmentList>"""
    )
    found = listing(text, 0.0).segments
    assert [(one.number, one.start_seconds, one.part) for one in found] == [
        (5, 0.0, ByteRange(100, 50)),
        (6, 0.5, ByteRange(150, 1)),
    ]
    assert {(one.address, one.init) for one in found} == {
        ("http://cdn/v.mp4", ("http://cdn/v.mp4", ByteRange(0, 100)))
    }


def test_live_periods() -> None:
    one = f"""<AdaptationSet contentType="video"><Representation id="v" bandwidth="1">
        {template("", timeline('d="1" r="-1"'))}</Representation></AdaptationSet>"""
    text = mpd(
        periods=f'<Period start="PT0S">{one}</Period><Period start="PT2S">{one}</Period>'
        f'<Period start="PT9S">{one}</Period><Period>{one}</Period>',
        attributes=f'type="dynamic" {SINCE_1970}',
    )
    found = listing(text, 3.7)
    assert [one.start_seconds for one in found.segments] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert not found.is_ended


@pytest.mark.parametrize(
    ("attributes", "addressing", "listed_anew", "fetched_anew"),
    [
        ('minimumUpdatePeriod="PT5S"', template("", timeline('d="4"')), 5, 5),
        ('minimumUpdatePeriod="PT0S"', template("", timeline('d="4"')), 2, 0.5),
        ("", template("", timeline('d="4"')), 2, 30),
        ('minimumUpdatePeriod="P1D"', template("", timeline('d="4"')), 30, 30),
        ('minimumUpdatePeriod="PT5S"', template('duration="4"'), 2, 5),
        ('minimumUpdatePeriod="PT0.01S"', template('duration="1"'), 0.5, 0.5),
    ],
)
def test_how_often_it_is_read(
    attributes: str, addressing: str, listed_anew: float, fetched_anew: float
) -> None:
    text = mpd(addressing, attributes=f'{attributes} type="dynamic" {SINCE_1970}')
    manifest = Manifest(text.encode(), "http://cdn/m.mpd")
    assert manifest.listing(720, 0.0, 100.0).reload_seconds == listed_anew
    assert manifest.update_seconds == fetched_anew


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("PT1M2.5S", 62.5),
        ("P1DT1H", 90_000),
        ("P1M1D", 31 * 86_400),
        ("P1Y", 365 * 86_400),
        ("P0Y0M0DT0H30M0S", 1800),
    ],
)
def test_how_long_it_lasts(written: str, seconds: float) -> None:
    text = mpd(template('duration="7200"'), attributes=f'mediaPresentationDuration="{written}"')
    assert listing(text, 0.0).segments[-1].end_seconds == seconds


SMALL, ANY = st.integers(1, 1000), st.one_of(st.integers(-3, 100), st.integers(0, 2**65))


@hypothesis.given(
    kind=st.sampled_from(["static", "dynamic"]),
    values=st.lists(st.one_of(SMALL, ANY), min_size=10, max_size=10),
    lengths=st.tuples(st.floats(0, 1e6), st.floats(0, 1e10)),
    by_time=st.booleans(),
    now=st.floats(0, 5e9),
)
def test_whatever_the_numbers(
    kind: str, values: list[int], lengths: tuple[float, float], by_time: bool, now: float
) -> None:
    names = ["duration", "timescale", "startNumber", "presentationTimeOffset"]
    attributes = [f'{name}="{value}"' for name, value in zip(names, values, strict=False)]
    runs = timeline(*(f't="{values[n]}" d="{values[n + 1]}" r="{values[n + 2]}"' for n in (4, 7)))
    addressing = (
        f'<SegmentTemplate media="$Number%099d$$Time$" {" ".join(attributes)}>'
        f"{runs if by_time else ''}</SegmentTemplate>"
    )
    more = f'mediaPresentationDuration="PT{lengths[0]:.3f}S" minimumUpdatePeriod="PT{lengths[1]:.3f}S"'
    try:
        found = listing(mpd(addressing, attributes=f'type="{kind}" {SINCE_1970} {more}'), now)
    except SourceError:
        return
    assert len(found.segments) <= MAX_SEGMENTS
    assert 0.5 <= found.reload_seconds <= 30
    for one in found.segments:
        assert 0 <= (one.start_seconds or 0.0) <= MAX_SECONDS
        assert MIN_SEGMENT_SECONDS <= one.duration_seconds <= MAX_SEGMENT_SECONDS


def test_names_with_a_prefix() -> None:
    text = re.sub(r"<(/?)(?=[A-Z])", r"<\1d:", mpd(template())).replace("xmlns=", "xmlns:d=")
    assert len(listing(text, 0).segments) == 4
