from __future__ import annotations

import sys

import numpy as np
import pytest
import skimage.data

from streamer.errors import BackendError
from streamer.faces.consensus import Consensus
from streamer.types import Faces, UInt8Array

from .conftest import ASTRONAUT_BOX, Paste


def one_face(*box: float) -> Faces:
    return Faces(np.array([box], np.float32), np.array([0.9], np.float32), np.zeros((1, 6, 2), np.float32))


def test_no_faces() -> None:
    assert len(Consensus().confirm(skimage.data.astronaut(), Faces.empty())) == 0


def test_keeps_a_face_as_it_is() -> None:
    found = one_face(*ASTRONAUT_BOX)
    kept = Consensus().confirm(skimage.data.astronaut(), found)
    np.testing.assert_array_equal(kept.boxes, found.boxes)
    np.testing.assert_array_equal(kept.scores, found.scores)


def test_enlarges_a_small_face(scenery: UInt8Array, paste: Paste) -> None:
    frame, box = paste(scenery, 700, 500, 32)
    assert len(Consensus().confirm(frame, one_face(*box.tolist()))) == 1


@pytest.mark.parametrize(
    "box",
    [
        (300, 300, 400, 400),
        (20, 400, 110, 490),
        (180, 190, 280, 290),
        (-20, -20, 40, 40),
        (500, 500, 530, 530),
    ],
)
def test_rejects_what_is_no_face(box: tuple[float, ...]) -> None:
    assert len(Consensus().confirm(skimage.data.astronaut(), one_face(*box))) == 0


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)  # as if it were not installed
    with pytest.raises(BackendError, match=r"\.\[consensus\]"):
        Consensus()
