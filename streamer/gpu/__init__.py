"""Frames on the GPU: colour, windows and crops in PyTorch, and the engines that look at them in TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.config import Config, GpuConfig
from streamer.errors import BackendError

if TYPE_CHECKING:
    from streamer.gpu.device import Device


def frames_on_device(config: Config) -> str:
    """Why frames go to `gpu.device` for colour conversion, windows and crops; empty: they do not."""
    if config.gpu.frames == "auto":
        return "backend tensorrt" if config.classify.backend == "tensorrt" else ""
    return 'gpu.frames = "on"' if config.gpu.frames == "on" else ""


def open_device(config: Config) -> Device | None:
    """The device that frames go to; None if they stay in memory. Raises BackendError."""
    if not frames_on_device(config):
        return None
    try:
        from streamer.gpu.device import Device
    except ImportError as error:
        raise BackendError(f"frames on the GPU need PyTorch: {error}; pip install 'streamer[gpu]'") from error
    return Device(config.gpu.device)


def nvdec_device(config: GpuConfig) -> str | None:
    """Index of the GPU whose decoder is used; None: frames are decoded on the CPU. Raises BackendError."""
    if config.nvdec == "off":
        return None
    if not config.device.startswith("cuda:"):
        raise BackendError(f'gpu.nvdec = "auto" needs a GPU in gpu.device, which is {config.device}')
    return config.device.removeprefix("cuda:")
