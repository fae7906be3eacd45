"""The detector with the real networks on real pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data

from streamer.backends.base import Network
from streamer.backends.images import thumbnails, to_array
from streamer.config import FacesConfig
from streamer.errors import ManifestError
from streamer.faces.crop import crop_faces
from streamer.faces.detect import FaceDetector
from streamer.faces.look import Seen, look
from streamer.faces.nms import overlaps
from streamer.faces.resize import Pyramid
from streamer.faces.track import Tails, assign_tracks
from streamer.faces.windows import IntArray
from streamer.manifest import Manifest
from streamer.types import Faces, Float32Array, UInt8Array

from .conftest import ASTRONAUT_BOX, MakeDetector, Paste

SMALL_PLACES = [(300, 300), (952, 180), (1500, 700), (620, 980), (1850, 500)]
"""(x, y) of 24 px faces: in the middle of matrix windows, on their seams, near the frame's edge."""


def iou(faces: Faces, box: Float32Array | tuple[float, ...]) -> float:
    """Of the face that matches best."""
    over_union, _ = overlaps(faces.boxes, np.array([box], np.float32))
    return float(over_union.max(initial=0))


def test_no_frames(make_detector: MakeDetector) -> None:
    detector = make_detector()
    assert detector.detect([]) == []
    assert detector.detect_sequences([]) == []
    assert detector.detect_sequences([[], []]) == [[], []]


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 8, 3), (3, 900, 3), (900, 2, 3), (719, 1279, 3)])
def test_a_frame_of_any_shape_without_a_face(make_detector: MakeDetector, shape: tuple[int, ...]) -> None:
    (faces,) = make_detector().detect([np.full(shape, 90, np.uint8)])
    assert len(faces) == 0


@pytest.mark.parametrize("name", ["short_range", "back", "full_range"])
def test_astronaut_by_each_network_alone(networks: dict[str, Network], name: str) -> None:
    (faces,) = FaceDetector(networks[name], FacesConfig(windows=())).detect([skimage.data.astronaut()])
    assert iou(faces, ASTRONAUT_BOX) > 0.75


def test_astronaut_where_the_original_sees_her(make_detector: MakeDetector) -> None:
    (faces,) = make_detector().detect([skimage.data.astronaut()])
    assert len(faces) == 1
    np.testing.assert_allclose(faces.boxes[0], ASTRONAUT_BOX, atol=5)
    right_eye, left_eye, nose, mouth, right_ear, left_ear = faces.keypoints[0]
    assert right_ear[0] < right_eye[0] < nose[0] < left_eye[0] < left_ear[0]
    assert max(right_eye[1], left_eye[1]) < nose[1] < mouth[1]


@pytest.mark.parametrize(("x", "y"), SMALL_PLACES)
def test_24_px_face_in_1080p_needs_windows(
    make_detector: MakeDetector, scenery: UInt8Array, paste: Paste, x: int, y: int
) -> None:
    frame, box = paste(scenery, x, y, 24)
    (with_windows,) = make_detector().detect([frame])
    (without,) = make_detector(windows=()).detect([frame])
    assert iou(with_windows, box) > 0.4
    assert iou(without, box) == 0


@pytest.mark.parametrize("height_px", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("transposed", [False, True])
def test_larger_faces_in_wide_and_in_high_frames(
    make_detector: MakeDetector, scenery: UInt8Array, paste: Paste, height_px: int, transposed: bool
) -> None:
    if transposed:
        scenery = np.ascontiguousarray(scenery[:, :1080].repeat(2, axis=0)[:1920])
    frame, box = paste(scenery, 400, 400, height_px)
    (faces,) = make_detector().detect([frame])
    assert iou(faces, box) > 0.5
    assert np.abs(faces.boxes - box).max(axis=1).min() < max(8, 0.25 * height_px)


@pytest.mark.parametrize("side", [140, 180, 256])
def test_a_face_that_fills_the_frame(make_detector: MakeDetector, side: int) -> None:
    left, top = 225 - side // 2, max(0, 125 - side // 2)
    frame = skimage.data.astronaut()[top : top + side, left : left + side]
    (faces,) = make_detector().detect([frame])
    assert iou(faces, np.array(ASTRONAUT_BOX, np.float32) - [left, top, left, top]) > 0.7


def test_no_face_in_the_scenery(make_detector: MakeDetector, scenery: UInt8Array) -> None:
    assert [len(f) for f in make_detector().detect([scenery, scenery[:540]])] == [0, 0]


def test_frames_of_a_batch_do_not_mix(make_detector: MakeDetector, scenery: UInt8Array, paste: Paste) -> None:
    frames = [scenery, paste(scenery, 300, 300, 100)[0], skimage.data.astronaut(), scenery[:700, :500]]
    detector = make_detector()
    together = detector.detect(frames)
    assert [len(f) for f in together] == [0, 1, 1, 0]
    for frame, faces in zip(frames, together, strict=True):
        (alone,) = detector.detect([frame])
        np.testing.assert_array_equal(alone.boxes, faces.boxes)
        np.testing.assert_array_equal(alone.scores, faces.scores)


def test_two_people_are_two_tracks(make_detector: MakeDetector, scenery: UInt8Array, paste: Paste) -> None:
    tails: Tails | None = None
    was_left: list[bool] = []
    for step in range(3):  # they walk towards each other
        frame, _ = paste(scenery, 300 + 12 * step, 300, 80)
        frame, _ = paste(frame, 1400 - 12 * step, 500, 60)
        (faces,) = make_detector().detect([frame])
        assert len(faces) == 2
        crops = to_array(thumbnails(crop_faces(frame, faces.boxes, margin=0.3, size=224), 8))
        looks = crops.reshape(2, 64).astype(np.float32)
        order = np.arange(2)
        if tails is not None:
            tracks = assign_tracks(tails, faces.boxes, looks, min_iou=0.3, max_gap_seconds=2.0)
            assert sorted(tracks) == [0, 1]
            order = np.argsort(tracks)
        boxes = faces.boxes[order]
        is_left = (boxes[:, 0] < 850).tolist()
        assert sorted(is_left) == [False, True]
        assert not was_left or is_left == was_left  # each track is still of the same one
        tails, was_left = Tails(boxes, boxes, np.full(2, 0.25), looks[order]), is_left


def test_a_small_face_is_followed_between_scans(
    make_detector: MakeDetector, scenery: UInt8Array, paste: Paste
) -> None:
    frames, boxes = zip(*(paste(scenery, 300 + 6 * k, 300 + 3 * k, 30) for k in range(8)), strict=True)
    (followed,) = make_detector(scan_every=8).detect_sequences([list(map(Pyramid, frames))])
    assert [iou(faces, box) > 0.4 for faces, box in zip(followed, boxes, strict=True)] == [True] * 8
    # In the middle frame, which is scanned, there is nothing to follow.
    (unseen,) = make_detector(scan_every=3).detect_sequences(
        [list(map(Pyramid, [frames[0], scenery, frames[1]]))]
    )
    assert [len(faces) for faces in unseen] == [0, 0, 0]


@pytest.mark.parametrize(
    ("every", "count", "scanned"),
    [(1, 3, [0, 1, 2]), (8, 1, [0]), (8, 2, [1]), (8, 8, [4]), (4, 8, [2, 6]), (4, 9, [1, 4, 7]), (8, 0, [])],
)
def test_which_frames_are_scanned(
    make_detector: MakeDetector, monkeypatch: pytest.MonkeyPatch, every: int, count: int, scanned: list[int]
) -> None:
    frames = [np.full((700, 900, 3), 80 + k, np.uint8) for k in range(count)]
    looked_at: list[int] = []

    def note(network: Network, pyramids: list[Pyramid], windows: list[IntArray], score: float) -> list[Seen]:
        if network.manifest.name == "blazeface_back":
            looked_at.extend(k for k, each in enumerate(windows) if len(each))
        return look(network, pyramids, windows, score)

    monkeypatch.setattr("streamer.faces.detect.look", note)
    make_detector(scan_every=every).detect_sequences([list(map(Pyramid, frames))])
    assert looked_at == scanned


def test_sequences_come_back_in_their_shape(make_detector: MakeDetector, scenery: UInt8Array) -> None:
    astronaut = skimage.data.astronaut()
    found = make_detector().detect_sequences(
        [[Pyramid(astronaut)], [], list(map(Pyramid, [scenery, astronaut, astronaut]))]
    )
    assert [[len(f) for f in sequence] for sequence in found] == [[1], [], [0, 1, 1]]


def test_min_height_and_most_faces(make_detector: MakeDetector) -> None:
    astronaut = skimage.data.astronaut()
    assert len(make_detector(min_height_px=120).detect([astronaut])[0]) == 0
    crowd = np.tile(cv2.resize(astronaut[:300], (340, 200)), (3, 4, 1))
    everyone = make_detector().detect([crowd])[0]
    assert (len(everyone), everyone.left_out) == (12, 0)
    best = make_detector(max_faces_per_frame=5).detect([crowd])[0]
    assert len(best) == 5
    near = np.tile(astronaut[:220, 120:340], (2, 3, 1))
    best = make_detector(max_faces_per_frame=4).detect([near])[0]
    assert (len(best), best.left_out) == (4, 2)


def test_consensus_is_applied(make_detector: MakeDetector) -> None:
    astronaut = skimage.data.astronaut()
    assert len(make_detector(consensus=True).detect([astronaut])[0]) == 1


class Renamed:
    """A network under another manifest; never run."""

    def __init__(self, network: Network, **changes: object) -> None:
        self._network = network
        self.manifest: Manifest = network.manifest.model_copy(update=changes)
        self.device = network.device

    def run(self, images: UInt8Array) -> tuple[Float32Array, ...]:
        return self._network.run(images)

    def close(self) -> None:
        pass


def test_refuses_what_is_no_face_detector(networks: dict[str, Network]) -> None:
    short = networks["short_range"]
    with pytest.raises(ManifestError, match="not a face detector"):
        FaceDetector(Renamed(short, kind="classifier"), FacesConfig())
    wide = short.manifest.input.model_copy(update={"width": 256})
    with pytest.raises(ManifestError, match="not a face detector"):
        FaceDetector(short, FacesConfig(), scanner=Renamed(short, input=wide))
