"""The straightforward detector that `throughput.py` is compared with: no batching, pool or compiled networks.

Frame-by-frame OpenCV decode, torch eager BlazeFace window by window, torch eager members, one face at a time.
It uses the same windows, the same box decoding and the same crops as the service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torchvision

from streamer.backends.load import load_network
from streamer.config import Config
from streamer.engines import IMAGENET
from streamer.faces.crop import crop_faces
from streamer.faces.detect import FaceDetector
from streamer.manifest import read_manifest
from streamer.training.member_start import member_network
from streamer.types import Float32Array, UInt8Array


class Member(NamedTuple):
    """A classifier in torch eager float32."""

    network: torch.nn.Module
    size: int
    """Of its input, pixels."""


class WindowByWindow:
    """A detector network in torch eager float32 that runs its batch one window after the other."""

    def __init__(self, manifest_path: Path) -> None:
        self._network = load_network(manifest_path, backend="torch", precision="f32")
        self.manifest = self._network.manifest
        self.device = self._network.device
        self.close = self._network.close

    def run(self, images: UInt8Array) -> tuple[Float32Array, ...]:
        """As `streamer.backends.base.Network.run`."""
        outputs = [self._network.run(image[None]) for image in images]
        return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


@dataclass
class BaselineRun:
    """Sampled frames done, seconds taken, seconds by stage."""

    frames: int
    faces: int
    seconds: float
    stages: dict[str, float]


def run_baseline(config: Config, video: Path, frames_per_second: float, max_frames: int) -> BaselineRun:
    """Process the first `max_frames` sampled frames of a video after three to warm up."""
    faces_config, engines = config.faces, config.classify.engines
    detector, scanner, verifier = (WindowByWindow(engines / f"{name}.json") for name in faces_config.networks)
    finder = FaceDetector(detector, faces_config, scanner=scanner, verifier=verifier)
    members = [_member(engines, name) for name in config.classify.members]
    stages = {"decode": 0.0, "detect": 0.0, "classify": 0.0}

    def timed(stage: str, work: Callable[..., Any], *args: Any) -> Any:
        started = time.perf_counter()
        result = work(*args)
        stages[stage] += time.perf_counter() - started
        return result

    sampled = _sampled_frames(video, frames_per_second)
    faces = 0
    started = time.perf_counter()
    for index in range(max_frames + 3):
        if index == 3:
            faces, started = 0, time.perf_counter()
            stages.update(dict.fromkeys(stages, 0.0))
        frame = timed("decode", next, sampled)
        found = timed("detect", finder.detect, [frame])[0]
        for box in found.boxes:
            timed("classify", _score_one, members, frame, box)
            faces += 1
    return BaselineRun(max_frames, faces, time.perf_counter() - started, stages)


def _sampled_frames(video: Path, frames_per_second: float) -> Iterator[UInt8Array]:
    """Every k-th frame as RGB, from the beginning again at the end."""
    while True:
        capture = cv2.VideoCapture(str(video))
        step = max(1, round(capture.get(cv2.CAP_PROP_FPS) / frames_per_second))
        index = 0
        while True:
            ok, image = capture.read()
            if not ok:
                break
            if index % step == 0:
                yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            index += 1
        capture.release()


def _member(engines: Path, name: str) -> Member:
    """In torch, from where it comes: torchvision's, if it has random weights, else ours."""
    manifest = read_manifest(engines / f"{name}.json")
    if manifest.trained:
        network: torch.nn.Module = member_network(engines / f"{name}.json")
    else:
        network = torchvision.models.get_model(Path(name).name, num_classes=1).eval()
    return Member(network, manifest.input.height)


@torch.inference_mode()
def _score_one(members: list[Member], frame: UInt8Array, box: Float32Array) -> float:
    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    answers = []
    for member in members:
        crop = crop_faces(frame, box[None], margin=0.3, size=member.size)
        image = ((torch.from_numpy(crop).float() - mean) / std).permute(0, 3, 1, 2)
        answer = member.network(image)
        logit = answer[0] if isinstance(answer, tuple) else answer  # ours have a heat map, too
        answers.append(torch.sigmoid(logit))
    return float(torch.stack(answers).mean())
