"""The detector as a library: files and frames -> scores, through the same pipeline as the service.

    from streamer import Detector

    with Detector("config.toml") as detector:
        print(detector.score_file("clip.mp4").fake_score)

Loading takes seconds and a decode process per core is started, so make one detector and keep it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from streamer.config import Config
from streamer.engines import prepare_members
from streamer.errors import StreamerError
from streamer.load_config import load_config
from streamer.pipeline import Pipeline
from streamer.score import FileScore, score_file
from streamer.tasks import gather_or_cancel
from streamer.types import EnsembleInfo, FacePrediction, Frame, UInt8Array

T = TypeVar("T")


class AsyncDetector:
    """Use as `async with AsyncDetector() as detector: await detector.score_file(path)`.

    Calls may run side by side: their frames and faces share batches.
    """

    def __init__(
        self, config: Config | Path | str | None = None, *, members: Sequence[str] | None = None
    ) -> None:
        """Only checks its arguments; `async with` loads the networks.

        config: a `Config`, or the path of a config.toml; None: defaults. The environment overrides a file and
        the defaults. members: manifests under `classify.engines`, without `.json`; None: those of the
        configuration. Raises ConfigError.
        """
        if not isinstance(config, Config):
            config = load_config(None if config is None else Path(config))
        if members is not None:
            config = load_config(
                None, config.model_dump() | {"classify": config.classify.model_dump() | {"members": members}}
            )
        self._config = config
        self._pipeline: Pipeline | None = None

    async def __aenter__(self) -> AsyncDetector:
        """Load the networks and start the decode processes.

        Raises UntrainedError if a member has random weights and `classify.allow_untrained` is not set,
        another ModelError if one cannot be loaded.
        """
        await asyncio.to_thread(prepare_members, self._config.classify)
        self._pipeline = await (await asyncio.to_thread(Pipeline, self._config)).__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            await pipeline.__aexit__()

    @property
    def ensemble(self) -> EnsembleInfo:
        """Names of the members, in the order of `FacePrediction.probabilities`; whether they were trained."""
        return self._opened.ensemble

    async def score_file(self, path: Path | str) -> FileScore:
        """Score a video file: the update that the service would publish last, status `final`.

        `fake_score` is in [0, 1], and None if no face was found. Its `video_id` is the file's name without
        extension, as `streamer publish` has it: the frames are drawn by it, so that the service says the same
        of the file, and under another id nearly the same. Raises FileError if it is no video that can be
        read, ModelError if a network is broken.
        """
        return await score_file(Path(path), self._config, self._opened)

    async def score_frames(
        self, frames: Sequence[UInt8Array], *, consecutive: bool = False
    ) -> list[tuple[FacePrediction, ...]]:
        """Score all faces in frames that were decoded elsewhere.

        frames: each (height, width, 3) uint8, RGB (OpenCV's are BGR), [0, 255], upright; sizes may differ.
        consecutive: they are frames of one video, a second apart at most and in order of time; small faces
        are then searched in one of `faces.scan_every` frames and followed to the others, several times as
        fast. Returns for each frame its faces, best first, none for a frame without: `box` is (x_min, y_min,
        x_max, y_max) in pixels of the frame, `probabilities` one per member, of `fake`, in [0, 1]. Raises
        ValueError for an array of another shape or type, ChunkError if a network fails on these frames alone,
        ModelError if it is broken.
        """
        pipeline, size = self._opened, self._config.faces.batch_frames if consecutive else 1
        checked = [Frame(np.ascontiguousarray(frame), 0.0) for frame in frames]
        for number, frame in enumerate(checked):
            if not frame.rgb.size:
                raise ValueError(f"frame {number} has no pixels: {frame.rgb.shape}")
        groups = [checked[start : start + size] for start in range(0, len(checked), size)]
        at_once = asyncio.Semaphore(2 * self._config.faces.batch_frames)  # bounds what waits in memory

        async def one(group: list[Frame]) -> list[tuple[FacePrediction, ...]]:
            async with at_once:
                return [frame.faces for frame in await pipeline.predict_frames(group)]

        return [faces for group in await gather_or_cancel(map(one, groups)) for faces in group]

    @property
    def _opened(self) -> Pipeline:
        if self._pipeline is None:
            raise StreamerError("use the detector inside of its `with`")
        return self._pipeline


class Detector:
    """Use as `with Detector() as detector: detector.score_file(path)`. From one thread at a time.

    What each method takes, returns and raises: see `AsyncDetector`.
    """

    def __init__(
        self, config: Config | Path | str | None = None, *, members: Sequence[str] | None = None
    ) -> None:
        """See `AsyncDetector`."""
        self._detector = AsyncDetector(config, members=members)
        self._runner: asyncio.Runner | None = None

    def __enter__(self) -> Detector:
        """Load the networks and start the decode processes. Raises ModelError."""
        self._runner = asyncio.Runner()
        try:
            self._run(self._detector.__aenter__())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._detector.__aexit__())
        finally:
            self._close()

    @property
    def ensemble(self) -> EnsembleInfo:
        """Names of the members, in the order of `FacePrediction.probabilities`; whether they were trained."""
        return self._detector.ensemble

    def score_file(self, path: Path | str) -> FileScore:
        """Score a video file. Raises FileError, ModelError."""
        return self._run(self._detector.score_file(path))

    def score_frames(
        self, frames: Sequence[UInt8Array], *, consecutive: bool = False
    ) -> list[tuple[FacePrediction, ...]]:
        """Score all faces in RGB frames, each (height, width, 3) uint8. Raises ValueError, ModelError."""
        return self._run(self._detector.score_frames(frames, consecutive=consecutive))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise StreamerError("an event loop runs in this thread: use AsyncDetector, and await")
        if self._runner is None:
            work.close()
            raise StreamerError("use the detector inside of its `with`")
        return self._runner.run(work)

    def _close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()
