from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import media
import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamer.config import DecodeConfig
from streamer.errors import DecodeError
from streamer.training.frames import FrameReader, Wanted, draw_times, read_picture
from streamer.training.types import Item
from streamer.types import Frame, UInt8Array

MAX_PIXELS = 1_000_000
Look = Callable[..., list[tuple[int, float]]]


@pytest.fixture(scope="module")
def reader() -> Iterator[FrameReader]:
    made = FrameReader(DecodeConfig())
    yield made
    made.close()
    made.close()


def item(path: Path, kind: str = "video") -> Item:
    return Item(path, kind, 0, "real", "folder", ("g",))  # type: ignore[arg-type]


def seen(frame: Frame) -> tuple[int, float]:
    return media.index_of(frame.rgb), frame.time_seconds


def clip(folder: Path, container: str = "mp4", **settings: object) -> Path:
    path = folder / f"clip.{container}"
    path.write_bytes(media.encode(container, **settings))  # type: ignore[arg-type]
    return path


# videos


@pytest.mark.parametrize("gop", [15, 300])
def test_as_many_frames_as_wanted_spread_over_the_video(
    tmp_path: Path, reader: FrameReader, gop: int
) -> None:
    video = item(clip(tmp_path, frames=240, gop=gop))  # 8 s, in four pieces or one
    found = reader.look(video, Wanted(8, seed=1), seen)
    assert len(found) == 8
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    for number, seconds in found:
        assert seconds == pytest.approx(number / media.FPS, abs=1e-3)
    assert numbers == [int(time * media.FPS) for time in draw_times(8.0, Wanted(8, seed=1))]


def test_the_seed_decides(tmp_path: Path, reader: FrameReader) -> None:
    video = item(clip(tmp_path, frames=150))
    first = reader.look(video, Wanted(5, seed=1), seen)
    assert reader.look(video, Wanted(5, seed=1), seen) == first
    assert reader.look(video, Wanted(5, seed=2), seen) != first


@pytest.mark.parametrize("frames", [1, 4])
def test_a_short_video_gives_fewer(tmp_path: Path, reader: FrameReader, frames: int) -> None:
    found = reader.look(item(clip(tmp_path, frames=frames)), Wanted(20, seed=1), seen)
    assert {number for number, _ in found} <= set(range(frames))
    assert len({number for number, _ in found}) == len(found) > frames / 2


def test_pieces_without_a_wanted_frame_are_not_decoded(tmp_path: Path, reader: FrameReader) -> None:
    """One frame of a video of three pieces, of which the others are damaged."""
    times = [draw_times(6.0, Wanted(1, seed))[0] for seed in range(40)]
    seed = next(k for k, time in enumerate(times) if 2.5 < time < 3.5)
    path = clip(tmp_path, frames=180, gop=60)
    data = bytearray(path.read_bytes())
    mdat = next((start, size) for start, kind, size in media.mp4_boxes(bytes(data)) if kind == b"mdat")
    for share in (0.1, 0.9):  # of the pictures, in the first and in the last piece
        place = mdat[0] + int(share * mdat[1])
        data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    found = reader.look(item(path), Wanted(1, seed), seen)
    assert [60 <= number < 120 for number, _ in found] == [True]
    with pytest.raises(DecodeError):
        reader.look(item(path), Wanted(12, seed), seen)


def test_a_container_that_does_not_state_its_length(tmp_path: Path, reader: FrameReader) -> None:
    path = clip(tmp_path, "matroska", frames=240, gop=60, muxer_options={"live": "1"})
    numbers = [number for number, _ in reader.look(item(path), Wanted(4, seed=1), seen)]
    assert [number // 60 for number in numbers] == [0, 1, 2, 3]


def test_upright(tmp_path: Path, reader: FrameReader) -> None:
    path = clip(tmp_path, frames=3, rotation=90)
    (corners,) = reader.look(item(path), Wanted(1, seed=1), lambda frame: media.corners_of(frame.rgb))
    assert corners == [1, 2, 3, 0]  # a quarter counterclockwise


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "not_media"), (b"no video" * 100, "not_media"), (None, "no_video")]
)
def test_no_video(tmp_path: Path, reader: FrameReader, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(media.encode("mp4", frames=60)[:800] if content is None else content)
    with pytest.raises(DecodeError) as error:
        reader.look(item(path), Wanted(1, seed=1), seen)
    assert error.value.reason in (reason, "not_media")
    assert len(reader.look(item(clip(tmp_path)), Wanted(2, seed=1), seen)) == 2  # goes on


def test_no_file(tmp_path: Path, reader: FrameReader) -> None:
    for kind in ("video", "image"):
        with pytest.raises(FileNotFoundError):
            reader.look(item(tmp_path / "none", kind), Wanted(1, seed=1), seen)


def test_frames_like_those_of_an_original(tmp_path: Path, reader: FrameReader) -> None:
    """Other keyframes, another length: a fake, or an original, has the same frames, or some of them."""
    (tmp_path / "original").mkdir()
    original = clip(tmp_path / "original", frames=240, gop=300)
    of_original = reader.look(item(original), Wanted(8, seed=1, cells=8, choice=3), seen)
    fake = item(clip(tmp_path, "matroska", frames=230, gop=50))
    few = reader.look(fake, Wanted(3, seed=1, cells=8, choice=2, like=original), seen)
    assert len(few) == 3
    numbers = [number for number, _ in of_original]
    assert {number for number, _ in few} <= set(numbers)
    missing = tmp_path / "gone.mp4"
    alone = reader.look(fake, Wanted(3, seed=1, cells=8, choice=2, like=missing), seen)
    assert alone == reader.look(fake, Wanted(3, seed=1, cells=8, choice=2), seen)


def test_a_much_shorter_fake_gives_its_last_frame(tmp_path: Path, reader: FrameReader) -> None:
    (tmp_path / "original").mkdir()
    original = clip(tmp_path / "original", frames=240)
    wanted = Wanted(8, seed=1, like=original)
    assert [number for number, _ in reader.look(item(clip(tmp_path, frames=3)), wanted, seen)] == [2]


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 2**63))
def test_some_of_the_times(count: int, more: int, choice: int) -> None:
    """One of each of `count` equal parts of them."""
    cells = count + more
    times = draw_times(9.0, Wanted(cells, 5))
    some = draw_times(9.0, Wanted(count, 5, cells=cells, choice=choice))
    places = [times.index(time) for time in some]
    assert places == sorted(set(places))
    parts = np.array_split(np.arange(cells), count)
    assert all(place in part for place, part in zip(places, parts, strict=True))


@given(st.floats(0.01, 1000), st.integers(1, 50), st.integers(0, 2**63))
def test_one_time_in_each_part(length: float, count: int, seed: int) -> None:
    times = draw_times(length, Wanted(count, seed))
    assert [int(time / length * count * (1 + 1e-12)) for time in times] == list(range(count))


# pictures


@pytest.fixture(scope="module")
def photo() -> UInt8Array:
    return np.ascontiguousarray(skimage.data.astronaut()[:200, 100:400])  # (200, 300, 3)


def test_picture_is_one_frame(tmp_path: Path, reader: FrameReader, photo: UInt8Array) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    (frame,) = reader.look(item(tmp_path / "a.png", "image"), Wanted(10, seed=1), lambda frame: frame)
    assert frame.time_seconds == 0
    np.testing.assert_array_equal(frame.rgb, photo)


@pytest.mark.parametrize("kind", ["jpg", "webp", "bmp"])
def test_picture_formats(tmp_path: Path, photo: UInt8Array, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(photo).save(path, quality=95)
    read = read_picture(path, MAX_PIXELS)
    assert read.shape == photo.shape
    assert np.abs(read.astype(int) - photo).mean() < 4


def test_picture_is_turned_upright(tmp_path: Path, photo: UInt8Array) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise
    Image.fromarray(np.rot90(photo)).save(path, quality=95, exif=exif)
    assert np.abs(read_picture(path, MAX_PIXELS).astype(int) - photo).mean() < 4


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_becomes_rgb(tmp_path: Path, photo: UInt8Array, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(photo).convert(mode).save(path)
    read = read_picture(path, MAX_PIXELS)
    assert (read.shape, read.dtype) == (photo.shape, np.uint8)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_half_a_picture_is_none(tmp_path: Path, photo: UInt8Array, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(photo).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DecodeError) as error:
        read_picture(path, MAX_PIXELS)
    assert error.value.reason == "damaged"


def test_a_flipped_byte_in_a_png_is_damage(tmp_path: Path, photo: UInt8Array) -> None:
    path = tmp_path / "a.png"
    content = bytearray(cv2.imencode(".png", photo)[1].tobytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DecodeError) as error:
        read_picture(path, MAX_PIXELS)
    assert error.value.reason == "damaged"


def test_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("no picture")
    with pytest.raises(DecodeError) as error:
        read_picture(path, MAX_PIXELS)
    assert error.value.reason == "not_media"


@pytest.mark.parametrize("side", [2000, 20_000])
def test_a_picture_too_large(tmp_path: Path, side: int) -> None:
    """Ours to refuse, and, where it is larger still, Pillow's."""
    path = tmp_path / "a.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(DecodeError, match="pixels") as error:
        read_picture(path, MAX_PIXELS)
    assert error.value.reason == "too_large"
