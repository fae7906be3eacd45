"""Accepted codecs, and which stream of a file or chunk is looked at."""

from __future__ import annotations

from typing import Any

CODECS = {
    "h264": "H.264",
    "hevc": "HEVC",
    "vp8": "VP8",
    "vp9": "VP9",
    "libdav1d": "AV1",
    "mpeg4": "MPEG-4 part 2",
    "mpeg2video": "MPEG-2",
}
"""FFmpeg decoders that may run; all others, audio included, are never opened."""


def video_streams(container: Any) -> list[Any]:
    """Video streams of an open container, without cover pictures; the one to look at is the first.

    That is the first one that is flagged as default, as players choose. FFmpeg's own choice, the stream of
    the highest rate, may be another in every chunk of a video. Streams of a codec that is not accepted come
    last.
    """
    from av.stream import Disposition

    moving = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    return sorted(moving, key=lambda one: (not is_accepted(one), not one.disposition & Disposition.default))


def is_accepted(stream: Any) -> bool:
    """Whether a stream's codec is one of `CODECS`."""
    return stream.codec_context is not None and stream.codec_context.name in CODECS
