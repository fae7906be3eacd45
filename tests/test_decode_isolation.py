"""What decode workers may do, what is believed of them, and what they leave behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uvloop
from decode_pools import ALL, chunk, encode, indices, long_clip, refused, running
from fakes import until

from streamer.config import DecodeConfig
from streamer.decode_pool import BATCH_FRAMES, DecodePool
from streamer.decode_process import DecodedBatch, Worker
from streamer.errors import DecodeError, StreamerError
from streamer.nvdec import NvdecSettings

ROOT = Path(__file__).parents[1]


async def test_workers_are_shut_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_KAFKA__SECURITY__PASSWORD", "geheim")
    async with running(memory_mib=1000) as pool:
        for pid in pool.pids:
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (0, 0)
            assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (0, 0)
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
            assert 1000 * 2**20 < resource.prlimit(pid, resource.RLIMIT_AS)[0] < 1200 * 2**20
            process = psutil.Process(pid)
            assert "geheim" not in str(process.environ())
            assert os.getsid(pid) != os.getsid(0)
            assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240


ATTACKS = {
    "socket": "socket.socket()",
    "connected pair": "socket.socketpair()",
    "read a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "write a file": "os.open(target, os.O_WRONLY)",
    "create a file": "os.open(target + '2', os.O_WRONLY | os.O_CREAT)",
    "delete a file": "os.unlink(target)",
    "change a file's mode": "os.chmod(target, 0o777)",
    "run a program": "os.execv(sys.executable, ['python'])",
    "fork": "os.fork()",
    "signal its parent": "os.kill(os.getppid(), 0)",
    "trace its parent": "call(libc.ptrace, 16, os.getppid(), 0, 0)",  # PTRACE_ATTACH
    "read its parent's memory": "call(libc.process_vm_readv, os.getppid(), 0, 0, 0, 0, 0)",
    "its parent's limits": "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    "io_uring": "call(libc.syscall, 425, 1, 0)",
    "executable memory": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
}
"""What code that has taken a worker over might try."""


@pytest.fixture(scope="module")
def attacks_made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int | None]]:
    """A file to attack, and the errno that each attack ended with, made in one process shut in as workers
    are; None: it succeeded. Resource limits are left wide, so that it is the filter that answers."""
    code = (
        "import ctypes, json, mmap, os, resource, socket, sys\n"
        "from streamer import syscalls\n"
        "target, attacks = sys.argv[1], json.loads(sys.argv[2])\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(function, *arguments):\n"
        "    if function(*arguments) < 0:\n"
        "        raise OSError(ctypes.get_errno(), '')\n"
        "syscalls.restrict()\n"
        "ended = {}\n"
        "for name, attack in attacks.items():\n"
        "    try:\n"
        "        eval(attack)\n"
        "        ended[name] = None\n"
        "    except OSError as error:\n"
        "        ended[name] = error.errno\n"
        "print(json.dumps(ended))\n"
    )
    target = tmp_path_factory.mktemp("attacked") / "file"
    target.write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", code, target, json.dumps(ATTACKS)], stdout=subprocess.PIPE, check=True
    )
    return target, json.loads(done.stdout)


@pytest.mark.parametrize("attack", ATTACKS)
def test_system_calls_that_the_filter_denies(
    attack: str, attacks_made: tuple[Path, dict[str, int | None]]
) -> None:
    target, ended = attacks_made
    assert ended[attack] == errno.EPERM
    assert target.read_bytes() == b"x"


async def test_workers_are_under_the_filter_or_say_why_not() -> None:
    def filters(pool: DecodePool) -> set[str]:
        return {
            line.split()[1]
            for pid in pool.pids
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("Seccomp_filters:")
        }

    async with running(seccomp="required") as pool:
        (filtered,) = filters(pool)
        assert pool.unfiltered is None
    async with running(seccomp="off") as pool:
        (unfiltered,) = filters(pool)
        assert pool.unfiltered == 'decode.seccomp is "off"'
    assert int(filtered) == int(unfiltered) + 1


async def test_without_libseccomp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pyseccomp.py").write_text("raise RuntimeError('Unable to find libseccomp')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with running() as pool:
        assert "Unable to find libseccomp" in str(pool.unfiltered)
        assert len(await indices(pool, encode("mp4"))) == 60
    with pytest.raises(StreamerError, match=r'decode.seccomp is "required", but Unable to find libseccomp'):
        async with running(seccomp="required"):
            pass


async def test_ctrl_c_does_not_reach_workers() -> None:
    async with running() as pool:
        for pid in pool.pids:
            os.kill(pid, signal.SIGINT)
        assert await indices(pool, encode("mp4")) == list(range(60))
        assert pool.restarts == {}


async def test_nothing_is_left_behind() -> None:
    me = psutil.Process()
    await asyncio.to_thread(int)  # the loop's thread pool, once
    gc.collect()
    before = me.num_fds(), len(me.children())
    async with running(workers=2) as pool:
        assert await refused(pool, b"text") == "not_media"
        async with aclosing(pool.decode(chunk(encode("mpegts", frames=200)), ALL)) as batches:
            batch = await anext(batches)
        victim = asyncio.create_task(indices(pool, long_clip()))
        await asyncio.sleep(0.2)
    with pytest.raises(StreamerError, match="closed"):  # no DecodeError: the chunk is not to blame
        await victim
    assert len(me.children()) == before[1]
    assert len(batch.frames) == BATCH_FRAMES  # a caller that holds frames for longer only keeps their memory
    del batch, victim
    gc.collect()
    assert me.num_fds() <= before[0]


async def test_workers_end_when_the_parent_is_killed() -> None:
    code = (
        "import asyncio\n"
        "from streamer.config import DecodeConfig\n"
        "from streamer.decode_pool import DecodePool\n"
        "async def main():\n"
        "    pool = DecodePool(DecodeConfig(workers=2))\n"
        "    await pool.start()\n"
        "    print(*pool.pids, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert process.stdout is not None
    pids = [int(word) for word in (await asyncio.to_thread(process.stdout.readline)).split()]
    assert len(pids) == 3
    process.kill()
    process.wait()
    process.stdout.close()
    await until(lambda: not any(psutil.pid_exists(pid) and is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_on_uvloop() -> None:
    async def main() -> None:
        async with running() as pool:
            assert await indices(pool, encode("mp4")) == list(range(60))
            assert await refused(pool, b"text") == "not_media"
            os.kill(pool.pids[0], signal.SIGKILL)
            os.kill(pool.pids[1], signal.SIGKILL)
            await until(lambda: not any(worker.is_alive() for worker in pool._workers))
            assert await indices(pool, encode("mp4")) == list(range(60))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"frames": [[0, 10, 10, 0.0]]},
        {"frames": [[0, 10, 10]], "end": None},
        {"frames": [[0, -1, -10, 0.0]], "end": None},
        {"frames": [[-300, 10, 10, 0.0]], "end": None},
        {"frames": [[0, 100_000, 100_000, 0.0]], "end": None},
        {"frames": [[0, 10, 10, float("nan")]], "end": None},
        {"frames": [[0, 10, 10, 1.0], [300, 10, 10, 0.5]], "end": None},
        {"frames": [[0, "a", 10, 0.0]], "end": None},
        {"frames": [[0, 10, 10, 0.0]] * (BATCH_FRAMES + 1), "end": None},
        {"frames": [], "end": float("inf")},
        {"frames": [], "end": "soon"},
        {"frames": None, "end": None},
        {"frames": [], "end": 1.0, "decoder": "made up"},
        {"frames": [], "end": 1.0, "decoder": ["nvdec"]},
    ],
)
def test_nonsense_from_a_worker_is_not_believed(answer: dict[str, Any]) -> None:
    worker = Worker(DecodeConfig())
    with pytest.raises((KeyError, TypeError, ValueError)):
        worker._read_batch(answer)
    worker.release_memory()


def test_reason_from_a_worker_is_one_of_ours() -> None:
    worker = Worker(DecodeConfig())
    with pytest.raises(DecodeError) as caught:
        worker._read_batch({"error": ["made up", "x" * 10_000]})
    assert caught.value.reason == "decoder_error"
    assert len(str(caught.value)) == 500
    worker.release_memory()


def test_a_worker_sees_the_gpus_that_we_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("SECRET", "x")
    for nvdec, seen in ((None, False), (NvdecSettings("0", 0), True)):
        worker = Worker(DecodeConfig(), nvdec=nvdec)
        environment = worker._environment()
        worker.release_memory()
        assert ("CUDA_VISIBLE_DEVICES" in environment) == seen
        assert "SECRET" not in environment


async def test_what_decoded_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Worker._read_batch

    def with_nvdec(worker: Worker, answer: dict[str, Any]) -> DecodedBatch:
        assert answer["decoder"] is None  # nothing to choose from here
        return read(worker, answer | {"decoder": answer["end"] and "nvdec"})

    async with running() as pool:
        await indices(pool, encode("mp4"))
        assert pool.decoders == {}
        monkeypatch.setattr(Worker, "_read_batch", with_nvdec)
        await indices(pool, encode("mp4"))
        await indices(pool, encode("mpegts"))
        assert pool.decoders == {"nvdec": 2}


async def test_frames_are_read_only() -> None:
    async with running() as pool:
        async with aclosing(pool.decode(chunk(encode("mp4")), ALL)) as batches:
            frame = (await anext(batches)).frames[0]
        assert not frame.rgb.flags.writeable
        assert frame.rgb.dtype == np.uint8
        del frame
