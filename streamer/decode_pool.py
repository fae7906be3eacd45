"""Decoding in worker processes that may crash, hang or eat memory and hurt nothing but their own chunk.

Each worker (`decode_worker`) has a socket and a piece of shared memory in two halves. The parent asks for a
batch of frames into one half while it works on the other, so memory is bounded whatever a chunk holds, and a
slow parent slows the worker. One worker more than decode at a time is kept, so that a crash delays nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

import structlog

from streamer.config import DecodeConfig, SampleConfig
from streamer.decode_process import BATCH_FRAMES, DecodedBatch, Worker, WorkerFailedError
from streamer.errors import DecodeError, StreamerError
from streamer.messages import VideoChunk
from streamer.nvdec import NvdecSettings
from streamer.tasks import cancel_all

__all__ = ["BATCH_FRAMES", "DecodePool", "DecodedBatch"]

_RESTART_PAUSES = (0.1, 0.5, 2.0, 5.0)  # seconds; the last one repeats

log = structlog.get_logger(__name__)


class DecodePool:
    """A pool of decoding processes. All methods belong to one event loop."""

    def __init__(
        self, config: DecodeConfig, *, yuv: bool = False, nvdec: NvdecSettings | None = None
    ) -> None:
        """yuv: 4:2:0 frames come as `YuvFrame`, half the bytes of RGB and not yet converted. nvdec: the GPU
        whose decoder is used for what it takes; None: none."""
        self.restarts: Counter[str] = Counter()
        """Workers replaced so far by reason: `decoder_crashed`, `decoder_timeout`,
        `decoder_out_of_memory`."""
        self.decoders: Counter[str] = Counter()
        """Chunks decoded so far by what decoded them and why: `streamer.nvdec.DECODERS`; with NVDEC alone."""
        self._config = config
        self._yuv = yuv
        self._nvdec = nvdec
        self.size = config.workers or len(os.sched_getaffinity(0))
        """Chunks that are decoded at the same time."""
        self._turns = asyncio.Semaphore(self.size)
        self._workers: list[Worker] = []
        self._idle: asyncio.LifoQueue[Worker] = asyncio.LifoQueue()  # the spare's memory stays untouched
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    @property
    def unfiltered(self) -> str | None:
        """Why the workers' system calls are not filtered; None: they are."""
        return next((worker.unfiltered for worker in self._workers if worker.unfiltered), None)

    async def start(self) -> None:
        """Start the workers. Raises StreamerError, saying why, if they do not come up."""
        try:
            for _ in range(self.size + 1):
                self._workers.append(Worker(self._config, yuv=self._yuv, nvdec=self._nvdec))
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.close()
            raise
        if self.unfiltered is not None and self._config.seccomp != "off":
            log.warning("system calls of the decode workers are not filtered", why=self.unfiltered)
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End all workers, also those at work; idempotent. Leaves no process and no file descriptor."""
        self._closed = True
        await cancel_all(self._tasks)
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        for worker in self._workers:
            worker.release_memory()

    async def decode(
        self, chunk: VideoChunk, sample: SampleConfig | Sequence[float]
    ) -> AsyncGenerator[DecodedBatch, None]:
        """Sampled frames of a chunk, batch by batch; the last one knows where the chunk ends.

        sample: how to draw the times, or the times themselves; see `GivenTimes`.

        Waits for a free worker first. May be left early (`aclose`): the worker is then free again as soon as
        it has answered or been killed. Raises DecodeError for this chunk, StreamerError if the pool is
        closed.
        """
        if (size := len(chunk.data) + len(chunk.init or b"")) > self._config.max_chunk_bytes:
            raise DecodeError(
                "too_many_bytes",
                f"{size} bytes of media, at most {self._config.max_chunk_bytes} (decode.max_chunk_bytes)",
            )
        async with self._turns:
            worker = await self._take_idle()
            try:
                await worker.open(chunk, sample)
                await worker.ask()
                batch = await worker.answer()
                while not batch.is_last:
                    await worker.ask()  # fills the other half while the caller works on this batch
                    yield batch
                    batch = await worker.answer()
                if batch.decoder is not None:
                    self.decoders[batch.decoder] += 1
                yield batch
            except WorkerFailedError as failure:
                if self._closed:  # by us, and no fault of the chunk
                    raise StreamerError("the decode pool was closed") from failure
                error = await failure.explain()
                self._replace(worker, error.reason)
                raise error from failure
            except DecodeError as error:
                if error.reason == "decoder_out_of_memory":
                    self._replace(worker, error.reason)
                raise
            finally:
                self._give_back(worker)

    async def _take_idle(self) -> Worker:
        """A worker that has not died while it waited; the kernel may choose it when memory is short."""
        while not (worker := await self._idle.get()).is_alive():
            self._replace(worker, "decoder_crashed")
        return worker

    def _give_back(self, worker: Worker) -> None:
        if worker.is_replaced or self._closed:
            return
        if worker.is_asked:  # left early
            self._spawn(self._await_leftover(worker))
        else:
            self._idle.put_nowait(worker)

    async def _await_leftover(self, worker: Worker) -> None:
        with contextlib.suppress(DecodeError):
            try:
                await worker.answer()
            except WorkerFailedError as failure:
                self._replace(worker, (await failure.explain()).reason)
                return
        self._idle.put_nowait(worker)

    def _replace(self, worker: Worker, reason: str) -> None:
        worker.is_replaced = True
        if self._closed:
            return
        self.restarts[reason] += 1
        self._spawn(self._restart(worker))

    async def _restart(self, worker: Worker) -> None:
        for attempt in range(sys.maxsize):
            await worker.stop()
            try:
                await worker.start()
                break
            except StreamerError as error:
                pause = _RESTART_PAUSES[min(attempt, len(_RESTART_PAUSES) - 1)]
                log.error("decode worker does not start", error=str(error), retry_seconds=pause)
                await asyncio.sleep(pause)
        worker.is_replaced = False
        self._idle.put_nowait(worker)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
