"""The faces of a chunk that look most like a fake: chosen, turned into pictures, put into a message."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from streamer.config import EvidenceConfig
from streamer.messages import MAX_EVIDENCE_BYTES, EvidenceCrop, VideoEvidence
from streamer.types import EnsembleInfo, FacePrediction, Float32Array, FramePrediction, Picture, UInt8Array

MAX_PICTURE_BYTES = MAX_EVIDENCE_BYTES // 2
"""Of a chunk's pictures together, so that their message fits its topic with room to spare."""

HEAT_PX = 56
"""Height and width of a heat map: four pixels for each that the members give."""


class Suspects:
    """The most suspicious faces of one chunk. Holds no other crops than theirs, however long the chunk is."""

    def __init__(self, config: EvidenceConfig) -> None:
        self._config = config
        self._best: list[tuple[float, int, int, UInt8Array]] = []
        """A heap of (score, -frame, -face, crop): of equal scores the earlier one is kept."""
        self._frames = 0

    def take(self, frame: FramePrediction) -> FramePrediction:
        """Look at the next frame, which comes with its crops; returns it without them."""
        for place, face in enumerate(frame.faces):
            score = mean_of(face)
            if face.crop is None or score < self._config.min_score:
                continue
            entry = (score, -self._frames, -place, face.crop.copy())  # a view would keep its whole batch
            if len(self._best) < self._config.crops_per_chunk:
                heapq.heappush(self._best, entry)
            else:
                heapq.heappushpop(self._best, entry)
        self._frames += 1
        return replace(frame, faces=tuple(replace(face, crop=None) for face in frame.faces))

    def __len__(self) -> int:
        return len(self._best)

    def illustrate(
        self, frames: Sequence[FramePrediction], heat_maps: Callable[[UInt8Array], Float32Array | None]
    ) -> list[FramePrediction]:
        """The frames that were taken, with pictures of the suspects. heat_maps: see `Ensemble.heat_maps`.

        Blocks. Those that would make the message too large go without. Raises what heat_maps raises.
        """
        best = sorted(self._best, reverse=True)
        heat = heat_maps(np.stack([crop for *_, crop in best]))
        illustrated = list(frames)
        left = MAX_PICTURE_BYTES
        for number, (_, negative_frame, negative_place, crop) in enumerate(best):
            frame, place = -negative_frame, -negative_place
            picture = Picture(
                jpeg_of(crop, self._config.jpeg_quality), None if heat is None else png_of_heat(heat[number])
            )
            left -= len(picture.jpeg) + len(picture.heat_map or b"")
            if left < 0:
                break
            faces = list(illustrated[frame].faces)
            faces[place] = replace(faces[place], picture=picture)
            illustrated[frame] = replace(illustrated[frame], faces=tuple(faces))
        return illustrated


class ChunkEvidence:
    """What is to be published of one chunk: those of its faces that were counted and have a picture."""

    def __init__(self, ensemble: EnsembleInfo) -> None:
        self._ensemble = ensemble
        self._crops: list[EvidenceCrop] = []

    def add(self, track: int, at_seconds: float, face: FacePrediction) -> None:
        """A `types.OnFace`."""
        if face.picture is not None:
            self._crops.append(
                EvidenceCrop(
                    track=track,
                    time_seconds=at_seconds,
                    box=face.box,
                    fake_score=mean_of(face),
                    models=dict(zip(self._ensemble.names, face.probabilities, strict=True)),
                    jpeg=face.picture.jpeg,
                    heat_map=face.picture.heat_map,
                )
            )

    def message(self, video_id: str, seq: int) -> VideoEvidence | None:
        """The message; None if there is nothing to show."""
        if not self._crops:
            return None
        crops = sorted(self._crops, key=lambda crop: -crop.fake_score)
        return VideoEvidence(video_id=video_id, seq=seq, crops=crops, model_set=self._ensemble.model_set)


def mean_of(face: FacePrediction) -> float:
    """Probability of fake, mean over the members."""
    return sum(face.probabilities) / len(face.probabilities)


def jpeg_of(rgb: UInt8Array, quality: int) -> bytes:
    """(height, width, 3) uint8 RGB -> JPEG. quality: 1 to 100."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return jpeg.tobytes()


def png_of_heat(heat: Float32Array) -> bytes:
    """(size, size) float32 in [0, 1] -> greyscale PNG of HEAT_PX x HEAT_PX."""
    small = cv2.resize(heat, (HEAT_PX, HEAT_PX), interpolation=cv2.INTER_AREA)
    done, png = cv2.imencode(".png", np.rint(255 * np.clip(small, 0, 1)).astype(np.uint8))
    assert done
    return png.tobytes()
