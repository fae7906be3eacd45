"""HDR pictures are shown to the networks as an ordinary screen shows them."""

from __future__ import annotations

import av
import media
import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from decoding import decode
from numpy.typing import NDArray

from streamer.hdr import tone_mapped
from streamer.picture import SampledFrame


def grey(value: float) -> NDArray[np.uint16]:
    return np.full((70, 5, 3), round(65535 * value), np.uint16)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, 0),
        (0.38, 108),  # 26 cd/m2 (BT.2408, table 1), of 203: 255 * (26 / 203) ** (1 / 2.4)
        (0.5081, 190),  # 100 cd/m2
        (0.58, 241),  # 203 cd/m2, paper: 7/8 of the screen's white leave room for what is brighter
        (1.0, 255),
    ],
)
def test_greys(value: float, shown: int) -> None:
    out = tone_mapped(grey(value))
    assert out.dtype == np.uint8
    assert out.shape == (70, 5, 3)
    assert abs(out.astype(int) - shown).max() <= 2


def test_brighter_is_never_darker() -> None:
    ramp = np.repeat(np.arange(0, 65536, 16, dtype=np.uint16)[None, :, None], 3, axis=2)
    assert (np.diff(tone_mapped(ramp)[0, :, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_clip_that_says_it_is_hdr(container: str) -> None:
    shown, as_it_is = (shade(container, transfer) for transfer in ("smpte2084", None))
    expected = tone_mapped(grey(as_it_is.mean() / 255))[0, 0].astype(int)
    assert shown == pytest.approx(expected, abs=12)
    assert abs(expected - as_it_is.mean()).min() > 10


def test_hlg_is_shown_as_it_is() -> None:
    assert shade("mp4", "arib-std-b67") == pytest.approx(shade("mp4", None), abs=12)


def shade(container: str, transfer: str | None) -> NDArray[np.int64]:
    """RGB of the grey between the corners."""
    tags = f":colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc" if transfer else ""
    options = {"x265-params": f"log-level=none{tags}"}
    data = media.encode(container, "hevc", frames=3, pix_fmt="yuv420p10le", options=options)
    (frame, *_) = decode(data)[1]
    return np.asarray(frame[10, 64], np.int64)


def test_the_gpu_does_not_convert_it() -> None:
    picture = av.VideoFrame(16, 16, "yuv420p")
    assert SampledFrame(picture, 0.0, (16, 16)).yuv_layout() is not None
    picture.color_trc = ColorTrc.SMPTE2084
    assert SampledFrame(picture, 0.0, (16, 16)).yuv_layout() is None
