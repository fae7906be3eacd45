"""How much is taken of one video: chunks and bytes in a minute. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from streamer.errors import LimitError
from streamer.messages import MAX_VIDEO_ID_BYTES

MINUTE_MS = 60_000

MAX_KEYS = 10_000
"""Videos counted at once in a partition, a few MB; beyond it the one silent longest begins anew."""


@dataclass(slots=True)
class _Minute:
    number: int
    chunks: int = 0
    size: int = 0


class VideoLimits:
    """What one partition has taken of each of its videos in the minute that they are in.

    A minute is one of the records' own timestamps, so that a backlog that is read quickly is not refused. A
    timestamp that goes back counts in the video's latest minute, and one in the future, or none, as now. A
    producer could help itself to more by making up old ones, were they not the broker's: the topic must have
    `message.timestamp.type=LogAppendTime`, as `streamer topics create` gives it. Videos are told apart
    by the record's key; all records without one count as one video. The counts are not kept: where a
    partition is taken over, every video's minute begins anew.
    """

    def __init__(self, chunks_per_minute: int, bytes_per_minute: int) -> None:
        """Both >= 0; 0: no limit."""
        self._most_chunks = chunks_per_minute
        self._most_bytes = bytes_per_minute
        self._minutes: OrderedDict[bytes | None, _Minute] = OrderedDict()
        """Silent longest first."""

    def __len__(self) -> int:
        return len(self._minutes)

    def take(self, key: bytes | None, size: int, timestamp_ms: int, *, now_ms: int) -> LimitError | None:
        """Count a record, unless it is beyond a limit; then say beyond which. To be asked in offset order.

        size: bytes of its value. timestamp_ms: Unix time in milliseconds; -1 if it has none.
        """
        if not (self._most_chunks or self._most_bytes):
            return None
        number = (now_ms if timestamp_ms < 0 else min(timestamp_ms, now_ms)) // MINUTE_MS
        key = key and key[:MAX_VIDEO_ID_BYTES]  # what is longer is no video's, and need not be remembered
        minute = self._minutes.pop(key, None)
        if minute is None or number > minute.number:
            minute = _Minute(number)
        self._minutes[key] = minute
        if len(self._minutes) > MAX_KEYS:
            self._minutes.popitem(last=False)
        if self._most_chunks and minute.chunks + 1 > self._most_chunks:
            return LimitError(
                "too_many_chunks_per_minute", f"over {self._most_chunks} chunks of this video in a minute"
            )
        if self._most_bytes and minute.size + size > self._most_bytes:
            return LimitError(
                "too_many_bytes_per_minute", f"over {self._most_bytes} bytes of this video in a minute"
            )
        minute.chunks += 1
        minute.size += size
        return None
