from __future__ import annotations

import numpy as np
import pytest

from streamer.errors import ManifestError
from streamer.faces.anchors import make_anchors


@pytest.mark.parametrize(("size", "count"), [(128, 896), (256, 896), (192, 2304)])
def test_counts_as_published(size: int, count: int) -> None:
    anchors = make_anchors(size)
    assert anchors.shape == (count, 2)
    assert anchors.dtype == np.float32
    assert (anchors > 0).all()
    assert (anchors < 1).all()


@pytest.mark.parametrize("size", [128, 256])
def test_two_then_six_per_cell_row_major(size: int) -> None:
    anchors = make_anchors(size)
    np.testing.assert_allclose(anchors[:2], [[0.5 / 16, 0.5 / 16]] * 2)
    np.testing.assert_allclose(anchors[2], [1.5 / 16, 0.5 / 16])  # x runs first
    np.testing.assert_allclose(anchors[32], [0.5 / 16, 1.5 / 16])
    np.testing.assert_allclose(anchors[511], [15.5 / 16, 15.5 / 16])
    np.testing.assert_allclose(anchors[512:518], [[0.5 / 8, 0.5 / 8]] * 6)
    np.testing.assert_allclose(anchors[-1], [7.5 / 8, 7.5 / 8])


def test_full_range_has_one_per_cell() -> None:
    anchors = make_anchors(192)
    np.testing.assert_allclose(anchors[0], [0.5 / 48, 0.5 / 48])
    np.testing.assert_allclose(anchors[49], [1.5 / 48, 1.5 / 48])
    assert len(np.unique(anchors, axis=0)) == 2304


def test_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        make_anchors(128)[0] = 0


def test_unknown_size_is_named() -> None:
    with pytest.raises(ManifestError, match="300 px"):
        make_anchors(300)
