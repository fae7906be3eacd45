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
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import structlog

from streamer.backends.images import thumbnails, to_array
from streamer.backends.load import load_network
from streamer.batching import Batcher
from streamer.classify import Ensemble, shadow_of
from streamer.config import Config
from streamer.decode_pool import DecodePool
from streamer.errors import ClassifyError, DetectError, InferenceError
from streamer.faces.detect import FaceDetector
from streamer.faces.resize import FrameImage, Pyramid
from streamer.gpu import nvdec_settings, open_device
from streamer.messages import VideoChunk
from streamer.sample import sampling_rate, thinned
from streamer.suspects import Suspects
from streamer.tasks import cancel_all
from streamer.types import (
    THUMBNAIL_SIDE,
    ChunkPrediction,
    Crops,
    EnsembleInfo,
    FacePrediction,
    Faces,
    Float32Array,
    Frame,
    FramePrediction,
    Images,
    UInt8Array,
    YuvFrame,
    as_rgb,
)

T = TypeVar("T")
R = TypeVar("R")

FRAMES_AHEAD = 32
"""Frames of one chunk that may wait for the classifiers; bounds the crops held in memory."""

WORKERS_ON_GPU = 4
"""Batches of a stage under way at once: while one waits for the GPU, others are prepared."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class FoundFaces:
    """Faces of one frame and their crops."""

    faces: Faces
    crops: Crops
    thumbnails: Images
    """(n, THUMBNAIL_SIDE, THUMBNAIL_SIDE) uint8 grey; in memory when detection is done."""
    shadow_crops: Crops | None
    """The same faces at the sizes of the ensemble in shadow; None: there is none."""
    size: tuple[int, int]
    """Width and height of the frame, pixels."""


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
        threads = config.classify.threads or len(os.sched_getaffinity(0))
        self._device = open_device(config)
        self._face_networks = [
            load_network(
                config.classify.engines / f"{name}.json",
                backend=config.classify.backend,
                precision="f32",
                threads=threads,
                device=config.gpu.device,
            )
            for name in config.faces.networks
        ]
        detector, scanner, verifier = self._face_networks
        self._detector = FaceDetector(detector, config.faces, scanner=scanner, verifier=verifier)
        self._ensemble = Ensemble(config.classify, device=config.gpu.device)
        self._shadow = (
            Ensemble(shadow_of(config.classify), device=config.gpu.device) if config.classify.shadow else None
        )
        self.decode_pool = DecodePool(
            config.decode, yuv=self._device is not None, nvdec=nvdec_settings(config.gpu)
        )
        workers = min(threads, WORKERS_ON_GPU) if self._device else threads
        self.detect_batcher: Batcher[list[Frame | YuvFrame], list[FoundFaces]] = Batcher(
            "detect",
            self._on_device(self._find_and_crop),
            max_items=config.faces.batch_frames,
            timeout_ms=config.faces.batch_timeout_ms,
            workers=workers,
            size=len,
        )

        def classifying(name: str, ensemble: Ensemble) -> Batcher[Crops, Float32Array]:
            return Batcher(
                name,
                self._on_device(ensemble.classify_many),
                max_items=config.classify.batch_crops,
                timeout_ms=config.classify.batch_timeout_ms,
                workers=workers,
                size=_faces_in,
            )

        self.classify_batcher = classifying("classify", self._ensemble)
        self.shadow_batcher = classifying("shadow", self._shadow) if self._shadow else None
        self._illustrator = ThreadPoolExecutor(1, "evidence")
        """Beside the batchers, and waited for before the networks are closed."""
        self._open = AsyncExitStack()

    @property
    def ensemble(self) -> EnsembleInfo:
        """Members, hash, and whether they were trained."""
        ensemble, shadow = self._ensemble, self._shadow
        return EnsembleInfo(
            ensemble.names,
            ensemble.model_set,
            ensemble.trained,
            shadow_set=shadow.model_set if shadow else None,
            shadow_trained=shadow.trained if shadow else True,
        )

    @property
    def path(self) -> str:
        """What computes, in words."""
        nvdec = self._config.gpu.nvdec == "auto"
        decoder = f"NVDEC of {self._config.gpu.device}, else the CPU" if nvdec else "the CPU"
        frames = self._device.title if self._device else "memory"
        networks = ", ".join(dict.fromkeys([self._face_networks[0].device, self._ensemble.device]))
        return f"decoding on {decoder}; frames in {frames}; networks in {networks}"

    @property
    def batchers(self) -> tuple[Batcher[Any, Any], ...]:
        """For metrics: how many batches were run, and how full."""
        shadow = (self.shadow_batcher,) if self.shadow_batcher else ()
        return (self.detect_batcher, self.classify_batcher, *shadow)

    @property
    def worker_restarts(self) -> Mapping[str, int]:
        """For metrics: decode workers replaced so far, by reason."""
        return self.decode_pool.restarts

    @property
    def decoders(self) -> Mapping[str, int]:
        """For metrics: chunks decoded so far, by what decoded them; see `DecodePool.decoders`."""
        return self.decode_pool.decoders

    async def __aenter__(self) -> Pipeline:
        for network in self._face_networks:
            self._open.callback(network.close)
        self._open.callback(self._ensemble.close)
        if self._shadow and self.shadow_batcher:
            self._open.callback(self._shadow.close)
            self._open.push_async_callback(self.shadow_batcher.close)
        self._open.callback(self._illustrator.shutdown, cancel_futures=True)
        self._open.push_async_callback(self.classify_batcher.close)
        self._open.push_async_callback(self.detect_batcher.close)
        self._open.push_async_callback(self.decode_pool.close)
        await self.decode_pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def predict(
        self,
        chunk: VideoChunk,
        *,
        keep_crops: bool = False,
        sampling_share: float = 1.0,
        pictures: bool = False,
    ) -> ChunkPrediction:
        """Look at a chunk. keep_crops: see `FacePrediction.crop`. sampling_share: see `streamer.thinning`.

        pictures: make those of the most suspicious faces, as `[evidence]` says; crops are then not kept.
        Raises ChunkError if it cannot be processed, ModelError if a network is broken.
        """
        sample = thinned(self._config.sample, sampling_share)
        suspects = Suspects(self._config.evidence) if pictures else None
        times = StageTimes()
        frames: list[FramePrediction] = []
        waiting: deque[asyncio.Task[FramePrediction]] = deque()
        duration_seconds = 0.0

        async def finish_next() -> None:
            frame = await times.measure("classify", waiting.popleft())
            frames.append(frame if suspects is None else suspects.take(frame))

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
                        asyncio.create_task(
                            self._classify(frame.time_seconds, faces, keep_crops=keep_crops or pictures)
                        )
                        for frame, faces in zip(batch.frames, found, strict=True)
                    )
                    while len(waiting) > FRAMES_AHEAD:
                        await finish_next()
            while waiting:
                await finish_next()
        finally:
            await cancel_all(waiting)
        if suspects:
            illustrating = self._beside(suspects.illustrate, frames, self._ensemble.heat_maps)
            try:
                frames = await times.measure("evidence", illustrating)
            except InferenceError as error:  # the scores are there: evidence must not cost them
                log.warning("no pictures of this chunk: a network failed", error=str(error))
        return ChunkPrediction(
            video_id=chunk.video_id,
            seq=chunk.seq,
            start_seconds=chunk.start_seconds,
            duration_seconds=duration_seconds,
            frames=tuple(frames),
            latency_ms=times.spent_ms,
            sampling_rate=sampling_rate(sample, chunk.duration_seconds),
        )

    async def predict_frames(self, frames: Sequence[Frame | YuvFrame]) -> list[FramePrediction]:
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
        return await self._beside(self._ensemble.heat_maps, crops)

    def _beside(self, work: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._illustrator, work, *arguments)

    async def _detect(self, frames: list[Frame | YuvFrame]) -> list[FoundFaces]:
        return await _run(self.detect_batcher, frames, self._detector.check, DetectError)

    def _find_and_crop(self, sequences: list[list[Frame | YuvFrame]]) -> list[list[FoundFaces]]:
        """Consecutive frames of several videos at once."""
        images = [[self._image(frame) for frame in sequence] for sequence in sequences]
        found = [
            [self._cut_out(image, faces) for image, faces in zip(sequence, faces_of, strict=True)]
            for sequence, faces_of in zip(images, self._detector.detect_sequences(images), strict=True)
        ]
        for frame in chain.from_iterable(found):  # once a device has been given all there is to cut
            frame.thumbnails = to_array(frame.thumbnails)
        return found

    def _cut_out(self, image: FrameImage, faces: Faces) -> FoundFaces:
        crops = self._crop(image, faces, self._ensemble)
        return FoundFaces(
            faces,
            crops,
            thumbnails(crops[0], THUMBNAIL_SIDE),
            self._crop(image, faces, self._shadow) if self._shadow else None,
            (image.width, image.height),
        )

    def _crop(self, image: FrameImage, faces: Faces, ensemble: Ensemble) -> Crops:
        margin = self._config.faces.margin
        return tuple(image.crop(faces.boxes, margin=margin, size=size) for size in ensemble.crop_sizes)

    def _on_device(self, run: Callable[[T], R]) -> Callable[[T], R]:
        """`run`, with what it does on the device in a stream of the calling thread; see `Device.work`."""
        if (device := self._device) is None:
            return run

        def working(batch: T) -> R:
            with device.work():
                return run(batch)

        return working

    async def _in_shadow(self, found: FoundFaces) -> list[float | None]:
        """Mean probability of each face by the ensemble in shadow. Its failure costs its own scores alone."""
        if self.shadow_batcher is None or found.shadow_crops is None:
            return [None] * len(found.faces)
        try:
            rows = await self.shadow_batcher.submit(found.shadow_crops)
        except InferenceError as error:
            log.warning("the ensemble in shadow failed", error=str(error))
            return [None] * len(found.faces)
        means: list[float | None] = rows.mean(axis=1).tolist()
        return means

    def _image(self, frame: Frame | YuvFrame) -> FrameImage:
        if self._device is not None:
            return self._device.image(frame)
        return Pyramid(as_rgb(frame).rgb)

    async def _classify(self, time_seconds: float, found: FoundFaces, *, keep_crops: bool) -> FramePrediction:
        if not len(found.faces):
            return FramePrediction(time_seconds, (), found.faces.left_out, found.size)
        in_shadow = asyncio.create_task(self._in_shadow(found))
        try:
            probabilities = await _run(
                self.classify_batcher, found.crops, self._ensemble.check, ClassifyError
            )
            shadow = await in_shadow
        finally:
            in_shadow.cancel()
        crops = to_array(found.crops[0]) if keep_crops else [None] * len(found.faces)
        return FramePrediction(
            time_seconds,
            tuple(
                FacePrediction(
                    (box[0], box[1], box[2], box[3]),
                    tuple(row),
                    crop,
                    thumbnail=small.tobytes(),
                    shadow=other,
                )
                for box, row, small, other, crop in zip(
                    found.faces.boxes.tolist(),
                    probabilities.tolist(),
                    found.thumbnails,
                    shadow,
                    crops,
                    strict=True,
                )
            ),
            found.faces.left_out,
            found.size,
        )


def _faces_in(crops: Crops) -> int:
    return len(crops[0])


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
        except (InferenceError, MemoryError) as broken:
            raise InferenceError(
                f"{str(broken) or 'out of memory'}; it fails on a known image, too: the network, its device "
                "or its driver is broken"
            ) from error
        raise refused("inference_failed", str(error)) from error
