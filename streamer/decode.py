"""Chunk bytes -> sampled frames, with every limit on the way. Runs in a worker process: FFmpeg can crash.

Damage must show. FFmpeg conceals errors where it can, because a player should go on playing; a detector must
not score invented pixels, nor half a chunk as a whole one. So a chunk is refused as `damaged` when its
container is not whole (`media_structure`), when the demuxer marks a packet as corrupt, when the decoder
reports an error or marks a frame (`decode_error_flags`), or when fewer frames come out than went in. HEVC,
VP8, VP9 and AV1 are decoded with `err_detect=explode`; H.264 is not, for there it also refuses the sound
start of an open GOP, whose memory commands name pictures from before the cut, and the flags alone show what
`explode` would.

What may be missing in an ordinary segment, and is: pictures after an open GOP's first keyframe that are shown
before it and refer to the GOP before, and anything that is not video.
"""

from __future__ import annotations

import copy
import importlib
import io
import pkgutil
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av

from streamer.errors import DecodeError
from streamer.media_structure import check_structure
from streamer.nvdec import Nvdec, choose
from streamer.picture import SampledFrame, square_size
from streamer.sample import GivenTimes, Sampler
from streamer.video_stream import CODECS, is_accepted, video_streams

_DEMUXERS = {"mpegts": "mpegts", "mp4": "mov", "matroska": "matroska"}
_EXPLODING = frozenset({"hevc", "vp8", "vp9", "libdav1d"})
_COUNTED = frozenset({"h264", "hevc"})  # each packet is a picture; the others may hold hidden ones
_FALLBACK_FPS = 25.0
_PERHAPS_THE_GPUS = frozenset({"damaged", "no_keyframe", "no_frames", "decoder_out_of_memory"})


def import_all() -> None:
    """Import every module of PyAV, which imports parts of itself when first needed.

    For a process that soon cannot open any file.
    """
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name not in ("av.__main__", "av.datasets"):
            importlib.import_module(module.name)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What a chunk may cost; as in `DecodeConfig`, without its dependencies."""

    max_pixels: int
    max_seconds: float
    max_frames: int
    skip_nonreference: bool


def sampled_frames(
    data: bytes,
    init: bytes | None,
    sampler: Sampler | GivenTimes,
    limits: DecodeLimits,
    nvdec: Nvdec | None = None,
) -> Generator[SampledFrame, None, float]:
    """Decode a chunk and yield the frames that the sampler takes, in order of time.

    data: media segment. init: its CMAF init segment, if separate. nvdec: decodes what it can; where it fails,
    the CPU begins anew. The generator's value is the end of the chunk: seconds from its first frame to where
    its last one stops being shown. Raises DecodeError.
    """
    if not data:
        raise DecodeError("empty", "the chunk has no media data")
    media = init + data if init else data
    demuxer = _DEMUXERS[check_structure(media, after_init=bool(init))]
    given = 0
    if nvdec is not None and _is_for(nvdec, media, demuxer, limits):
        with closing(_decoded(media, demuxer, copy.deepcopy(sampler), limits, nvdec)) as frames:
            try:
                while True:
                    frame = next(frames)
                    nvdec.note(frame.picture.format.name)
                    yield frame
                    given += 1
            except StopIteration as stop:
                return cast("float", stop.value)
            except DecodeError as error:
                if error.reason not in _PERHAPS_THE_GPUS:
                    raise
                nvdec.decoder = "cpu_failed"
    frames = _decoded(media, demuxer, sampler, limits, None)
    for _ in range(given):  # the sampler chooses by time alone: these were given already
        next(frames)
    return (yield from frames)


def _is_for(nvdec: Nvdec, media: bytes, demuxer: str, limits: DecodeLimits) -> bool:
    """Look at the video and choose. Raises DecodeError."""
    with _as_decode_errors(), _open(media, demuxer, limits, None) as container:
        stream = _video_stream(container, limits)
        context = stream.codec_context
        choice = choose(context.name, context.pix_fmt, stream.width, stream.height, nvdec.min_pixels)
    nvdec.decoder = choice.why
    return choice.hardware


def _decoded(
    media: bytes, demuxer: str, sampler: Sampler | GivenTimes, limits: DecodeLimits, nvdec: Nvdec | None
) -> Generator[SampledFrame, None, float]:
    with _as_decode_errors(), _open(media, demuxer, limits, nvdec) as container:
        stream = _video_stream(container, limits)
        return (yield from _sample(container, stream, sampler, limits))


@contextmanager
def _as_decode_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:  # FFmpeg's is a subclass
        raise DecodeError("decoder_out_of_memory", "decoding needs more memory than allowed") from error
    except av.FFmpegError as error:
        raise DecodeError("damaged", f"FFmpeg: {error.strerror}") from error


def _open(media: bytes, demuxer: str, limits: DecodeLimits, nvdec: Nvdec | None) -> Any:
    options = {
        "codec_whitelist": ",".join(CODECS),
        "max_pixels": str(4 * limits.max_pixels),
    }
    return av.open(
        io.BytesIO(media),
        format=demuxer,
        options=options,
        container_options={"format_whitelist": demuxer, "protocol_whitelist": "none"},
        metadata_errors="replace",
        hwaccel=nvdec.settings if nvdec else None,
    )


def _video_stream(container: Any, limits: DecodeLimits) -> Any:
    """The stream to decode, ready for it."""
    streams = video_streams(container)
    if not streams:
        raise DecodeError("no_video", "no video stream in the chunk")
    stream, context = streams[0], streams[0].codec_context
    if not is_accepted(stream):
        name = "unknown" if context is None else context.name
        raise DecodeError("unsupported_codec", f"codec {name}; accepted: {', '.join(CODECS.values())}")
    _check_pixels(stream.width, stream.height, limits)
    context.thread_type = "NONE"  # a process per core, not threads: 1.3 times the frames per second
    context.thread_count = 1
    # Wider than ours, so that frames a little too large are refused by name in `_check_pixels`.
    context.options = {"max_pixels": str(4 * limits.max_pixels)}
    if context.name in _EXPLODING:
        context.options |= {"err_detect": "crccheck+bitstream+buffer+explode"}
    return stream


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels:
        raise DecodeError(
            "too_large", f"{width}x{height} pixels, at most {limits.max_pixels} (decode.max_pixels)"
        )


def _sample(
    container: Any, stream: Any, sampler: Sampler | GivenTimes, limits: DecodeLimits
) -> Generator[SampledFrame, None, float]:
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate and 1 <= rate <= 1000 else None
    if limits.skip_nonreference and fps and sampler.rate <= fps / 2:
        stream.codec_context.skip_frame = "NONREF"
    timeline = _Timeline(stream.time_base, fps or _FALLBACK_FPS, limits.max_seconds)
    packets = _Packets(limits)
    coded_first: Fraction | None = None
    shown: SampledFrame | None = None  # latest decoded frame: how long it is shown is known by the next one
    for picture in _decode(container, stream, packets):
        _check_pixels(picture.width, picture.height, limits)
        if picture.is_corrupt:
            raise packets.damaged("the decoder had to conceal errors")
        coded = stream.codec_context.sample_aspect_ratio
        if shown is None:
            coded_first = coded
        # The container states that of the beginning; where the coded one has changed since, that one holds.
        aspect = coded if coded != coded_first else stream.sample_aspect_ratio or coded
        size = square_size(picture, aspect, limits.max_pixels)
        following = SampledFrame(picture, timeline.place(picture.pts), size)
        if shown is None:
            packets.check_start(picture.pts)
        elif sampler.takes(shown.time_seconds, following.time_seconds):
            yield shown
        shown = following
    if shown is None:
        raise packets.nothing_decoded()
    if stream.codec_context.name in _COUNTED and stream.codec_context.skip_frame != "NONREF":
        packets.check_count(timeline.frames, interlaced=shown.picture.interlaced_frame)
    end_seconds = timeline.end(packets.end_pts)
    if sampler.takes(shown.time_seconds, end_seconds, last=True):
        yield shown
    return end_seconds


def _decode(container: Any, stream: Any, packets: _Packets) -> Iterator[Any]:
    """All frames of the stream in order of presentation. Raises DecodeError on any error."""
    for packet in container.demux(stream):
        if packet.size:  # else the packet at the end that flushes the decoder
            packets.add(packet)
        try:
            yield from stream.codec_context.decode(packet if packet.size else None)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            if (picture_size := stream.width * stream.height) > packets.limits.max_pixels:
                raise DecodeError(
                    "too_large", f"{picture_size} pixels after a change of resolution (decode.max_pixels)"
                ) from error
            raise packets.damaged(f"the decoder failed: {error.strerror}") from error


class _Packets:
    """Account of the compressed pictures of a chunk."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self.end_pts: int | None = None
        """Where the picture shown last stops being shown, in the stream's time base."""
        self._latest_pts: int | None = None
        self._count = 0
        self._starts_with_keyframe = True
        self._presented: list[int | None] = []

    def add(self, packet: Any) -> None:
        if self._count == 0:
            self._starts_with_keyframe = packet.is_keyframe
        self._count += 1
        if self._count > self.limits.max_frames:
            raise DecodeError(
                "too_long",
                f"more than {self.limits.max_frames} frames in one chunk (decode.max_chunk_frames)",
            )
        if packet.is_corrupt:
            raise self.damaged("a packet is cut or incomplete")
        if packet.is_discard:  # before an MP4 edit list's start: decoded, not shown
            return
        self._presented.append(packet.pts)
        # Of the last one alone: durations in MP4 are by the order of decoding, a pause may be another's.
        if packet.pts is not None and (self._latest_pts is None or packet.pts > self._latest_pts):
            self._latest_pts = packet.pts
            self.end_pts = packet.pts + (packet.duration or 0)

    def damaged(self, text: str) -> DecodeError:
        if not self._starts_with_keyframe:
            return DecodeError("no_keyframe", f"the chunk does not start with a keyframe: {text}")
        return DecodeError("damaged", text)

    def nothing_decoded(self) -> DecodeError:
        if not self._starts_with_keyframe:
            return DecodeError("no_keyframe", "the chunk does not start with a keyframe and holds none")
        return DecodeError("no_frames", "the video stream holds no decodable frame")

    def check_start(self, first_frame_pts: int | None) -> None:
        """The first packet must be among what is shown, else the chunk's head is undecodable."""
        first = self._presented[0] if self._presented else None
        if first is not None and first_frame_pts is not None and first_frame_pts > first:
            raise self.damaged(
                "its first picture cannot be decoded alone (an encoder with intra refresh marks such as "
                "keyframes: set it to real ones)"
            )

    def check_count(self, frames: int, *, interlaced: bool) -> None:
        """Every packet must have become a frame, but for those shown before the first keyframe."""
        first = self._presented[0] if self._presented else None
        expected = sum(first is None or pts is None or pts >= first for pts in self._presented)
        if interlaced:  # two packets, each a field, may make one frame
            expected = (expected + 1) // 2
        if frames < expected:
            raise self.damaged(f"only {frames} of {expected} frames could be decoded")


class _Timeline:
    """Timestamps -> seconds since the first frame, strictly increasing whatever the file says."""

    def __init__(self, time_base: Fraction, fps: float, max_seconds: float) -> None:
        self.frames = 0
        self._time_base = time_base
        self._frame_seconds = 1 / fps
        self._max_seconds = max_seconds
        self._first_pts: int | None = None
        self._last_seconds = 0.0

    def place(self, pts: int | None) -> float:
        """Time of the next frame; one frame after the last if its timestamp is missing or runs backwards."""
        if self._first_pts is None and pts is not None:
            self._first_pts = pts - round(self.frames * self._frame_seconds / self._time_base)
        seconds = self._seconds(pts)
        if self.frames > 0 and (seconds is None or seconds <= self._last_seconds):
            seconds = self._last_seconds + self._frame_seconds
        self.frames += 1
        self._last_seconds = seconds or 0.0
        self._check(self._last_seconds)
        return self._last_seconds

    def end(self, end_pts: int | None) -> float:
        """Where the last frame stops being shown; end_pts: the same by the packets, if they tell."""
        seconds = self._seconds(end_pts)
        if seconds is None or seconds <= self._last_seconds:
            seconds = self._last_seconds + self._frame_seconds
        self._check(seconds)
        return seconds

    def _seconds(self, pts: int | None) -> float | None:
        if pts is None or self._first_pts is None:
            return None
        return float((pts - self._first_pts) * self._time_base)

    def _check(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            raise DecodeError(
                "too_long",
                f"lasts {seconds:.1f} s, at most {self._max_seconds:.1f} s (decode.max_chunk_seconds)",
            )
