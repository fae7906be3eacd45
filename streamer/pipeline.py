"""Chunk -> prediction, the page to read first: decode, find faces, crop, classify. Knows nothing of Kafka.

Many chunks are under way at once; frames and crops of all of them meet in the batchers, so that batches fill
across videos. What comes out depends on the chunk and the sampling rate alone. So does what fails: when a
network fails on a batch, each item is tried again alone, and then an image that the network is known to take,
which tells a chunk that it cannot take from a network that is broken.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import structlog

from streamer.backends.load import load_network
from streamer.batching import Batcher
from streamer.classify import Ensemble
from streamer.config import Config
from streamer.decode_pool import DecodePool
from streamer.errors import ClassifyError, DetectError, InferenceError
from streamer.faces.crop import crop_faces
from streamer.faces.detect import FaceDetector
from streamer.messages import VideoChunk
from streamer.rolling import EnsembleInfo
from streamer.sample import sampling_rate, thinned
from streamer.types import (
    ChunkPrediction,
    FacePrediction,
    Faces,
    Float32Array,
    Frame,
    FramePrediction,
    UInt8Array,
)

T = TypeVar("T")
R = TypeVar("R")

FRAMES_AHEAD = 32
"""Frames of one chunk that may wait for the classifiers; bounds the crops held in memory."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """Faces of one frame and their crops, (n, size, size, 3) uint8 RGB."""

    faces: Faces
    crops: UInt8Array


@dataclass(slots=True)
class StageTimes:
    """Wall clock that one chunk spent in each stage, waiting for its batch included, milliseconds."""

    spent_ms: dict[str, float] = field(default_factory=dict)

    async def measure(self, stage: str, work: Awaitable[T]) -> T:
        """Await `work` and add the time it took to `stage`."""
        started = time.perf_counter()
        try:
            return await work
        finally:
            elapsed_ms = 1000 * (time.perf_counter() - started)
            self.spent_ms[stage] = self.spent_ms.get(stage, 0.0) + elapsed_ms


class Pipeline:
    """The detector. Use as `async with Pipeline(config) as pipeline: await pipeline.predict(chunk)`."""

    def __init__(self, config: Config) -> None:
        """Load the networks. Raises ModelError."""
        self._config = config
        threads = config.classify.threads or os.cpu_count() or 1
        self._face_networks = [
            load_network(
                config.classify.engines / f"{name}.json",
                backend=config.classify.backend,
                precision="f32",
                threads=threads,
            )
            for name in (config.faces.detector, config.faces.scanner, config.faces.verifier)
        ]
        detector, scanner, verifier = self._face_networks
        self._detector = FaceDetector(detector, config.faces, scanner=scanner, verifier=verifier)
        self._ensemble = Ensemble(config.classify)
        self.decode_pool = DecodePool(config.decode)
        self.detect_batcher: Batcher[list[Frame], list[FoundFaces]] = Batcher(
            "detect",
            self._find_and_crop,
            max_items=config.faces.batch_frames,
            timeout_ms=config.faces.batch_timeout_ms,
            workers=threads,
            size=len,
        )
        self.classify_batcher: Batcher[UInt8Array, Float32Array] = Batcher(
            "classify",
            self._ensemble.classify_many,
            max_items=config.classify.batch_crops,
            timeout_ms=config.classify.batch_timeout_ms,
            workers=threads,
            size=len,
        )
        self._open = AsyncExitStack()

    @property
    def ensemble(self) -> EnsembleInfo:
        """Members, hash, and whether they were trained."""
        return EnsembleInfo(self._ensemble.names, self._ensemble.model_set, self._ensemble.trained)

    @property
    def batchers(self) -> tuple[Batcher[Any, Any], ...]:
        """For metrics: how many batches were run, and how full."""
        return (self.detect_batcher, self.classify_batcher)

    @property
    def worker_restarts(self) -> Mapping[str, int]:
        """For metrics: decode workers replaced so far, by reason."""
        return self.decode_pool.restarts

    async def __aenter__(self) -> Pipeline:
        for network in self._face_networks:
            self._open.callback(network.close)
        self._open.callback(self._ensemble.close)
        self._open.push_async_callback(self.classify_batcher.close)
        self._open.push_async_callback(self.detect_batcher.close)
        self._open.push_async_callback(self.decode_pool.close)
        await self.decode_pool.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def predict(
        self, chunk: VideoChunk, *, keep_crops: bool = False, sampling_share: float = 1.0
    ) -> ChunkPrediction:
        """Look at a chunk. keep_crops: see `FacePrediction.crop`. sampling_share: see `streamer.thinning`.

        Raises ChunkError if it cannot be processed, ModelError if a network is broken.
        """
        sample = thinned(self._config.sample, sampling_share)
        times = StageTimes()
        frames: list[FramePrediction] = []
        waiting: deque[asyncio.Task[FramePrediction]] = deque()
        duration_seconds = 0.0
        try:
            async with aclosing(self.decode_pool.decode(chunk, sample)) as batches:
                while (batch := await times.measure("decode", anext(batches, None))) is not None:
                    duration_seconds = batch.end_seconds
                    if not batch.frames:
                        continue
                    # 1. find and crop; afterwards the batch's shared memory may be overwritten
                    found = await times.measure("detect", self._detect(batch.frames))
                    # 2. classify while the next frames are decoded
                    waiting.extend(
                        asyncio.create_task(self._classify(frame.time_seconds, faces, keep_crops=keep_crops))
                        for frame, faces in zip(batch.frames, found, strict=True)
                    )
                    while len(waiting) > FRAMES_AHEAD:
                        frames.append(await times.measure("classify", waiting.popleft()))
            while waiting:
                frames.append(await times.measure("classify", waiting.popleft()))
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return ChunkPrediction(
            video_id=chunk.video_id,
            seq=chunk.seq,
            start_seconds=chunk.start_seconds,
            duration_seconds=duration_seconds,
            frames=tuple(frames),
            latency_ms=times.spent_ms,
            sampling_rate=sampling_rate(sample, chunk.duration_seconds),
        )

    async def predict_frames(self, frames: Sequence[Frame]) -> list[FramePrediction]:
        """Look at frames decoded elsewhere: one, or consecutive ones of a video.

        Raises ChunkError if a network fails on these alone, ModelError if it is broken.
        """
        found = await self._detect(list(frames))
        work = zip(frames, found, strict=True)
        return await asyncio.gather(
            *(self._classify(frame.time_seconds, faces, keep_crops=False) for frame, faces in work)
        )

    async def heat_maps(self, crops: UInt8Array) -> Float32Array | None:
        """See `Ensemble.heat_maps`."""
        return await asyncio.to_thread(self._ensemble.heat_maps, crops)

    async def _detect(self, frames: list[Frame]) -> list[FoundFaces]:
        return await _run(self.detect_batcher, frames, self._detector.check, DetectError)

    def _find_and_crop(self, sequences: list[list[Frame]]) -> list[list[FoundFaces]]:
        """Consecutive frames of several videos at once."""
        images = [[frame.rgb for frame in sequence] for sequence in sequences]
        margin, size = self._config.faces.margin, self._ensemble.crop_size
        return [
            [
                FoundFaces(faces, crop_faces(image, faces.boxes, margin=margin, size=size))
                for image, faces in zip(sequence, found, strict=True)
            ]
            for sequence, found in zip(images, self._detector.detect_sequences(images), strict=True)
        ]

    async def _classify(self, time_seconds: float, found: FoundFaces, *, keep_crops: bool) -> FramePrediction:
        if not len(found.faces):
            return FramePrediction(time_seconds, ())
        probabilities = await _run(self.classify_batcher, found.crops, self._ensemble.check, ClassifyError)
        return FramePrediction(
            time_seconds,
            tuple(
                FacePrediction((box[0], box[1], box[2], box[3]), tuple(row), crop if keep_crops else None)
                for box, row, crop in zip(
                    found.faces.boxes.tolist(), probabilities.tolist(), found.crops, strict=True
                )
            ),
        )


async def _run(
    batcher: Batcher[T, R],
    item: T,
    check: Callable[[], None],
    refused: type[DetectError | ClassifyError],
) -> R:
    """Result of an item, from a batch; or alone, if that fails: another item of it may be to blame.

    check: raises if a network is broken. Raises `refused` if they fail on the item and work otherwise,
    InferenceError if one is broken.
    """
    try:
        return await batcher.submit(item)
    except InferenceError as error:
        log.warning("a network failed; what it was given is tried again alone", error=str(error))
    try:
        return await batcher.submit(item, alone=True)
    except InferenceError as error:
        try:
            await asyncio.to_thread(check)
        except InferenceError as broken:
            raise InferenceError(
                f"{broken}; it fails on a known image, too: the network, its device or its driver is broken"
            ) from error
        raise refused("inference_failed", str(error)) from error
