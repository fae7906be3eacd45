"""Manifests of MPEG-DASH."""

from __future__ import annotations

SINCE_1970 = 'availabilityStartTime="1970-01-01T00:00:00Z"'


def mpd(
    inner: str = "", *, attributes: str = 'mediaPresentationDuration="PT2S"', periods: str | None = None
) -> str:
    """A manifest; inner: of its only Representation."""
    period = f"""<Period><AdaptationSet mimeType="video/mp4">
        <Representation id="v" bandwidth="1000" height="96">{inner}</Representation>
    </AdaptationSet></Period>"""
    return (
        f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" {attributes}>'
        f"{period if periods is None else periods}</MPD>"
    )


def template(attributes: str = 'duration="1"', children: str = "", *, media: str = "$Number$.m4s") -> str:
    return (
        f'<SegmentTemplate timescale="2" media="{media}" initialization="init.mp4" {attributes}>'
        f"{children}</SegmentTemplate>"
    )


def timeline(*runs: str) -> str:
    return f"<SegmentTimeline>{''.join(f'<S {run}/>' for run in runs)}</SegmentTimeline>"
