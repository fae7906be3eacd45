"""Live streams -> chunks: recorded by `streamer.record`, and connected again whenever they are lost.

The pauses before that grow, and the gap stays one in the video's time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from streamer.errors import DecodeError
from streamer.files import Piece, SourceError
from streamer.messages import VideoChunk
from streamer.network import NetworkSource
from streamer.record import record

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Before a stream is connected again; doubled from failure to failure, and scattered."""

_HOPELESS = frozenset({"unsupported_codec", "unsupported_format", "no_video", "too_many_bytes"})
"""Reasons that trying again does not change."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Stream(NetworkSource):
    """A URL that FFmpeg can read."""

    async def pieces(self, chunk_seconds: float) -> AsyncGenerator[Piece, None]:
        """Chunks as they are recorded, with `captured_at_ms`; ends only with a source that states its length.

        Positions are Unix times, and seq counts on from Unix time over `chunk_seconds`: a recording that is
        started again goes on with the same video, and what was missed meanwhile counts as missing.

        Raises SourceError if the stream is of no use, or was lost too many times in a row.
        """
        seq, end, failures = 0, 0.0, 0
        began: float | None = None
        while True:
            base: float | None = None
            lost = SourceError("stream_ended", "the stream has ended")
            recording = record(
                self.location, chunk_seconds, options=self.network.ffmpeg, max_bytes=self.network.max_bytes
            )
            try:
                async with aclosing(recording):
                    async for recorded in recording:
                        failures = 0
                        if base is None:  # Unix time of this connection's first frame
                            base = time.time() - recorded.start_seconds - recorded.duration_seconds
                            base = max(base, end)
                            began = base if began is None else began
                            seq = max(seq, int(base / chunk_seconds))
                        seq += recorded.lost
                        start = base + recorded.start_seconds
                        end = start + recorded.duration_seconds
                        chunk = VideoChunk(
                            video_id=self.video_id,
                            seq=seq,
                            data=recorded.data,
                            format=recorded.format,
                            start_seconds=start,
                            captured_at_ms=recorded.captured_at_ms,
                            last=recorded.is_last,
                        )
                        yield Piece(chunk, end - (began or 0.0))
                        seq += 1
                        if recorded.is_last:
                            return
            except DecodeError as error:
                lost = SourceError(error.reason, str(error))
                if error.reason in _HOPELESS:
                    raise lost from error
            failures += 1
            if failures == self.network.attempts:
                raise lost
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS) * random.uniform(
                0.5, 1
            )
            log.warning(
                "a stream is lost; connecting again",
                video_id=self.video_id,
                source=self.name,
                reason=lost.reason,
                error=str(lost),
                pause_seconds=round(pause, 1),
            )
            await asyncio.sleep(pause)
