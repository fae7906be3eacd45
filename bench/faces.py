"""How many faces are found, how many are made up, and what it costs: by detector, windows and face height.

    python bench/faces.py [--faces DIR] [FILE_OR_DIR ...] [--json]

Faces are pasted at known size and place into 1920x1080 frames made of scikit-image's face-free pictures. The
face is that of its `astronaut()`; `--faces DIR` adds one from every photograph in DIR that shows exactly one
clearly. Videos and photographs given as arguments are measured too: the share of their frames with a face.
Cost is relative to the whole frame alone by the short-range network, in the same run, rounds interleaved.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from streamer.backends.base import Network  # noqa: E402
from streamer.backends.load import load_network  # noqa: E402
from streamer.config import FacesConfig  # noqa: E402
from streamer.faces.detect import FaceDetector  # noqa: E402
from streamer.faces.nms import overlaps  # noqa: E402
from streamer.faces.resize import Pyramid  # noqa: E402
from streamer.types import Faces, Float32Array, UInt8Array  # noqa: E402

WIDTH, HEIGHT = 1920, 1080
HEIGHTS_PX = (16, 20, 24, 32, 48, 64, 96, 128, 256, 512)
SEQUENCE = 8
"""Frames that the service decodes and detects together."""
FOUND_IOU = 0.4
"""At 24 px it allows an error of a few pixels per edge."""
PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
DETECTORS = ("blazeface_short_range", "blazeface_full_range", "blazeface_back")


@dataclass(frozen=True)
class Head:
    """A head cut out of a photograph, with its soft mask."""

    rgb: Float32Array
    """(h, w, 3) float32, [0, 255]."""
    mask: Float32Array
    """(h, w, 1) float32, [0, 1]."""
    box: Float32Array
    """(4,) float32, (x_min, y_min, x_max, y_max) of the face in `rgb`: brow to chin, as BlazeFace has it."""


@dataclass(frozen=True)
class Way:
    """One way of detecting."""

    name: str
    detector: FaceDetector
    sequence: bool = False
    """Shown a sequence of frames, as in the service, of which one is scanned; else single frames."""

    def faces(self, frames: Sequence[UInt8Array]) -> list[Faces]:
        """Faces of each frame; of frames shown singly the matrix windows are looked at in each."""
        return (
            self.detector.detect_sequences([list(map(Pyramid, frames))])[0]
            if self.sequence
            else self.detector.detect(frames)
        )


def cut_head(rgb: UInt8Array, box: Float32Array) -> Head:
    """The head around a face, 2.2 x 2.4 boxes, under an ellipse whose edge fades out."""
    x_min, y_min, x_max, y_max = box.tolist()
    width, height = x_max - x_min, y_max - y_min
    centre_x, centre_y = (x_min + x_max) / 2, (y_min + y_max) / 2 - 0.12 * height
    left, top = max(0, round(centre_x - 1.1 * width)), max(0, round(centre_y - 1.2 * height))
    right = min(rgb.shape[1], round(centre_x + 1.1 * width))
    bottom = min(rgb.shape[0], round(centre_y + 1.2 * height))
    part = rgb[top:bottom, left:right].astype(np.float32)
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    # Distance in ellipses: 1 at its rim, where the picture's own edge may come first.
    radius = np.hypot((x - centre_x) / (1.05 * width), (y - centre_y) / (1.15 * height))
    rim = np.minimum.reduce([x - left, right - 1 - x, y - top, bottom - 1 - y]) / (0.1 * height)
    mask = np.clip(np.minimum((1 - radius) / 0.2, rim), 0, 1)[:, :, None]
    return Head(part, mask, box - np.array([left, top, left, top], np.float32))


def collect_heads(folder: Path | None, limit: int, judge: FaceDetector) -> list[Head]:
    """The astronaut's head and those of the folder's photographs, `limit` at most, spread over the folder."""
    photos = [skimage.data.astronaut()]
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTOGRAPHS)
        photos += [read_photograph(p) for p in files[:: max(1, len(files) // (3 * limit))]]
    heads: list[Head] = []
    for rgb in photos:
        found = judge.detect([rgb])[0]
        best = found.take(found.scores >= 0.8)
        whole = len(best) == 1 and (best.boxes[0, :2] > 0).all()
        if (
            whole
            and (best.boxes[0, 2:] < rgb.shape[1::-1]).all()
            and best.boxes[0, 3] - best.boxes[0, 1] >= 60
        ):
            heads.append(cut_head(rgb, best.boxes[0]))
        if len(heads) == limit:
            break
    return heads


@cache
def load_picture(name: str) -> UInt8Array:
    """One of scikit-image's pictures as (h, w, 3) uint8."""
    picture: UInt8Array = getattr(skimage.data, name)()
    return np.repeat(picture[:, :, None], 3, axis=2) if picture.ndim == 2 else picture[:, :, :3]


def make_background(rng: np.random.Generator) -> UInt8Array:
    """A face-free frame: six pictures side by side, each a random part at up to twice its size."""
    names = (
        "coffee",
        "rocket",
        "chelsea",
        "brick",
        "grass",
        "gravel",
        "coins",
        "hubble_deep_field",
        "retina",
    )
    frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for x in range(0, WIDTH, 640):
        for y in range(0, HEIGHT, 540):
            picture = load_picture(names[rng.integers(len(names))])
            scale = max(640 / picture.shape[1], 540 / picture.shape[0]) * rng.uniform(1, 1.5)
            size = (round(picture.shape[1] * scale) + 1, round(picture.shape[0] * scale) + 1)
            picture = cv2.resize(
                picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            )
            dx, dy = rng.integers(size[0] - 640 + 1), rng.integers(size[1] - 540 + 1)
            frame[y : y + 540, x : x + 640] = picture[dy : dy + 540, dx : dx + 640]
    return frame


def paste_moving(
    frame: UInt8Array, head: Head, height_px: int, rng: np.random.Generator
) -> tuple[list[UInt8Array], list[Float32Array]]:
    """SEQUENCE frames with the head, the face `height_px` high, and where the face is in each, (4,).

    It starts anywhere and moves a quarter of its height per frame: its height a second at 4 frames/s.
    """
    scale = height_px / float(head.box[3] - head.box[1])
    size = (round(head.rgb.shape[1] * scale), round(head.rgb.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    rgb = cv2.resize(head.rgb, size, interpolation=way)
    mask = cv2.resize(head.mask, size, interpolation=way)[:, :, None].clip(0, 1)
    box = head.box * np.tile(np.array(size) / head.rgb.shape[1::-1], 2).astype(np.float32)
    # Anywhere as long as the face itself is inside; of a large head the rest may be outside.
    low = -np.floor(box[:2]) + 1
    high = np.array([WIDTH, HEIGHT]) - np.ceil(box[2:]) - 1
    start, angle = rng.uniform(low, high), rng.uniform(0, 2 * np.pi)
    step = 0.25 * height_px * np.array([np.cos(angle), np.sin(angle)])
    frames, boxes = [], []
    for k in range(SEQUENCE):
        dx, dy = np.rint(np.clip(start + k * step, low, high)).astype(int).tolist()
        left, top = max(0, dx), max(0, dy)
        right, bottom = min(WIDTH, dx + size[0]), min(HEIGHT, dy + size[1])
        inside = np.s_[top - dy : bottom - dy, left - dx : right - dx]
        result = frame.copy()
        under = result[top:bottom, left:right].astype(np.float32)
        blended = under + (rgb[inside] - under) * mask[inside]
        result[top:bottom, left:right] = np.rint(blended.clip(0, 255)).astype(np.uint8)
        frames.append(result)
        boxes.append(box + np.array([dx, dy, dx, dy], np.float32))
    return frames, boxes


def read_photograph(path: Path) -> UInt8Array:
    """(h, w, 3) uint8 RGB."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise SystemExit(f"{path}: cannot be read as a picture")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_frames(path: Path, limit: int) -> Iterator[UInt8Array]:
    """The photograph, or up to `limit` frames spread over the video."""
    if path.suffix.lower() in PHOTOGRAPHS:
        yield read_photograph(path)
        return
    video = cv2.VideoCapture(str(path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    if count < 1:
        raise SystemExit(f"{path}: cannot be read as a video")
    wanted = set(np.linspace(0, count - 1, min(limit, count)).astype(int).tolist())
    for k in range(count):
        if not video.grab():
            break
        if k in wanted:
            yield cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)


def make_ways(networks: dict[str, Network], consensus: bool) -> list[Way]:
    """All ways that are compared; the first is what cost is relative to."""
    default = FacesConfig()
    plain = {"candidate_score": default.min_score, "sure_score": default.min_score}

    def detector(name: str, **changes: Any) -> FaceDetector:
        return FaceDetector(networks[name], FacesConfig(**changes))

    def chosen(**changes: Any) -> FaceDetector:
        return FaceDetector(
            networks[default.detector],
            FacesConfig(**changes),
            scanner=networks[default.scanner],
            verifier=networks[default.verifier],
        )

    ways = []
    for name in DETECTORS:
        short = name.removeprefix("blazeface_").replace("_", " ")
        ways += [
            Way(f"{short}, whole frame", detector(name, windows=(), **plain)),
            Way(f"{short}, + windows", detector(name, **plain)),
            Way(f"{short}, + windows, close-ups", detector(name)),
        ]
    ways.append(Way("default, single frames", chosen()))
    if consensus:
        ways.append(Way("default + consensus, single frames", chosen(consensus=True)))
    ways.append(Way(f"default, {SEQUENCE} frames of a video", chosen(), sequence=True))
    return ways


def measure_composites(ways: Sequence[Way], heads: Sequence[Head], frames: int, seed: int) -> dict[str, Any]:
    """Share of faces found and made-up faces per frame, by height; and the cost of each way."""
    found = {way.name: dict.fromkeys(HEIGHTS_PX, 0) for way in ways}
    false = {way.name: dict.fromkeys(HEIGHTS_PX, 0) for way in ways}
    seconds = dict.fromkeys((way.name for way in ways), 0.0)
    looked_at = dict.fromkeys((way.name for way in ways), 0)
    warm_up = make_background(np.random.default_rng(seed))
    for way in ways:
        way.faces([warm_up])
    for height in HEIGHTS_PX:
        rng = np.random.default_rng([seed, height])
        for k in range(frames):
            sequence, truth = paste_moving(make_background(rng), heads[k % len(heads)], height, rng)
            for way in ways:
                shown = sequence if way.sequence else sequence[:1]
                started = time.perf_counter()
                results = way.faces(shown)
                seconds[way.name] += time.perf_counter() - started
                looked_at[way.name] += len(shown)
                for faces, box in zip(results, truth, strict=False):  # a still way sees the first frame only
                    hits = overlaps(faces.boxes, box[None])[0][:, 0] >= FOUND_IOU
                    found[way.name][height] += bool(hits.any())
                    false[way.name][height] += int((~hits).sum())
    per_frame = {name: seconds[name] / looked_at[name] for name in seconds}
    return {
        name: {
            "found": {h: found[name][h] * len(HEIGHTS_PX) / looked_at[name] for h in HEIGHTS_PX},
            "false_per_frame": sum(false[name].values()) / looked_at[name],
            "ms_per_frame": 1000 * per_frame[name],
            "cost": per_frame[name] / per_frame[ways[0].name],
        }
        for name in seconds
    }


def measure_files(ways: Sequence[Way], paths: Sequence[Path], limit: int) -> dict[str, Any]:
    """Share of frames with at least one face, and faces per frame, by way that is shown single frames."""
    files = [
        f for p in paths for f in (sorted(x for x in p.rglob("*") if x.is_file()) if p.is_dir() else [p])
    ]
    stills = [way for way in ways if not way.sequence]
    with_face = dict.fromkeys((way.name for way in stills), 0)
    faces = dict.fromkeys((way.name for way in stills), 0)
    frames = 0
    for file in files:
        for frame in read_frames(file, limit):
            frames += 1
            for way in stills:
                count = len(way.faces([frame])[0])
                faces[way.name] += count
                with_face[way.name] += count > 0
    return {
        "files": len(files),
        "frames": frames,
        "ways": {
            name: {"with_face": with_face[name] / frames, "faces_per_frame": faces[name] / frames}
            for name in faces
        },
    }


def show(results: dict[str, Any]) -> None:
    """Markdown tables."""
    print(f"{results['heads']} heads, {results['frames_per_height']} frames of 1920x1080 per height\n")
    print("| | " + " | ".join(f"{h} px" for h in HEIGHTS_PX) + " | false per frame | cost |")
    print("|---|" + "---:|" * (len(HEIGHTS_PX) + 2))
    for name, row in results["composites"].items():
        shares = " | ".join(f"{100 * row['found'][h]:.0f} %" for h in HEIGHTS_PX)
        print(f"| {name} | {shares} | {row['false_per_frame']:.3f} | {row['cost']:.1f} |")
    if files := results.get("files"):
        print(f"\n{files['files']} files, {files['frames']} frames\n")
        print("| | with a face | faces per frame |\n|---|---:|---:|")
        for name, row in files["ways"].items():
            print(f"| {name} | {100 * row['with_face']:.1f} % | {row['faces_per_frame']:.2f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="videos, photographs, or folders of them")
    parser.add_argument("--faces", type=Path, help="folder of photographs to take more heads from")
    parser.add_argument("--heads", type=int, default=100, help="how many heads at most (default 100)")
    parser.add_argument("--frames", type=int, default=40, help="composites per height (default 40)")
    parser.add_argument("--frames-per-file", type=int, default=20, help="of each video (default 20)")
    parser.add_argument("--engines", type=Path, default=ROOT / "engines")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--only", help="measure, beside the first, only ways whose name contains this")
    parser.add_argument("--no-consensus", action="store_true", help="leave out dlib (extra `consensus`)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    networks: dict[str, Network] = {
        name: load_network(
            arguments.engines / f"{name}.json",
            backend=arguments.backend,
            precision="f32",
            threads=0,
            streams=1,
        )
        for name in DETECTORS
    }
    first, *others = make_ways(networks, not arguments.no_consensus)
    ways = [first, *(way for way in others if (arguments.only or "") in way.name)]
    judge = FaceDetector(networks["blazeface_back"], FacesConfig(windows=(), min_score=0.6))
    heads = collect_heads(arguments.faces, arguments.heads, judge)
    results: dict[str, Any] = {"heads": len(heads), "frames_per_height": arguments.frames}
    results["composites"] = measure_composites(ways, heads, arguments.frames, arguments.seed)
    if arguments.paths:
        results["files"] = measure_files(ways, arguments.paths, arguments.frames_per_file)
    if arguments.json:
        print(json.dumps(results))
    else:
        show(results)
    for network in networks.values():
        network.close()


if __name__ == "__main__":
    main()
