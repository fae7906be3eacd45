"""HDR pictures are shown to the networks as an ordinary screen shows them."""

from __future__ import annotations

import av
import media
import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from numpy.typing import NDArray
from test_decode import decode

from streamer.hdr import HLG, PQ, tone_mapped
from streamer.picture import SampledFrame


def grey(value: float) -> NDArray[np.uint16]:
    return np.full((70, 5, 3), round(65535 * value), np.uint16)


@pytest.mark.parametrize(
    ("transfer", "value", "shown"),
    [
        (PQ, 0.0, 0),
        (PQ, 0.38, 108),  # 26 cd/m2 (BT.2408, table 1), of 203: 255 * (26 / 203) ** (1 / 2.4)
        (PQ, 0.5081, 190),  # 100 cd/m2
        (HLG, 0.0, 0),
        (HLG, 0.38, 108),  # 26 cd/m2, on a screen of 1000
        (HLG, 0.75, 241),  # 203 cd/m2, paper: 7/8 of the screen's white leave room for what is brighter
        (PQ, 0.58, 241),
        (HLG, 1.0, 252),
        (PQ, 1.0, 255),
    ],
)
def test_greys(transfer: int, value: float, shown: int) -> None:
    out = tone_mapped(grey(value), transfer)
    assert out.dtype == np.uint8
    assert out.shape == (70, 5, 3)
    assert abs(out.astype(int) - shown).max() <= 2


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_brighter_is_never_darker(transfer: int) -> None:
    ramp = np.repeat(np.arange(0, 65536, 16, dtype=np.uint16)[None, :, None], 3, axis=2)
    assert (np.diff(tone_mapped(ramp, transfer)[0, :, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize(("transfer", "name"), [(PQ, "smpte2084"), (HLG, "arib-std-b67")])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_clip_that_says_it_is_hdr(container: str, transfer: int, name: str) -> None:
    tags = f"log-level=none:colorprim=bt2020:transfer={name}:colormatrix=bt2020nc"
    data = media.encode(container, "hevc", frames=3, pix_fmt="yuv420p10le", options={"x265-params": tags})
    plain = media.encode(
        container, "hevc", frames=3, pix_fmt="yuv420p10le", options={"x265-params": "log-level=none"}
    )
    (shown, *_), (as_it_is, *_) = decode(data)[1], decode(plain)[1]
    value = as_it_is[10, 64].mean() / 255  # between the corners, grey
    expected = tone_mapped(grey(value), transfer)[0, 0].astype(int)
    assert shown[10, 64].astype(int) == pytest.approx(expected, abs=12)
    assert abs(expected - 255 * value).min() > 10


def test_the_gpu_does_not_convert_it() -> None:
    picture = av.VideoFrame(16, 16, "yuv420p")
    assert SampledFrame(picture, 0.0, (16, 16)).yuv_layout() is not None
    picture.color_trc = ColorTrc.SMPTE2084
    assert SampledFrame(picture, 0.0, (16, 16)).yuv_layout() is None
