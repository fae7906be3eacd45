"""Make the two clips that `streamer demo` publishes, from a photograph in the public domain.

    python scripts/make_demo_clips.py [FOLDER]     (default: streamer/demo_clips; needs the extra `dev`)

Source: NASA's portrait of astronaut Eileen Collins, a work of the United States government, as scikit-image
ships it (`skimage.data.astronaut`). A camera moves over the photograph with a little sensor noise. In the
second clip the face is manipulated by self-blending (Shiohara and Yamasaki, CVPR 2022): a copy of the face,
shifted in colour, softened and slightly warped, is blended over the original under a soft mask, and moves a
little in every frame.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.data import astronaut

FPS = 25
SECONDS = 14
WIDTH, HEIGHT = 1280, 720
SCALE = 4  # the photograph, 512 px, is enlarged first so that the blending is drawn finely
FACE = (177, 81, 272, 175)  # (x_min, y_min, x_max, y_max), pixels of the photograph

Image = NDArray[np.uint8]


def camera(seconds: float) -> tuple[float, float, float]:
    """Centre (x, y) and width of what the camera sees, in pixels of the photograph."""
    turn = 2 * np.pi * seconds / SECONDS
    return 232 + 34 * np.sin(turn), 146 + 12 * np.sin(2 * turn + 0.7), 345 - 65 * np.cos(turn)


def look(picture: Image, seconds: float, rng: np.random.Generator) -> Image:
    """(HEIGHT, WIDTH, 3) uint8 RGB frame of the enlarged photograph."""
    x, y, width = (SCALE * value for value in camera(seconds))
    zoom = WIDTH / width
    tilt = np.deg2rad(1.5) * np.sin(2 * np.pi * seconds / 5)
    cos, sin = zoom * np.cos(tilt), zoom * np.sin(tilt)
    matrix = np.array(
        [[cos, -sin, WIDTH / 2 - cos * x + sin * y], [sin, cos, HEIGHT / 2 - sin * x - cos * y]]
    )
    frame = cv2.warpAffine(
        picture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    brightness = 1 + 0.02 * np.sin(2 * np.pi * seconds / 3.3)
    noise = cv2.GaussianBlur(rng.normal(0, 3.0, (HEIGHT, WIDTH, 1)).astype(np.float32), (0, 0), 0.8)
    return np.clip(frame * brightness + noise.reshape(HEIGHT, WIDTH, 1), 0, 255).astype(np.uint8)


def blend_face(picture: Image, seconds: float) -> Image:
    """The photograph with its face replaced by a changed copy of itself."""
    x_min, y_min, x_max, y_max = (SCALE * value for value in FACE)
    width, height = x_max - x_min, y_max - y_min
    left, top, right, bottom = (
        x_min - width // 2,
        max(y_min - height // 2, 0),
        x_max + width // 2,
        y_max + height // 2,
    )
    original = picture[top:bottom, left:right].astype(np.float32)
    centre = ((x_min + x_max) / 2 - left, (y_min + y_max) / 2 - top + 0.05 * height)

    hsv = cv2.cvtColor(original.astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv *= np.array([1, 1.28, 0.93], np.float32)
    hsv[..., 0] = (hsv[..., 0] + 176) % 180  # 8 degrees towards red
    changed = cv2.cvtColor(np.clip(hsv, 0, (179, 255, 255)).astype(np.uint8), cv2.COLOR_HSV2RGB)
    changed = cv2.GaussianBlur(changed, (0, 0), 0.8 * SCALE)  # as a generator of lower resolution would

    wobble = 2 * np.pi * seconds
    matrix = cv2.getRotationMatrix2D(
        centre, 2.2 + 0.8 * np.sin(wobble * 1.7), 1.045 + 0.012 * np.sin(wobble * 0.9)
    )
    matrix[:, 2] += SCALE * np.array([1.6 + 0.9 * np.sin(wobble * 2.3), 1.2 + 0.7 * np.cos(wobble * 1.3)])
    changed = cv2.warpAffine(
        changed, matrix, (original.shape[1], original.shape[0]), borderMode=cv2.BORDER_REFLECT
    )

    mask = np.zeros(original.shape[:2], np.float32)
    axes = (0.40 * width, 0.50 * height)
    cv2.ellipse(mask, (centre, (2 * axes[0], 2 * axes[1]), 0), 1.0, cv2.FILLED)
    mask = cv2.GaussianBlur(mask, (0, 0), 2.5 * SCALE)[..., None]
    blended = picture.copy()
    blended[top:bottom, left:right] = (original * (1 - mask) + changed * mask).round().astype(np.uint8)
    return blended


def write_clip(path: Path, picture: Image, *, manipulated: bool) -> None:
    """Encode one clip: H.264, one keyframe per second."""
    rng = np.random.default_rng(0)
    options = {"crf": "28", "preset": "slow", "x264-params": f"keyint={FPS}:min-keyint={FPS}:scenecut=0"}
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as output:
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = 1, 1  # limited range, BT.709
        for index in range(FPS * SECONDS):
            seconds = index / FPS
            scene = blend_face(picture, seconds) if manipulated else picture
            rgb = av.VideoFrame.from_ndarray(look(scene, seconds, rng), format="rgb24")
            frame = rgb.reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def main() -> None:
    """Write both clips and say how large they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[1] / "streamer" / "demo_clips"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    folder: Path = parser.parse_args().folder
    photograph: Image = astronaut()
    picture = cv2.resize(photograph, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    for name, manipulated in (("untouched.mp4", False), ("manipulated.mp4", True)):
        write_clip(folder / name, picture, manipulated=manipulated)
        print(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
