"""One decoding process, seen from its parent: start it, ask it, disbelieve it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamer.child import LENGTH, child_command, child_environment
from streamer.config import DecodeConfig, SampleConfig
from streamer.errors import DecodeError, StreamerError
from streamer.messages import VideoChunk
from streamer.nvdec import DECODERS, NvdecSettings
from streamer.sample import sampling_rate, sampling_seed
from streamer.types import Frame, UInt8Array, YuvFrame, YuvLayout

BATCH_FRAMES = 8
"""Most frames in a batch; of frames beyond 1080p, as many as fit."""

_BATCH_BYTES = BATCH_FRAMES * 1920 * 1080 * 3
_START_SECONDS = 30.0
_GRACE_SECONDS = 1.0  # beyond a deadline that passed while the parent was not looking
_MAX_ANSWER_BYTES = 64 * 1024
_REASONS = frozenset(DecodeError.REASONS)


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Some of the sampled frames of a chunk."""

    frames: list[Frame | YuvFrame]
    """In order of time, at most BATCH_FRAMES, may be empty. Their pixels are read-only and lie in shared
    memory that is overwritten later: they are valid until the next batch is asked for."""
    end_seconds: float
    """Where the chunk ends as far as it is known: in its last batch, where its last frame stops being shown;
    in others, the time of their last frame. Seconds since the chunk's first frame."""
    is_last: bool
    decoder: str | None = None
    """In the last batch, if there was a choice: what decoded the chunk, one of `streamer.nvdec.DECODERS`."""


class WorkerFailedError(Exception):
    """The process has died, hung or talked nonsense; it must be replaced."""

    def __init__(self, worker: Worker, reason: str | None, text: str) -> None:
        super().__init__(text)
        self._worker = worker
        self._reason = reason

    async def explain(self) -> DecodeError:
        """End the process and say how it ended."""
        if self._reason is not None:
            await self._worker.stop()
            return DecodeError(self._reason, str(self))
        code = await self._worker.exit_code()
        if code == -signal.SIGXCPU:
            return DecodeError("decoder_timeout", "decoding took more CPU time than allowed")
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return DecodeError("decoder_crashed", f"the decoder process ended {how}")


def _shared_memory(size: int) -> tuple[int, mmap.mmap]:
    """A file in memory, and its mapping."""
    memory = os.memfd_create("streamer-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        # Sealed, so that no worker can shrink the memory under the parent's feet (SIGBUS).
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return memory, mmap.mmap(memory, size, prot=mmap.PROT_READ)
    except OSError:
        os.close(memory)
        raise


def _lacking(error: OSError) -> str:
    return f"{error.strerror or error}; raise this limit or lower decode.workers"


class Worker:
    """A process and the memory that it shares with us, in two halves."""

    def __init__(
        self, config: DecodeConfig, *, yuv: bool = False, nvdec: NvdecSettings | None = None
    ) -> None:
        """yuv, nvdec: see `DecodePool`."""
        self.is_replaced = False
        self.is_asked = False
        """A batch has been asked for and not been answered."""
        self.unfiltered: str | None = None
        """Why its system calls are not filtered; None: they are."""
        self._config = config
        self._yuv = yuv
        self._nvdec = nvdec
        self._half_bytes = max(_BATCH_BYTES, 3 * config.max_pixels)
        self._half = 0
        self._deadline = 0.0
        self._last_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._mapping: mmap.mmap | None
        try:
            self._memory, self._mapping = _shared_memory(2 * self._half_bytes)
        except OSError as error:
            raise StreamerError(f"no memory to share with a decoder process: {_lacking(error)}") from error

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises StreamerError."""
        try:
            await self._launch()
            async with asyncio.timeout(_START_SECONDS):
                answer = await self._receive()
        except (EOFError, TimeoutError, ConnectionError, ValueError) as error:
            await self.stop()
            raise StreamerError(f"a decoder process did not start: {error!r}") from error
        except OSError as error:
            await self.stop()
            raise StreamerError(f"a decoder process did not start: {_lacking(error)}") from error
        if "error" in answer:
            await self.stop()
            raise StreamerError(f"a decoder process did not start: {answer['error'][1]}")
        self.unfiltered = answer["unfiltered"]
        self.is_asked = False

    async def _launch(self) -> None:
        """The process, and the socket to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = self._popen(theirs.fileno())
            except OSError:
                ours.close()
                raise
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)

    def _popen(self, link: int) -> subprocess.Popen[bytes]:
        config = self._config
        settings = {
            "socket": link,
            "memory": self._memory,
            "shared_bytes": 2 * self._half_bytes,
            "parent": os.getpid(),
            "memory_mib": config.memory_mib,
            "cpu_seconds": config.cpu_seconds,
            "seccomp": config.seccomp,
            "yuv": self._yuv,
            "nvdec": self._nvdec,
            "limits": {
                "max_pixels": config.max_pixels,
                "max_seconds": config.max_chunk_seconds,
                "max_frames": config.max_chunk_frames,
                "skip_nonreference": config.skip_nonreference,
            },
        }
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            child_command("streamer.decode_worker", json.dumps(settings)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(link, self._memory),
            env=self._environment(),
            start_new_session=True,  # Ctrl-C reaches the whole group of the terminal: not these
        )

    def _environment(self) -> dict[str, str]:
        """Nothing else of ours: it may hold passwords, and this process reads hostile media."""
        names = ["PATH", "LD_LIBRARY_PATH", "LANG"]
        if self._nvdec is not None:  # so that both count the same GPUs
            names += ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"]
        return child_environment({name: os.environ[name] for name in names if name in os.environ})

    async def open(self, chunk: VideoChunk, sample: SampleConfig | Sequence[float]) -> None:
        """Hand a chunk over. sample: see `DecodePool.decode`."""
        self._half, self._last_seconds = 0, 0.0
        init = chunk.init or b""
        request = {
            "data": len(chunk.data),
            "init": len(init),
            "sample": list(sample)
            if isinstance(sample, Sequence)
            else {
                "rate": sampling_rate(sample, chunk.duration_seconds),
                "seed": sampling_seed(chunk.video_id, chunk.seq),
                "at_least_one": chunk.seq == 0,
            },
        }
        await self._send({"open": request}, chunk.data, init)

    async def ask(self) -> None:
        """Ask for the next batch, into the half that the caller does not hold."""
        await self._send({"next": [self._half * self._half_bytes, self._half_bytes, BATCH_FRAMES]})
        self.is_asked = True
        self._deadline = time.monotonic() + self._config.timeout_seconds

    async def answer(self) -> DecodedBatch:
        """The batch that was asked for. Raises DecodeError or WorkerFailedError."""
        left = max(self._deadline - time.monotonic(), _GRACE_SECONDS)
        try:
            async with asyncio.timeout(left):
                answer = await self._receive()
        except TimeoutError as error:
            limit = self._config.timeout_seconds
            raise WorkerFailedError(self, "decoder_timeout", f"no frames within {limit:g} s") from error
        except (OSError, EOFError) as error:
            raise WorkerFailedError(self, None, "the decoder process has gone") from error
        except ValueError as error:
            raise WorkerFailedError(self, "decoder_crashed", "the decoder answered nonsense") from error
        self.is_asked = False
        try:
            return self._read_batch(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerFailedError(self, "decoder_crashed", "the decoder answered nonsense") from error

    def _read_batch(self, answer: dict[str, Any]) -> DecodedBatch:
        """Check an answer as a stranger's: the worker may have been taken over by what it decodes."""
        if "error" in answer:
            reason, text = answer["error"]
            raise DecodeError(reason if reason in _REASONS else "decoder_error", str(text)[:500])
        low = self._half * self._half_bytes
        self._half = 1 - self._half
        if len(answer["frames"]) > BATCH_FRAMES or self._mapping is None:
            raise ValueError("too many frames")
        memory = np.frombuffer(self._mapping, np.uint8)
        frames: list[Frame | YuvFrame] = []
        for offset, height, width, seconds, yuv in answer["frames"]:
            layout = YuvLayout(height, width, *yuv) if yuv else None
            size = layout.bytes if layout else height * width * 3
            if not (height > 0 and width > 0 and low <= offset and offset + size <= low + self._half_bytes):
                raise ValueError("frame outside of its memory")
            pixels: UInt8Array = memory[offset : offset + size]
            if layout:
                frames.append(YuvFrame(pixels, layout, self._later(seconds)))
            else:
                frames.append(Frame(pixels.reshape(height, width, 3), self._later(seconds)))
        end, decoder = answer["end"], answer.get("decoder")
        if decoder not in (None, *DECODERS):
            raise ValueError("no such decoder")
        end_seconds = self._last_seconds if end is None else self._later(end)
        return DecodedBatch(frames, end_seconds, end is not None, decoder)

    def _later(self, seconds: Any) -> float:
        if not (
            isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds >= self._last_seconds
        ):
            raise ValueError("time does not grow")
        self._last_seconds = float(seconds)
        return self._last_seconds

    async def _send(self, request: dict[str, Any], *attachments: bytes) -> None:
        body = json.dumps(request).encode()
        if self._writer is None:
            raise StreamerError("the decode pool is closed")
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                self._writer.writelines((LENGTH.pack(len(body)), body, *attachments))
                await self._writer.drain()
        except TimeoutError as error:
            raise WorkerFailedError(self, "decoder_timeout", "the decoder does not take its work") from error
        except OSError as error:
            raise WorkerFailedError(self, None, "the decoder process has gone") from error

    async def _receive(self) -> dict[str, Any]:
        (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        if size > _MAX_ANSWER_BYTES:
            raise ValueError("answer too long")
        answer = json.loads(await self._reader.readexactly(size))
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        return answer

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def exit_code(self) -> int:
        """Exit status of a process that has closed its socket, hence is ending; killed if it does not."""
        process = self._process
        if process is None:
            raise StreamerError("the decode pool is closed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(process.wait, _GRACE_SECONDS)
        await self.stop()
        return process.returncode

    async def stop(self) -> None:
        """Kill the process and wait for its end; idempotent."""
        if (process := self._process) is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
            self._process = None
        if (writer := self._writer) is not None:
            self._writer = None
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def release_memory(self) -> None:
        """Give the shared memory back, once nothing refers to its frames any more; idempotent."""
        if self._mapping is not None:
            os.close(self._memory)
            with contextlib.suppress(BufferError):  # someone still holds a frame: freed when it lets go
                self._mapping.close()
            self._mapping = None
