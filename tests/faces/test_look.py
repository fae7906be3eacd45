from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from streamer.backends.base import Network
from streamer.faces.look import Seen, cut_by_window, join, look
from streamer.faces.resize import Pyramid
from streamer.faces.windows import whole_frame

FRAME = np.array([[1000, 800]], np.float32)
WINDOW = np.array([[0, 100, 640, 740]], np.int32)  # at the frame's left edge


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((10, 110, 60, 160), False),
        ((-10, 110, 60, 160), False),  # beyond the frame, not only beyond the window
        ((10, 95, 60, 160), True),
        ((600, 300, 645, 345), True),
        ((300, 700, 360, 760), True),
    ],
)
def test_cut_by_window(box: tuple[float, ...], cut: bool) -> None:
    points = np.zeros((1, 8, 2), np.float32)
    points[0, :2] = np.array(box).reshape(2, 2)
    assert cut_by_window(points, WINDOW, FRAME).tolist() == [cut]


def test_nothing_to_look_at(networks: dict[str, Network]) -> None:
    frames = [Pyramid(np.zeros((10, 10, 3), np.uint8))] * 2
    seen = look(networks["short_range"], frames, [np.zeros((0, 4), np.int32)] * 2, 0.5)
    assert [len(each) for each in seen] == [0, 0]
    assert look(networks["short_range"], [], [], 0.5) == []
    assert len(join([])) == len(join([Seen.nothing()])) == 0
    assert len(Seen.nothing().blend(0.3)) == 0


def test_every_window_on_its_own(networks: dict[str, Network]) -> None:
    frame = Pyramid(skimage.data.astronaut())
    windows = np.concatenate([whole_frame(512, 512), [[100, 0, 356, 256]], [[0, 300, 200, 500]]]).astype(
        np.int32
    )
    (seen,) = look(networks["short_range"], [frame], [windows], 0.7)
    assert set(np.round(seen.scales, 3)) == {0.25, 0.5}  # she is in the first two
    one = seen.blend(0.3)
    assert len(one) == 1
    assert one.scales.tolist() == [0.5]
    np.testing.assert_allclose(one.faces.boxes[0], [177, 81, 272, 175], atol=8)
