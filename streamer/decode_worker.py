"""The process that decodes: shuts itself in, then serves one chunk at a time over a socket.

Started by `decode_pool` as `python -m streamer.decode_worker`. It handles hostile media, so the parent does
not trust it: what it says is JSON that the parent checks, pixels go through shared memory of fixed size, and
its limits are set before the first byte of media arrives.

Beside resource limits there is a filter of system calls where libseccomp is installed (`syscalls`).

Messages, each a 4-byte big-endian length and a JSON object. The parent asks, the worker answers:

    (start)                                   -> {"ready": true, "unfiltered": why or null}
    {"open": {"data": bytes, "init": bytes, "rate", "seed", "at_least_one"}}, then data and init, raw
    {"next": [offset, capacity, max_frames]}  -> {"frames": [[offset, height, width, seconds, yuv], ...],
                                                  "end": seconds or null, "decoder": of `DECODERS` or null}
                                              or {"error": [reason, text]}

`yuv` is null for an upright RGB frame, else the rest of its `types.YuvLayout`. `decoder` is null where there
is no choice, and before the last batch.

`open` has no answer; it drops whatever chunk was being decoded before. The process ends when the socket does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamer import syscalls
from streamer.child import LENGTH

if TYPE_CHECKING:
    from streamer.picture import SampledFrame

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
_MIB = 1024 * 1024
_LEAST_MIB = 32  # to decode anything at all


def main() -> None:
    """Entry point; arguments: file descriptors and limits, as one JSON object."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    link = socket.socket(fileno=settings["socket"])
    try:
        server = _Server(link, settings)
        unfiltered = _shut_in(settings)
    except Exception as error:  # noqa: BLE001 - the parent reports it; nobody reads our stderr
        _send(link, {"error": ["start", f"{type(error).__name__}: {error}"]})
        return
    _send(link, {"ready": True, "unfiltered": unfiltered})
    server.serve()


def _shut_in(settings: dict[str, Any]) -> str | None:
    """Set limits that hold for the rest of the process. All that needs new files must be done before.

    Returns why system calls are not filtered; None: they are.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != settings["parent"]:
        raise RuntimeError("the parent is gone")  # before PDEATHSIG was set
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if settings["nvdec"] is None:
        limits |= {resource.RLIMIT_AS: _address_space(settings), resource.RLIMIT_NOFILE: 0}
        unfiltered = _filter_system_calls(settings["seccomp"])
    elif settings["seccomp"] == "required":
        raise RuntimeError('decode.seccomp is "required", which the GPU\'s driver (gpu.nvdec) does not bear')
    else:
        unfiltered = "the GPU's driver works in them (gpu.nvdec); their memory and files have no limit either"
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    return unfiltered


def _address_space(settings: dict[str, Any]) -> int:
    """Bytes that the process may use. Raises RuntimeError if it has them already."""
    address_space: int = settings["memory_mib"] * _MIB + settings["shared_bytes"]
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if in_use + _LEAST_MIB * _MIB > address_space:
        taken = f"{-(-in_use // _MIB)} MiB are taken before any media arrives"
        raise RuntimeError(f"too little memory, {taken} (decode.memory_mib = {settings['memory_mib']})")
    return address_space


def _filter_system_calls(wanted: str) -> str | None:
    if wanted == "off":
        return 'decode.seccomp is "off"'
    try:
        syscalls.restrict()
    except syscalls.FilterUnavailableError as error:
        if wanted == "required":
            raise RuntimeError(f'decode.seccomp is "required", but {error}') from error
        return str(error)
    return None


class _Server:
    def __init__(self, link: socket.socket, settings: dict[str, Any]) -> None:
        import numpy as np

        from streamer.decode import DecodeLimits, import_all
        from streamer.nvdec import Nvdec

        import_all()
        self._nvdec = None if settings["nvdec"] is None else Nvdec(*settings["nvdec"])
        self._link = link
        self._limits = DecodeLimits(**settings["limits"])
        self._cpu_seconds = settings["cpu_seconds"]
        self._yuv = settings["yuv"]
        with os.fdopen(settings["memory"], "r+b") as memory:
            self._memory = mmap.mmap(memory.fileno(), settings["shared_bytes"])
        self._pixels = np.frombuffer(self._memory, np.uint8)
        self._status = os.open("/proc/self/status", os.O_RDONLY)  # later, nothing can be opened
        self._chunk: Iterator[SampledFrame] | None = None
        self._held: SampledFrame | None = None
        self._end_seconds: float | None = None
        self._malloc_trim = ctypes.CDLL(None).malloc_trim
        gc.freeze()  # what is loaded stays: `_tidy` need not look at it

    def serve(self) -> None:
        """Answer until the socket ends."""
        while (request := self._receive()) is not None:
            if "open" in request:
                self._open(request["open"])
            else:
                answer = self._next(*request["next"])
                _send(self._link, answer)
                if answer.get("end", True) is not None:  # a failure, or the last batch
                    self._tidy()

    def _open(self, chunk: dict[str, Any]) -> None:
        from streamer.decode import sampled_frames
        from streamer.sample import GivenTimes, Sampler

        data, init = self._read(chunk["data"]), self._read(chunk["init"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_limit = int(used.ru_utime + used.ru_stime) + 1 + self._cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit, resource.RLIM_INFINITY))
        sample = chunk["sample"]
        sampler = GivenTimes(sample) if isinstance(sample, list) else Sampler(**sample)
        self._held = self._end_seconds = None
        self._chunk = self._remember_end(
            sampled_frames(data, init or None, sampler, self._limits, self._nvdec)
        )

    def _remember_end(self, frames: Generator[SampledFrame, None, float]) -> Iterator[SampledFrame]:
        self._end_seconds = yield from frames

    def _next(self, offset: int, capacity: int, max_frames: int) -> dict[str, Any]:
        """Fill [offset, offset + capacity) of the shared memory with up to max_frames frames, end to end."""
        from streamer.errors import DecodeError

        if self._chunk is None:
            return {"error": ["decoder_error", "no chunk is open"]}
        written: list[tuple[int, int, int, float, list[int] | None]] = []
        stop = offset + capacity
        try:
            while len(written) < max_frames:
                frame = self._held or next(self._chunk, None)
                if frame is None:
                    decoder = self._nvdec and self._nvdec.decoder
                    return {"frames": written, "end": self._end_seconds, "decoder": decoder}
                height, width, channels = shape = frame.shape()
                size = height * width * channels
                if layout := frame.yuv_layout() if self._yuv else None:
                    height, width, size = layout.height, layout.width, layout.bytes
                if offset + size > stop:
                    self._held = (
                        frame  # goes into the next batch; a batch holds at least one frame of any size
                    )
                    break
                if layout:
                    frame.write_yuv(self._pixels[offset : offset + size])
                else:
                    frame.write_rgb(self._pixels[offset : offset + size].reshape(shape))
                self._held = None
                yuv = list(map(int, layout[2:])) if layout else None
                written.append((offset, height, width, frame.time_seconds, yuv))
                offset += size
        except DecodeError as error:
            if error.reason == "damaged" and self._is_short_of_memory():
                # FFmpeg reports some failed allocations as invalid data
                return self._failed("decoder_out_of_memory", "decoding needs more memory than allowed")
            return self._failed(error.reason, str(error))
        except MemoryError:
            return self._failed("decoder_out_of_memory", "decoding needs more memory than allowed")
        except Exception as error:  # noqa: BLE001 - costs one chunk, and its text says what happened
            return self._failed("decoder_error", f"{type(error).__name__}: {error}")
        return {"frames": written, "end": None, "decoder": None}

    def _tidy(self) -> None:
        """Give back what a chunk took, while the parent is at work on it.

        PyAV's containers are reference cycles that hold frames, and glibc keeps what was freed: without this
        a worker grew for half an hour of video before it levelled off.
        """
        self._chunk = self._held = None
        gc.collect()
        self._malloc_trim(0)

    def _is_short_of_memory(self) -> bool:
        """Whether the address space has ever been nearly full; afterwards this process is replaced."""
        status = os.pread(self._status, 4096, 0).decode()
        peak = int(status.split("VmPeak:")[1].split()[0]) * 1024
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        return limit != resource.RLIM_INFINITY and limit - peak < 2 * _LEAST_MIB * _MIB

    def _failed(self, reason: str, text: str) -> dict[str, Any]:
        self._chunk = self._held = None
        return {"error": [reason, text[:500]]}

    def _receive(self) -> dict[str, Any] | None:
        head = self._link.recv(LENGTH.size, socket.MSG_WAITALL)
        if len(head) < LENGTH.size:
            return None
        request: dict[str, Any] = json.loads(self._read(LENGTH.unpack(head)[0]))
        return request

    def _read(self, size: int) -> bytes:
        buffer, filled = bytearray(size), 0
        view = memoryview(buffer)
        while filled < size:
            received = self._link.recv_into(view[filled:])
            if received == 0:
                raise SystemExit  # the parent is gone
            filled += received
        view.release()
        return bytes(buffer)


def _send(link: socket.socket, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    link.sendall(LENGTH.pack(len(body)) + body)


if __name__ == "__main__":
    main()
