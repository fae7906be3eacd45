"""Videos and pictures of a data set -> frames, decoded as the service does.

Pictures are read by Pillow: it refuses half a file, where OpenCV fills the rest with grey. Videos are cut at
their keyframes, and pieces in which no frame is wanted are never decoded.
"""

from __future__ import annotations

import asyncio
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from streamer.config import DecodeConfig
from streamer.decode_pool import DecodePool
from streamer.errors import DecodeError
from streamer.messages import VideoChunk
from streamer.segment import Segment, segments_of
from streamer.training.types import Item
from streamer.types import Frame, UInt8Array, as_rgb

T = TypeVar("T")

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Pillow's names; JPEG includes what some phones write, several pictures in a file, of which the first is
taken."""

_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    TypeError,
    EOFError,
    struct.error,
)
"""What its plugins raise on damaged files."""

_PIECE_SECONDS = 2.0
"""Least length of a piece of video, as of `streamer score`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Frames wanted of one video."""

    count: int
    """> 0. A shorter video gives fewer, each of its frames once at most."""
    seed: int
    """>= 0; the same gives the same times."""
    cells: int | None = None
    """The times are drawn in so many equal parts of the video, at least `count`; None: as many."""
    choice: int = 0
    """Seed of the choice of `count` parts out of `cells`."""
    like: Path | None = None
    """Draw the times for the length of this video, the original of the one that is looked at."""


class FrameReader:
    """Reads items one after the other; to be closed."""

    def __init__(self, config: DecodeConfig) -> None:
        """config: limits, as for the service; `workers` is not looked at, one process decodes."""
        self._config = config.model_copy(update={"workers": 1})
        self._runner = asyncio.Runner()
        self._pool: DecodePool | None = None

    def close(self) -> None:
        """End the decoder; idempotent."""
        if self._pool is not None:
            self._runner.run(self._pool.close())
            self._pool = None
        self._runner.close()

    def look(self, item: Item, wanted: Wanted, at: Callable[[Frame], T]) -> list[T]:
        """What `at` says of each wanted frame, in order of time; a picture is one frame at 0 seconds.

        Frames are valid during the call of `at` only. Raises OSError if the file cannot be opened and
        DecodeError if it, or a part of it where a frame was wanted, cannot be decoded.
        """
        if item.media == "image":
            return [at(Frame(read_picture(item.path, self._config.max_pixels), 0.0))]
        return self._runner.run(self._look(item.path, wanted, at))

    async def _look(self, path: Path, wanted: Wanted, at: Callable[[Frame], T]) -> list[T]:
        if self._pool is None:  # pictures need none
            self._pool = DecodePool(self._config)
            await self._pool.start()
        seen: list[T] = []
        with closing(segments_of(path, _PIECE_SECONDS)) as pieces:
            for number, (piece, times) in enumerate(_share_out(pieces, path, wanted)):
                if not times:
                    continue
                chunk = VideoChunk(video_id=path.name, seq=number, data=piece.data)
                async with aclosing(self._pool.decode(chunk, times)) as batches:
                    async for batch in batches:
                        seen.extend(
                            at(Frame(as_rgb(frame).rgb, piece.start_seconds + frame.time_seconds))
                            for frame in batch.frames
                        )
        if not seen:
            raise DecodeError("no_frames", "no frame where one was wanted: the file is shorter than it says")
        return seen


def read_picture(path: Path, max_pixels: int) -> UInt8Array:
    """(height, width, 3) uint8 RGB, upright. Raises OSError if it cannot be opened, else DecodeError."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata, and about sizes, which are checked below
        Image.init()  # else Pillow knows no WebP until an open has failed
        try:
            with Image.open(file, formats=PICTURE_FORMATS) as picture:
                if picture.width * picture.height > max_pixels:
                    size = f"{picture.width}x{picture.height}"
                    raise DecodeError("too_large", f"{size} pixels, at most {max_pixels} (decode.max_pixels)")
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except DecodeError:
            raise
        except UnidentifiedImageError as error:
            raise DecodeError("not_media", f"no picture ({', '.join(PICTURE_FORMATS)})") from error
        except Image.DecompressionBombError as error:
            raise DecodeError("too_large", str(error)) from error
        except _PILLOW_ERRORS as error:
            raise DecodeError("damaged", f"Pillow: {error}") from error


def _share_out(
    pieces: Iterator[Segment], path: Path, wanted: Wanted
) -> Iterator[tuple[Segment, list[float]]]:
    """Of each piece the times of `draw_times` that fall into it, seconds since it starts."""
    left: list[float] | None = None
    for piece in pieces:
        if left is None:
            left = draw_times(_length_of(wanted.like) or piece.video_seconds or _read_length(path), wanted)
        end = math.inf if piece.is_last else piece.start_seconds + piece.duration_seconds
        times = [time for time in left if time < end]
        left = left[len(times) :]
        yield piece, [time - piece.start_seconds for time in times]
        if not left:
            return


def _length_of(path: Path | None) -> float | None:
    """Seconds of a video; None if it cannot be told."""
    if path is None:
        return None
    try:
        with closing(segments_of(path, _PIECE_SECONDS)) as pieces:
            stated = next(pieces).video_seconds
        return stated or _read_length(path)
    except (OSError, DecodeError):
        return None


def _read_length(path: Path) -> float:
    """Seconds of a video whose container does not state them, by reading it all."""
    with closing(segments_of(path, _PIECE_SECONDS)) as pieces:
        return max(piece.start_seconds + piece.duration_seconds for piece in pieces)


def draw_times(length_seconds: float, wanted: Wanted) -> list[float]:
    """One time in each of the parts of [0, length_seconds), uniform in it, ascending; `count` of these, one
    in each of as many equal parts of them."""
    cells = wanted.cells or wanted.count
    times = (np.arange(cells) + np.random.default_rng(wanted.seed).random(cells)) * (length_seconds / cells)
    choice = np.random.default_rng(wanted.choice)
    return [float(choice.choice(part)) for part in np.array_split(times, wanted.count)]
