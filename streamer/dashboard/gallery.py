"""Pictures of the most suspicious faces of each video, as published. Bounded; never decoded here."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from streamer.dashboard.history import HISTORY_MODELS, MAX_TEXT
from streamer.messages import EvidenceCrop, VideoEvidence

CROPS_PER_VIDEO = 12
"""The most suspicious; a screenful."""

MAX_BYTES = 64 * 1024 * 1024
"""Of all pictures: 500 videos with all their crops of 10 kB each. Beyond it, those of the video of which none
came for longest go."""

OVERHEAD_BYTES = 2000
"""Of a crop without its pictures, generously."""


@dataclass(frozen=True, slots=True, eq=False)
class ShownCrop:
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
class VideoCrops:
    """Those of one video."""

    seen_ms: int = 0
    """Unix time at which the last one arrived."""
    version: int = 0
    crops: list[ShownCrop] = field(default_factory=list)
    """Most suspicious first."""


class Gallery:
    """Of all videos. Not thread-safe: it lives in the event loop."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._videos: OrderedDict[str, VideoCrops] = OrderedDict()  # added to last: last
        self._by_key: dict[str, ShownCrop] = {}
        self._versions = count(1)
        self.bytes = 0
        """Of all pictures."""

    def add(self, evidence: VideoEvidence, now_ms: int) -> None:
        """Take in the crops of a chunk; those that came before, as after a crash, are left out."""
        video = self._videos.setdefault(evidence.video_id, VideoCrops())
        self._videos.move_to_end(evidence.video_id)
        video.seen_ms, video.version = now_ms, next(self._versions)
        known = {_identity(each.seq, each.crop) for each in video.crops}
        for crop in evidence.crops:
            if _identity(evidence.seq, crop) not in known:
                known.add(_identity(evidence.seq, crop))
                shown = ShownCrop(secrets.token_hex(16), evidence.seq, crop)
                video.crops.append(shown)
                self._by_key[shown.key] = shown
                self.bytes += shown.size
        video.crops.sort(key=lambda each: (-each.crop.fake_score, each.crop.time_seconds))
        while len(video.crops) > CROPS_PER_VIDEO:
            self._drop(video.crops.pop())
        while self.bytes > self._max_bytes:
            self.forget(next(iter(self._videos)))

    def version_of(self, video_id: str) -> int:
        """Changes with the video's pictures; 0 if there are none."""
        video = self._videos.get(video_id)
        return video.version if video else 0

    def of(self, video_id: str) -> list[dict[str, Any]]:
        """What the page of a video says of its pictures, most suspicious first."""
        video = self._videos.get(video_id)
        return [] if video is None else [_summary(shown) for shown in video.crops]

    def picture(self, key: str, kind: Literal["crop", "heat"]) -> bytes | None:
        """JPEG of a crop, or PNG of its heat map; None if there is none (any more)."""
        shown = self._by_key.get(key)
        if shown is None:
            return None
        return shown.crop.jpeg if kind == "crop" else shown.crop.heat_map

    def forget(self, video_id: str) -> None:
        """Drop the pictures of a video, if there are any."""
        if (video := self._videos.pop(video_id, None)) is not None:
            for shown in video.crops:
                self._drop(shown)

    def expire(self, before_ms: int, *, keep: Container[str]) -> None:
        """Drop the pictures of videos of which none came since, but for those in keep."""
        old = []
        for video_id, video in self._videos.items():
            if video.seen_ms >= before_ms:
                break
            if video_id not in keep:
                old.append(video_id)
        for video_id in old:
            self.forget(video_id)

    def _drop(self, shown: ShownCrop) -> None:
        del self._by_key[shown.key]
        self.bytes -= shown.size


def _identity(seq: int, crop: EvidenceCrop) -> tuple[int, int, float, float]:
    return seq, crop.track, crop.time_seconds, crop.fake_score


def _summary(shown: ShownCrop) -> dict[str, Any]:
    crop = shown.crop
    return {
        "key": shown.key,
        "track": crop.track,
        "at": crop.time_seconds,
        "score": crop.fake_score,
        "models": [(name[:MAX_TEXT], score) for name, score in list(crop.models.items())[:HISTORY_MODELS]],
        "heat": crop.heat_map is not None,
    }
