"""Made-up score messages, for the tests, the benchmark and the screenshots of the page."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from streamer.messages import (
    JPEG_START,
    Alert,
    DeadLetter,
    EvidenceCrop,
    ScoreUpdate,
    TrackScore,
    VideoEvidence,
)

CHUNK_SECONDS = 2.0
RAISE_AT, CLEAR_AT = 0.8, 0.6
FAKES = 0.04
"""Share of videos that become fake at some time."""


class Camera:
    """A video whose score wanders; a fake one goes up after its first updates."""

    def __init__(self, video_id: str, *, seed: int, fake: bool = False, tracks: int = 1) -> None:
        self.video_id = video_id
        self._random = random.Random(seed)
        self._fake = fake
        self._score = self._random.uniform(0.03, 0.3)
        self._sum = 0.0
        self._raised_at: int | None = None
        self._tracks = [n * 3 for n in range(tracks)]
        self._bias = [self._random.uniform(-0.06, 0.06) for _ in range(tracks + 2)]
        self._from = self._random.randrange(8, 30)
        self.seq = -1
        self.ended = False

    def next(self, now_ms: int) -> ScoreUpdate:
        """The update after its next chunk."""
        self.seq += 1
        aim = self._random.uniform(0.82, 0.99) if self._fake and self.seq > self._from else 0.12
        self._score += 0.12 * (aim - self._score) + self._random.gauss(0, 0.02)
        self._score = min(0.995, max(0.005, self._score))
        self._sum += self._score
        overall = self._sum / (self.seq + 1)
        was = self._raised_at
        if was is None and self._score >= RAISE_AT:
            self._raised_at = self.seq
        elif was is not None and self._score < CLEAR_AT:
            self._raised_at = None
        half = 0.16 / (self.seq + 2) ** 0.5
        return ScoreUpdate(
            video_id=self.video_id,
            seq=self.seq,
            status="scored",
            fake_score=overall,
            window_score=self._score,
            interval=(max(0.0, overall - half), min(1.0, overall + half)) if self.seq > 2 else None,
            frames=8 * (self.seq + 1),
            faces=7 * len(self._tracks) * (self.seq + 1),
            models={
                "resnext50_32x4d": self._near(overall, self._bias[0]),
                "densenet121": self._near(overall, self._bias[1]),
            },
            tracks=[
                TrackScore(
                    track=track,
                    box=(200 + 300 * place, 120, 380 + 300 * place, 330),
                    fake_score=(
                        score := self._near(self._score if place == 0 else 0.15, self._bias[place + 2])
                    ),
                    window_score=score,
                    faces=7 * (self.seq + 1),
                )
                for place, track in enumerate(self._tracks)
            ],
            suspect_track=self._tracks[0] if self._tracks else None,
            alert=Alert(
                state="none" if self._raised_at is None else "raised",
                changed=was != self._raised_at,
                since_seq=self._raised_at,
                threshold=RAISE_AT if self._raised_at is None else CLEAR_AT,
            ),
            chunks=self.seq + 1,
            missing_chunks=0,
            undecodable_chunks=0,
            start_seconds=CHUNK_SECONDS * self.seq,
            end_seconds=CHUNK_SECONDS * (self.seq + 1),
            latency_ms={
                "decode": self._random.uniform(60, 140),
                "detect": self._random.uniform(30, 90),
                "classify": self._random.uniform(80, 200),
                "total": self._random.uniform(300, 700),
            },
            model_set="6f1f0c2ab9d3",
            trained=True,
            processed_at_ms=now_ms - self._random.randrange(5, 60),
            last=self.ended,
        )

    def _near(self, score: float, bias: float) -> float:
        return min(1.0, max(0.0, score + bias + self._random.gauss(0, 0.01)))


def cameras(count: int, *, seed: int = 0) -> list[Camera]:
    """Some of them fake, some with two people."""
    draw = random.Random(seed)
    places = ("lobby", "gate", "call", "studio", "desk", "hall")
    return [
        Camera(
            f"{places[n % len(places)]}-{n:04}",
            seed=seed + n,
            fake=draw.random() < FAKES,
            tracks=2 if draw.random() < 0.2 else 1,
        )
        for n in range(count)
    ]


def letters(now_ms: int) -> Iterator[DeadLetter]:
    """A few dead letters."""
    said = [
        ("decoder_crashed", "decode", "the decoder died of signal 11"),
        ("damaged", "decode", "packets are missing after 1.2 s"),
        (
            "not_msgpack",
            "message",
            "not msgpack within the limits: ExtraData(unpack(b) received extra data.)",
        ),
        ("too_large", "decode", "7680x4320 pixels, at most 8294400 allowed"),
        ("no_keyframe", "decode", "the segment does not start with a keyframe"),
    ]
    draw = random.Random(4)
    for number in range(18):
        reason, stage, error = draw.choice(said)
        yield DeadLetter(
            value=b"\0" * (30_000 + 7919 * number),
            key=None,
            headers=[],
            error=error,
            reason=reason,
            stage=stage,
            topic="video-chunks",
            partition=number % 4,
            offset=1200 + 31 * number,
            video_id=None if stage == "message" else f"gate-{number:04}",
            seq=None if stage == "message" else 3 * number,
            failed_at_ms=now_ms - 9000 * (18 - number),
        )


def evidence(
    video_id: str,
    seq: int,
    scores: Sequence[float],
    *,
    jpeg: bytes = JPEG_START,
    heat: bytes | None = None,
    track: int = 0,
) -> VideoEvidence:
    """The faces of a chunk, all with the same picture."""
    crops = [
        EvidenceCrop(
            track=track,
            time_seconds=CHUNK_SECONDS * seq + place / 4,
            box=(200, 120, 380, 330),
            fake_score=score,
            models={"resnext50_32x4d": score, "densenet121": score},
            jpeg=jpeg,
            heat_map=heat,
        )
        for place, score in enumerate(scores)
    ]
    return VideoEvidence(video_id=video_id, seq=seq, crops=crops, model_set="6f1f0c2ab9d3")
