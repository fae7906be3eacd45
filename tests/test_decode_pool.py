"""Real worker processes, really killed, stopped, starved and fed with hostile media."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from fractions import Fraction
from pathlib import Path

import hostile
import media
import psutil
import pytest
from decode_pools import ALL, chunk, encode, indices, long_clip, refused, running
from fakes import until
from structlog.testing import capture_logs

from streamer.config import DecodeConfig, SampleConfig
from streamer.decode_pool import BATCH_FRAMES, DecodePool
from streamer.errors import DecodeError, StreamerError
from streamer.messages import VideoChunk
from streamer.types import Frame

ROOT = Path(__file__).parents[1]


async def test_frames_come_in_batches_and_stay_whole_while_the_next_are_decoded() -> None:
    clip = encode("mpegts", frames=200)
    async with running() as pool:
        seen, sizes, ends, lasts = [], [], [], []
        async for batch in pool.decode(chunk(clip), ALL):
            await asyncio.sleep(0.02)  # the worker meanwhile fills the other half
            seen += [
                (media.index_of(frame.rgb), round(frame.time_seconds * media.FPS)) for frame in batch.frames
            ]
            sizes.append(len(batch.frames))
            ends.append(batch.end_seconds)
            lasts.append(batch.is_last)
    assert seen == [(index, index) for index in range(200)]
    assert max(sizes) == BATCH_FRAMES
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(200 / media.FPS, abs=0.001)
    assert lasts == [False] * (len(lasts) - 1) + [True]
    assert pool.restarts == {}


async def test_large_frames_come_in_smaller_batches() -> None:
    clip = encode("mp4", frames=5, width=3840, height=2160)
    async with running() as pool:
        sizes = [len(batch.frames) async for batch in pool.decode(chunk(clip), ALL)]
    assert sum(sizes) == 5
    assert max(sizes) == 2


@pytest.mark.parametrize("yuv", [False, True])
async def test_interlaced_and_stretched_frames_come_as_upright_rgb(yuv: bool) -> None:
    interlaced = media.encode("mp4", frames=20, interlaced=True)
    stretched = media.encode("mp4", frames=20, aspect=Fraction(2), rotation=90)
    pool = DecodePool(DecodeConfig(workers=1, max_pixels=128 * 96), yuv=yuv)
    large = DecodePool(DecodeConfig(workers=1, seccomp="required"), yuv=yuv)
    for decoders, clip, shape in (
        (large, interlaced, (96, 128, 3)),
        (large, stretched, (256, 96, 3)),
        (pool, stretched, (181, 67, 3)),
    ):
        await decoders.start()
        try:
            frames = [frame async for batch in decoders.decode(chunk(clip), ALL) for frame in batch.frames]
        finally:
            await decoders.close()
        assert len(frames) == 20
        assert all(isinstance(frame, Frame) and frame.rgb.shape == shape for frame in frames)


async def test_workers_that_are_shut_in_decode_every_format() -> None:
    async with running(seccomp="required") as pool:
        for container, codec in media.FORMATS:
            plain = container == "webm"
            clip = encode(container, codec, audio=not plain, rotation=None if plain else 90)
            assert len(await indices(pool, clip)) == 60, (container, codec)
        for codec in media.FRAGMENTED:
            init, segments = media.fragmented(codec)
            assert len(await indices(pool, segments[0], init)) == 30, codec
        assert pool.restarts == {}


async def test_replay_samples_the_same_frames() -> None:
    sample = SampleConfig(frames_per_second=4)
    async with running() as pool:

        async def sampled(seq: int, duration: float | None = None) -> list[float]:
            one = VideoChunk(video_id="v", seq=seq, data=encode("mp4"), duration_seconds=duration)
            return [frame.time_seconds async for batch in pool.decode(one, sample) for frame in batch.frames]

        assert await sampled(1) == await sampled(1)
        assert await sampled(1) != await sampled(2)
        assert len(await sampled(1)) == 8
        assert len(await sampled(1, duration=100.0)) == 2  # 100 frames for 100 s: one per second


async def test_the_times_themselves_may_be_given() -> None:
    times = [3.5 / media.FPS, 7.1 / media.FPS, 7.9 / media.FPS, 1000.0]
    async with running() as pool:
        batches = [batch async for batch in pool.decode(chunk(encode("mp4")), times)]
    assert [media.index_of(frame.rgb) for batch in batches for frame in batch.frames] == [3, 7, 59]


async def test_first_chunk_of_a_video_gives_a_frame_however_short() -> None:
    sample = SampleConfig(frames_per_second=0.1)
    async with running() as pool:
        batches = [batch async for batch in pool.decode(chunk(encode("mp4", frames=1), seq=0), sample)]
    assert sum(len(batch.frames) for batch in batches) == 1


async def test_two_workers_at_the_same_time() -> None:
    async with running(workers=2) as pool:
        assert pool.size == 2
        first, second, third = (pool.decode(chunk(encode("mp4")), ALL) for _ in range(3))
        await anext(first)
        await anext(second)
        waiting = asyncio.create_task(anext(third))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await first.aclose()
        await asyncio.wait_for(waiting, 10)
        await second.aclose()
        await third.aclose()


async def test_leaving_early_frees_the_worker() -> None:
    async with running() as pool:
        for _ in range(5):
            async with aclosing(pool.decode(chunk(encode("mpegts", frames=200)), ALL)) as batches:
                await anext(batches)
        assert await indices(pool, encode("mp4")) == list(range(60))
        assert pool.restarts == {}


async def test_cancelled_while_waiting_for_frames() -> None:
    async with running() as pool:
        task = asyncio.create_task(indices(pool, long_clip()))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await indices(pool, encode("mp4")) == list(range(60))
        assert pool.restarts == {}


# workers that die, hang or take too much


async def drain(pool: DecodePool, data: bytes, frames_per_second: float) -> None:
    async for _ in pool.decode(chunk(data), SampleConfig(frames_per_second=frames_per_second)):
        pass


async def busy_workers(pool: DecodePool) -> list[int]:
    """Those that run flat out, i.e. decode."""
    await asyncio.sleep(0.4)
    busy = [pid for pid in pool.pids if psutil.Process(pid).status() == psutil.STATUS_RUNNING]
    assert busy
    return busy


@pytest.mark.parametrize("blow", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
async def test_killed_worker_costs_one_chunk(blow: signal.Signals) -> None:
    async with running() as pool:
        victim = asyncio.create_task(drain(pool, long_clip(), 0.1))
        for pid in await busy_workers(pool):
            os.kill(pid, blow)
        with pytest.raises(DecodeError, match=blow.name) as caught:
            await victim
        assert caught.value.reason == "decoder_crashed"
        assert await indices(pool, encode("mp4")) == list(range(60))
        assert pool.restarts == {"decoder_crashed": 1}
        await until(lambda: len(pool.pids) == 2)


async def test_others_go_on_when_one_dies() -> None:
    async with running(workers=2) as pool:
        healthy = pool.decode(chunk(encode("mpegts", frames=200)), ALL)
        frames = len((await anext(healthy)).frames)
        victim = asyncio.create_task(drain(pool, long_clip(), 0.1))
        for pid in await busy_workers(pool):
            os.kill(pid, signal.SIGSEGV)
        with pytest.raises(DecodeError, match="SIGSEGV"):
            await victim
        async for batch in healthy:
            frames += len(batch.frames)
        assert frames == 200


async def test_worker_that_dies_while_idle_costs_no_chunk() -> None:
    async with running() as pool:
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        assert await indices(pool, encode("mp4")) == list(range(60))
        assert pool.restarts["decoder_crashed"] >= 1


async def test_hanging_worker_is_killed() -> None:
    async with running(timeout_seconds=1.0, skip_nonreference=False) as pool:
        for pid in pool.pids:
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert await refused(pool, encode("mp4")) == "decoder_timeout"
        assert time.monotonic() - started < 10
        for pid in pool.pids:
            psutil.Process(pid).resume()
        assert await indices(pool, encode("mp4")) == list(range(60))
        assert pool.restarts == {"decoder_timeout": 1}


async def test_too_slow_is_killed() -> None:
    async with running(timeout_seconds=1.0, skip_nonreference=False) as pool:
        with pytest.raises(DecodeError) as caught:
            await drain(pool, long_clip(), 0.01)
        assert caught.value.reason == "decoder_timeout"


async def test_cpu_time_is_limited_per_chunk() -> None:
    async with running(cpu_seconds=1, skip_nonreference=False) as pool:
        for _ in range(4):  # not over a worker's life
            assert len(await indices(pool, encode("mpegts", frames=200))) == 200
        with pytest.raises(DecodeError, match="CPU") as caught:
            await drain(pool, long_clip(), 0.01)
        assert caught.value.reason == "decoder_timeout"


async def test_memory_is_limited() -> None:
    clip = encode("mp4", frames=5, width=3840, height=2160)
    async with running(memory_mib=270) as pool:
        assert await refused(pool, clip) == "decoder_out_of_memory"
        assert len(await indices(pool, encode("mp4"))) == 60
        assert pool.restarts == {"decoder_out_of_memory": 1}


async def test_too_many_bytes_never_reach_a_worker() -> None:
    async with running(max_chunk_bytes=1000) as pool:
        assert await refused(pool, bytes(1001)) == "too_many_bytes"


async def test_too_little_memory_to_start_is_said() -> None:
    with pytest.raises(StreamerError, match="memory_mib = 32"):
        async with running(memory_mib=32):
            pass


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open no file, socket or memory more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_too_few_descriptors_to_start_are_said() -> None:
    pool = DecodePool(DecodeConfig(workers=1))
    with no_more_files(), pytest.raises(StreamerError, match=r"Too many open files; raise this limit"):
        await pool.start()


async def test_workers_come_back_when_descriptors_do() -> None:
    async with running() as pool:
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(worker.is_alive() for worker in pool._workers))
        work = asyncio.create_task(indices(pool, encode("mpegts")))
        with no_more_files(), capture_logs() as logs:
            await until(lambda: sum(pool.restarts.values()) == 2)
            await until(lambda: sum(line["event"] == "decode worker does not start" for line in logs) >= 2)
        async with asyncio.timeout(60):
            assert await work == list(range(60))


# hostile media


async def test_damaged_chunks_are_refused_and_good_ones_around_them_decoded() -> None:
    size = {"width": 320, "height": 240}
    good = {name: encode(name, **size) for name in ("mpegts", "mp4", "matroska")}
    chunks = hostile.damaged_chunks(good, n=200, seed=3)
    assert len({name for name, _ in chunks}) == len(chunks) == 200
    passed = []
    async with running(workers=2) as pool:
        for number, (name, data) in enumerate(chunks):
            try:
                await indices(pool, data)
                passed.append(name)
            except DecodeError as error:
                if error.reason in ("decoder_error", "decoder_timeout"):
                    passed.append(f"{name}: {error}")
            if number % 20 == 0:
                assert await indices(pool, good["mpegts"]) == list(range(60))
        assert passed == []
        assert pool.restarts.total() <= 5


async def test_mp4_cut_anywhere_in_its_first_2000_bytes() -> None:
    """At 406 bytes, PyAV 18.0.0 died of SIGSEGV."""
    clip = encode("mp4", muxer_options=None)
    init, segments = media.fragmented()
    async with running() as pool:
        for cut in [*range(380, 430), *range(1, 2000, 41)]:
            for data in (clip, init + segments[0], init[:cut]):
                assert await refused(pool, data[:cut]) in DecodeError.REASONS


def peak_mib(pid: int) -> int:
    """Most memory that a process has had in use; 0 of one that has just ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return 0
    return int(found[1]) // 1024 if found else 0


async def test_bombs_cost_no_more_than_their_refusal() -> None:
    """Declared sizes, lengths, counts and depths cost nothing that is not there; unpacking is bounded."""
    async with running() as pool:
        for name, data in hostile.bombs():
            reason, started = "decoded", time.monotonic()
            try:
                seen = await indices(pool, data)
                assert len(seen) <= 5, name
            except DecodeError as error:
                reason = error.reason
            assert reason not in ("decoder_crashed", "decoder_timeout", "decoder_error"), name
            assert time.monotonic() - started < 10, name
            assert max(map(peak_mib, pool.pids)) < 300, name
        assert await indices(pool, encode("mp4")) == list(range(60))
        assert set(pool.restarts) <= {"decoder_out_of_memory"}


async def test_fuzzing_finds_nothing(tmp_path: Path) -> None:
    """A little of what `fuzz/fuzz_decode.py` does for as long as it is let."""
    spec = importlib.util.spec_from_file_location("fuzz_decode", ROOT / "fuzz/fuzz_decode.py")
    assert spec is not None
    assert spec.loader is not None
    fuzzer = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_decode"] = fuzzer  # its dataclass looks there
    spec.loader.exec_module(fuzzer)
    outcomes = await fuzzer.fuzz(0, 400, seed=3, keep=tmp_path)
    assert outcomes["decoded"] > 20
    assert outcomes["damaged"] > 100
    assert not set(outcomes) & set(fuzzer.FAULTS)
