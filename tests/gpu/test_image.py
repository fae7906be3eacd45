"""The arithmetic of the GPU path against that of the CPU path: same frames, on PyTorch's CPU device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import av  # noqa: E402
import cv2  # noqa: E402
import skimage.data  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from streamer.backends.images import thumbnails, to_array  # noqa: E402
from streamer.demo_clips import demo_clips  # noqa: E402
from streamer.faces.crop import crop_faces  # noqa: E402
from streamer.faces.resize import Pyramid  # noqa: E402
from streamer.faces.windows import coarse_windows, squares  # noqa: E402
from streamer.gpu.image import TorchImage, area_weights, yuv_to_rgb  # noqa: E402
from streamer.picture import SampledFrame  # noqa: E402
from streamer.types import YuvLayout  # noqa: E402

pytestmark = pytest.mark.needs_torch

CPU = torch.device("cpu")


def on_device(rgb: np.ndarray) -> TorchImage:
    return TorchImage(torch.from_numpy(rgb).permute(2, 0, 1))


def frame(width: int, height: int) -> np.ndarray:
    """A photograph repeated until it fills the frame."""
    photograph = skimage.data.astronaut()
    rows, columns = np.arange(height) % 512, np.arange(width) % 512
    return np.ascontiguousarray(photograph[rows[:, None], columns])


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (641, 359), (360, 640), (97, 61)])
@pytest.mark.parametrize("size", [128, 192, 256])
def test_windows_are_those_of_the_cpu(width: int, height: int, size: int) -> None:
    rgb = frame(width, height)
    windows = np.concatenate(
        [
            coarse_windows(width, height, ("horizontal", "vertical"), 0.15),
            squares(width, height, 301, 0.15),
            np.array([[width - 40, height - 50, width, height], [3, 5, 64, 61]], np.int32),
        ]
    )
    expected, placed = Pyramid(rgb).cut(windows, size)
    inputs, placed_too = on_device(rgb).cut(windows, size)
    np.testing.assert_array_equal(placed_too, placed)
    np.testing.assert_array_equal(inputs, expected)


@pytest.mark.parametrize("size", [160, 192, 224])
def test_thumbnails_are_those_of_the_cpu(size: int) -> None:
    crops = np.stack(
        [cv2.resize(skimage.data.astronaut(), (size, size)), np.full((size, size, 3), 7, np.uint8)]
    )
    expected = thumbnails(crops, 8)
    got = to_array(thumbnails(torch.from_numpy(crops), 8))
    assert expected.shape == got.shape == (2, 8, 8)
    assert expected.dtype == got.dtype == np.uint8
    assert differences(got, expected).max() <= 1


@settings(max_examples=60)
@given(
    x=st.floats(-200, 900, width=32),
    y=st.floats(-200, 600, width=32),
    w=st.floats(1, 700, width=32),
    h=st.floats(1, 700, width=32),
    size=st.sampled_from([64, 192]),
)
def test_crops_are_those_of_the_cpu(x: float, y: float, w: float, h: float, size: int) -> None:
    rgb, boxes = frame(800, 500), np.array([[x, y, x + w, y + h]], np.float32)
    expected = crop_faces(rgb, boxes, margin=0.3, size=size)
    got = on_device(rgb).crop(boxes, margin=0.3, size=size).numpy()
    if 1.6 * max(w, h) < size - 1:
        np.testing.assert_array_equal(got, expected)
    else:  # OpenCV sums areas in another order
        assert differences(got, expected).max() <= 1
        assert differences(got, expected).mean() < 0.05


class Operators(TorchDispatchMode):
    """Notes which are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_windows_are_put_where_they_belong_by_the_device() -> None:
    """An index in memory, of `index_put_`, would let a GPU and the host wait for each other."""
    windows = np.array([[0, 0, 640, 480], [0, 0, 100, 100], [10, 10, 630, 470]], np.int32)
    picture = on_device(frame(640, 480))
    with Operators() as several:
        picture.cut(windows, 128)
    assert "index_copy_" in several.names
    assert not any(name.startswith("index_put") for name in several.names)
    with Operators() as one:
        picture.cut(windows[:1], 128)
    assert not any(name.startswith(("index_copy", "index_put")) for name in one.names)


def test_no_windows_and_no_boxes() -> None:
    picture = on_device(frame(64, 48))
    inputs, placed = picture.cut(np.zeros((0, 4), np.int32), 128)
    assert inputs.shape == (0, 128, 128, 3)
    assert placed.shape == (0, 4)
    assert picture.crop(np.zeros((0, 4), np.float32), margin=0.3, size=32).shape == (0, 32, 32, 3)


def test_the_frame_comes_back() -> None:
    rgb = frame(33, 21)
    picture = on_device(rgb)
    assert (picture.width, picture.height) == (33, 21)
    np.testing.assert_array_equal(picture.rgb(), rgb)


@pytest.mark.parametrize(("length", "size"), [(7, 3), (64, 64), (100, 37), (3, 1)])
def test_weights_of_every_pixel_sum_to_one(length: int, size: int) -> None:
    np.testing.assert_allclose(area_weights(length, size, CPU).sum(1), 1, atol=1e-5)


def pictures(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))[::40]


def as_sampled(picture: av.VideoFrame) -> SampledFrame:
    return SampledFrame(picture, 0.0, (picture.height, picture.width))


@pytest.mark.parametrize("clip", sorted(demo_clips()[1].parent.glob("*.mp4")), ids=lambda path: path.stem)
def test_colours_are_those_of_swscale(clip: Path) -> None:
    for picture in pictures(clip):
        sampled = as_sampled(picture)
        layout = sampled.yuv_layout()
        assert layout is not None
        planes, rgb = np.empty(layout.bytes, np.uint8), np.empty(sampled.shape(), np.uint8)
        sampled.write_yuv(planes)
        sampled.write_rgb(rgb)
        got = yuv_to_rgb(torch.from_numpy(planes), layout).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(got, rgb)


@pytest.mark.parametrize("kind", ["yuv420p", "yuvj420p", "nv12"])
@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (66, 50)])
def test_every_matrix_and_range(kind: str, matrix: int, width: int, height: int) -> None:
    rng = np.random.default_rng(5)
    smooth = np.kron(rng.integers(20, 236, (height // 2, width // 2, 3)), np.ones((2, 2, 1))).astype(np.uint8)
    picture = av.VideoFrame.from_ndarray(smooth, format="rgb24").reformat(format=kind, dst_colorspace=matrix)
    picture.colorspace = matrix
    sampled = as_sampled(picture)
    layout = sampled.yuv_layout()
    assert layout is not None
    assert (layout.interleaved, layout.matrix) == (kind == "nv12", matrix)
    planes, rgb = np.empty(layout.bytes, np.uint8), np.empty(sampled.shape(), np.uint8)
    sampled.write_yuv(planes)
    sampled.write_rgb(rgb)
    got = yuv_to_rgb(torch.from_numpy(planes), layout).permute(1, 2, 0).numpy()
    assert differences(got, rgb).max() <= 1
    assert differences(got, rgb).mean() < 0.1


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_upright_as_the_cpu_turns(turns: int, mirrored: bool) -> None:
    luma = np.arange(6 * 4, dtype=np.uint8) * 10
    planes = np.concatenate([luma, np.full(2 * 3 * 2, 128, np.uint8)])
    grey = luma.reshape(6, 4)
    expected = np.rot90(grey[:, ::-1] if mirrored else grey, turns)
    layout = YuvLayout(6, 4, False, 1, True, turns, mirrored)
    got = yuv_to_rgb(torch.from_numpy(planes), layout)
    for channel in got.numpy():
        np.testing.assert_array_equal(channel, expected)


def test_odd_sizes_share_chroma_at_the_edge() -> None:
    layout = YuvLayout(3, 5, False, 1, True, 0, False)
    planes = np.full(layout.bytes, 128, np.uint8)
    assert layout.bytes == 15 + 2 * 2 * 3
    assert yuv_to_rgb(torch.from_numpy(planes), layout).shape == (3, 3, 5)
