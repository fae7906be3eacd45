"""Frames on the GPU: colour, windows and crops in PyTorch, and the engines that look at them in TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streamer.config import Config, GpuConfig
from streamer.errors import BackendError, missing_extra
from streamer.nvdec import NvdecSettings

if TYPE_CHECKING:
    from streamer.gpu.device import Device
    from streamer.gpu.usage import GpuCollector

TAKE_TENSORS = ("tensorrt", "torch")
"""Backends whose networks look at frames on a device; the others take arrays."""

DRIVER = Path("/proc/driver/nvidia/version")
"""Exists where NVIDIA's driver is loaded."""


def frames_on_device(config: Config) -> str:
    """Why frames go to `gpu.device` for colour conversion, windows and crops; empty: they do not."""
    if config.gpu.frames == "auto":
        return "backend tensorrt" if config.classify.backend == "tensorrt" else ""
    return 'gpu.frames = "on"' if config.gpu.frames == "on" else ""


def open_device(config: Config) -> Device | None:
    """The device that frames go to; None if they stay in memory. Raises BackendError."""
    if not frames_on_device(config):
        return None
    if config.classify.backend not in TAKE_TENSORS:
        raise BackendError(
            f'gpu.frames = "on", but classify.backend = "{config.classify.backend}" takes images in memory '
            'alone: set gpu.frames = "auto", or classify.backend = "tensorrt" or "torch"'
        )
    try:
        from streamer.gpu.device import Device
    except ImportError as error:
        raise BackendError(f"frames on the GPU need PyTorch: {error}; {missing_extra('gpu')}") from error
    return Device(config.gpu.device)


def nvdec_settings(config: GpuConfig) -> NvdecSettings | None:
    """The GPU whose decoder is used; None: frames are decoded on the CPU. Raises BackendError."""
    if config.nvdec == "off":
        return None
    if not config.device.startswith("cuda:"):
        raise BackendError(f'gpu.nvdec = "auto" needs a GPU in gpu.device, which is {config.device}')
    return NvdecSettings(config.device.removeprefix("cuda:"), config.nvdec_min_pixels)


def gpu_collector(config: Config) -> GpuCollector | None:
    """Metrics of the GPU in use; None if none is. Raises BackendError."""
    if not config.gpu.device.startswith("cuda:"):
        return None
    if not frames_on_device(config) and config.gpu.nvdec == "off":
        return None
    try:
        from streamer.gpu.usage import GpuCollector
    except ImportError as error:
        raise BackendError(f"metrics of the GPU: {error}; {missing_extra('gpu')}") from error
    return GpuCollector(int(config.gpu.device.removeprefix("cuda:")))


def faster_paths(config: Config) -> list[str]:
    """What would be faster on this machine than what is configured, and what it takes; for people."""
    classify, gpu = config.classify, config.gpu
    if not DRIVER.exists():
        return ["no NVIDIA driver here: decoding, frames and networks stay on the CPU"]
    found = []
    if classify.backend != "tensorrt":
        found.append(
            f"networks: {classify.backend}, though there is an NVIDIA GPU: run build_engines.py --target "
            f'tensorrt --precision fp16, then set classify.backend = "tensorrt" and precision = "fp16"'
        )
    elif classify.precision == "f32":
        found.append('networks: f32; fp16 computes faster: build it, then set classify.precision = "fp16"')
    if classify.backend == "tensorrt" and gpu.frames == "off":
        found.append('frames: converted and cut on the CPU, because gpu.frames = "off"')
    if gpu.nvdec == "off":
        found.append(
            'decoding: on the CPU, confined; gpu.nvdec = "auto" gives that up for the GPU\'s decoder'
        )
    return found
