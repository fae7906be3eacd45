"""Pictures of the most suspicious faces of each video, as published. Bounded; never decoded here."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from streamer.dashboard.history import HISTORY_MODELS, MAX_TEXT
from streamer.messages import MAX_VIDEO_ID_BYTES, EvidenceCrop, VideoEvidence

CROPS_PER_VIDEO = 12
"""The most suspicious; a screenful."""

MAX_BYTES = 64 * 1024 * 1024
"""Of all pictures: 500 videos with all their crops of 10 kB each. Beyond it, those of the video of which none
came for longest go."""

OVERHEAD_BYTES = 2000
"""Of a crop without its pictures, generously."""


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """A crop that is shown."""

    key: str
    """Part of its address; cannot be guessed, and none is used twice."""
    seq: int
    crop: EvidenceCrop

    @property
    def size(self) -> int:
        """In memory, bytes."""
        names = sum(map(len, self.crop.models))
        return OVERHEAD_BYTES + len(self.crop.jpeg) + len(self.crop.heat_map or b"") + names


@dataclass(slots=True)
class Album:
    """Those of one video."""

    seen_ms: int = 0
    """Unix time at which the last one arrived."""
    version: int = 0
    exhibits: list[Exhibit] = field(default_factory=list)
    """Most suspicious first."""


class Gallery:
    """All albums. Not thread-safe: it lives in the event loop."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._albums: OrderedDict[str, Album] = OrderedDict()  # added to last: last
        self._by_key: dict[str, Exhibit] = {}
        self._versions = count(1)
        self.bytes = 0
        """Of all pictures."""

    def add(self, evidence: VideoEvidence, now_ms: int) -> None:
        """Take in the crops of a chunk; those that came before, as after a crash, are left out.

        Raises ValueError, with nothing changed, for a name that no video has.
        """
        if (size := len(evidence.video_id.encode())) > MAX_VIDEO_ID_BYTES:
            raise ValueError(f"video_id has {size} bytes of UTF-8, at most {MAX_VIDEO_ID_BYTES} are allowed")
        album = self._albums.setdefault(evidence.video_id, Album())
        self._albums.move_to_end(evidence.video_id)
        album.seen_ms, album.version = now_ms, next(self._versions)
        known = {_identity(each.seq, each.crop) for each in album.exhibits}
        for crop in evidence.crops:
            if _identity(evidence.seq, crop) not in known:
                known.add(_identity(evidence.seq, crop))
                exhibit = Exhibit(secrets.token_hex(16), evidence.seq, crop)
                album.exhibits.append(exhibit)
                self._by_key[exhibit.key] = exhibit
                self.bytes += exhibit.size
        album.exhibits.sort(key=lambda each: (-each.crop.fake_score, each.crop.time_seconds))
        while len(album.exhibits) > CROPS_PER_VIDEO:
            self._drop(album.exhibits.pop())
        while self.bytes > self._max_bytes:
            self.forget(next(iter(self._albums)))

    def version_of(self, video_id: str) -> int:
        """Changes with the video's pictures; 0 if there are none."""
        album = self._albums.get(video_id)
        return album.version if album else 0

    def of(self, video_id: str) -> list[dict[str, Any]]:
        """What the page of a video says of its pictures, most suspicious first."""
        album = self._albums.get(video_id)
        return [] if album is None else [_summary(exhibit) for exhibit in album.exhibits]

    def picture(self, key: str, kind: Literal["crop", "heat"]) -> bytes | None:
        """JPEG of a crop, or PNG of its heat map; None if there is none (any more)."""
        exhibit = self._by_key.get(key)
        if exhibit is None:
            return None
        return exhibit.crop.jpeg if kind == "crop" else exhibit.crop.heat_map

    def forget(self, video_id: str) -> None:
        """Drop the pictures of a video, if there are any."""
        if (album := self._albums.pop(video_id, None)) is not None:
            for exhibit in album.exhibits:
                self._drop(exhibit)

    def expire(self, before_ms: int, *, keep: Container[str]) -> None:
        """Drop the pictures of videos of which none came since, but for those in keep."""
        old = []
        for video_id, album in self._albums.items():
            if album.seen_ms >= before_ms:
                break
            if video_id not in keep:
                old.append(video_id)
        for video_id in old:
            self.forget(video_id)

    def _drop(self, exhibit: Exhibit) -> None:
        del self._by_key[exhibit.key]
        self.bytes -= exhibit.size


def _identity(seq: int, crop: EvidenceCrop) -> tuple[int, int, float, float]:
    return seq, crop.track, crop.time_seconds, crop.fake_score


def _summary(exhibit: Exhibit) -> dict[str, Any]:
    crop = exhibit.crop
    return {
        "key": exhibit.key,
        "track": crop.track,
        "at": crop.time_seconds,
        "score": crop.fake_score,
        "models": [(name[:MAX_TEXT], score) for name, score in list(crop.models.items())[:HISTORY_MODELS]],
        "heat": crop.heat_map is not None,
    }
