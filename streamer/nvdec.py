"""Which videos the GPU's decoder gets: what it takes, if they are large enough to be worth a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple


class NvdecSettings(NamedTuple):
    """How decode workers use a GPU."""

    device: str
    """Index of the GPU."""
    min_pixels: int
    """See `GpuConfig.nvdec_min_pixels`."""


class Choice(NamedTuple):
    """What decodes a chunk."""

    hardware: bool
    why: str
    """One of `DECODERS`."""


DECODERS = MappingProxyType(
    {
        "nvdec": "the GPU",
        "cpu_small": "the CPU: fewer pixels than gpu.nvdec_min_pixels",
        "cpu_codec": "the CPU: a codec that is not decoded on the GPU",
        "cpu_format": "the CPU: chroma or bits that NVDEC does not take",
        "cpu_size": "the CPU: smaller or larger than NVDEC takes",
        "cpu_refused": "the CPU: NVDEC was asked and declined",
        "cpu_failed": "the CPU: NVDEC was asked and failed, so the chunk was begun anew",
    }
)
"""What decoded a chunk and why, as it is counted -> in words."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of a codec, in pixels."""

    least: tuple[int, int]
    """Width and height."""
    most: tuple[int, int]
    formats: frozenset[str] = frozenset({"yuv420p", "yuvj420p"})
    """FFmpeg's names."""


_LIMITS = MappingProxyType(
    {
        "h264": _Limits((48, 16), (4096, 4096)),
        "hevc": _Limits((144, 144), (8192, 8192), frozenset({"yuv420p", "yuvj420p", "yuv420p10le"})),
        "vp8": _Limits((48, 16), (4096, 4096)),
        "vp9": _Limits((128, 128), (8192, 8192)),
        "mpeg2video": _Limits((48, 16), (4080, 4080)),
        "mpeg4": _Limits((48, 16), (2032, 2032)),
    }
)
"""What every NVDEC since Turing takes, by FFmpeg's decoder: NVIDIA Video Codec SDK, NVDEC application note.
The least sizes, and the most of MPEG-2 and MPEG-4, are not in it and have not been checked on a GPU; what it
declines is decoded on the CPU. libdav1d, which decodes AV1 here, has no way to NVDEC."""


_GIVEN = frozenset({"nv12", "p010le", "p016le"})
"""FFmpeg's names of the formats that frames come in; no decoder on the CPU gives them here."""


def choose(codec: str, pixel_format: str | None, width: int, height: int, min_pixels: int) -> Choice:
    """Whether NVDEC is asked for a video, and why not.

    codec, pixel_format: FFmpeg's names; None: not known. width, height, min_pixels: pixels. What it does not
    take after all, FFmpeg decodes on the CPU.
    """
    limits = _LIMITS.get(codec)
    if limits is None:
        return Choice(False, "cpu_codec")
    if pixel_format not in limits.formats:
        return Choice(False, "cpu_format")
    fits = limits.least[0] <= width <= limits.most[0] and limits.least[1] <= height <= limits.most[1]
    if not fits:
        return Choice(False, "cpu_size")
    if width * height < min_pixels:
        return Choice(False, "cpu_small")
    return Choice(True, "nvdec")


class Nvdec:
    """The decoder of a GPU, in a decode worker.

    It conceals errors and does not say so: damage inside pictures does not show, that of the container does.
    """

    def __init__(self, device: str, min_pixels: int) -> None:
        """See `NvdecSettings`. Raises RuntimeError if the GPU cannot be used."""
        import av
        from av.codec import Codec
        from av.codec.hwaccel import HWAccel

        self.decoder: str | None = None
        """What decodes the latest chunk: one of `DECODERS`."""
        self.min_pixels = min_pixels
        self.settings = HWAccel("cuda", device=device, options={"primary_ctx": "1"})
        try:
            # Every stream gets a reference to the GPU's primary context, which this one keeps alive.
            self._context = self.settings.create(Codec("h264", "r"))
        except (av.FFmpegError, NotImplementedError) as error:
            raise RuntimeError(f"NVDEC of GPU {device}: {error}") from error

    def note(self, pixel_format: str) -> None:
        """FFmpeg turns to the CPU by itself where the GPU has no decoder left, or none for this profile."""
        if pixel_format not in _GIVEN:
            self.decoder = "cpu_refused"
