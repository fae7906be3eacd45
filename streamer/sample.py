"""Which frames of a chunk are looked at: random in time, the same at every replay. Pure.

Stratified sampling: the chunk's time, counted from its first frame, is cut into cells of 1 / rate seconds,
and each cell gets one timestamp, uniform within it. So samples are spread evenly, yet no forger can know
which frames are safe, and periodic content does not alias with the sampling. The frame shown at a timestamp
is kept.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the decoder process imports this module, and pydantic would double its start-up
    from streamer.config import SampleConfig


LEAST_RATE = 1.0
"""Samples per second to which the length of a video may lower the rate. With fewer, by default, tracks would
break between two of them, and the window of the last seconds would hold too few faces for an alert."""


def sampling_rate(config: SampleConfig, duration_seconds: float | None) -> float:
    """Samples per second of video.

    duration_seconds: length of the whole video if it is known (> 0); then `frames_per_video`, unless 0,
    lowers the rate so that the whole video gets no more samples than that, but not below LEAST_RATE. None: a
    live video, never lowered.
    """
    if duration_seconds is None or config.frames_per_video == 0:
        return config.frames_per_second
    rate = max(LEAST_RATE, config.frames_per_video / duration_seconds)
    return min(config.frames_per_second, rate)


def thinned(config: SampleConfig, share: float) -> SampleConfig:
    """The same with `share` of its `frames_per_second`, in (0, 1]; the cap by `frames_per_video` stays."""
    return config.model_copy(update={"frames_per_second": share * config.frames_per_second})


def sampling_seed(video_id: str, seq: int) -> int:
    """Seed of a chunk, in [0, 2**64): a stable hash, unlike `hash()`, which differs in every process."""
    identity = video_id.encode("utf-8", "surrogatepass") + b"\0" + str(seq).encode()
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "big")


class Sampler:
    """Decides frame by frame, in order of time, which are kept.

    rate: samples per second, > 0. seed: see `sampling_seed`. at_least_one: keep the chunk's last frame if no
    timestamp fell into the chunk, which happens where it is shorter than a cell; meant for the first chunk of
    a video, so that even a single picture is looked at.
    """

    def __init__(self, rate: float, seed: int, *, at_least_one: bool = False) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be > 0, got {rate}")
        self.rate = rate
        self._at_least_one = at_least_one
        self._random = random.Random(seed)
        self._taken = 0
        self._cell = 0
        self._timestamp = self._draw()

    def _draw(self) -> float:
        return (self._cell + self._random.random()) / self.rate

    def takes(self, start_seconds: float, end_seconds: float, *, last: bool = False) -> bool:
        """Whether to keep the frame that is shown in [start_seconds, end_seconds).

        Seconds since the chunk's first frame; each call's start is the previous call's end, the first is 0.
        last: no frame follows.
        """
        taken = False
        while self._timestamp < end_seconds:
            taken = self._timestamp >= start_seconds  # they ascend: the last one decides
            self._cell += 1
            self._timestamp = self._draw()
        taken = taken or (last and self._at_least_one and self._taken == 0)
        self._taken += taken
        return taken


class GivenTimes:
    """Keeps the frames that are shown at given times; to be asked like a `Sampler`.

    times: seconds since the chunk's first frame, ascending. The last frame stands for those after the end.
    """

    rate = math.inf
    """No frame may be skipped: each time means one frame of all."""

    def __init__(self, times: Sequence[float]) -> None:
        self._left = list(reversed(times))

    def takes(self, start_seconds: float, end_seconds: float, *, last: bool = False) -> bool:
        """See `Sampler.takes`."""
        taken = False
        while self._left and (last or self._left[-1] < end_seconds):
            taken = self._left.pop() >= start_seconds
        return taken
