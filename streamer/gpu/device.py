"""A PyTorch device on which frames are looked at: uploads, and a stream for every thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from streamer.errors import BackendError, InferenceError
from streamer.gpu.image import TorchImage, yuv_to_rgb
from streamer.types import Frame, UInt8Array, YuvFrame

DEVICE_ERRORS = (torch.AcceleratorError, torch.OutOfMemoryError)
"""What PyTorch raises when CUDA fails; both are RuntimeErrors, as are mistakes of ours."""


class Device:
    """Where frames are looked at. Safe to use from several threads at once.

    On a GPU every thread works on a stream of its own, so that the kernels of one overlap the copies of
    another; frames go up on one more stream, from page-locked memory that PyTorch keeps and takes again when
    the copy is done. All device memory is of PyTorch's pool.
    """

    def __init__(self, name: str) -> None:
        """name: as PyTorch names it, `cuda:0` or `cpu`. Raises BackendError if it cannot be used."""
        self.torch = torch.device(name)
        self._local = threading.local()
        self._uploads: torch.cuda.Stream | None = None
        if self.torch.type == "cuda":
            if not torch.cuda.is_available():
                raise BackendError(f"device {name}: PyTorch {torch.__version__} finds no CUDA device")
            if (self.torch.index or 0) >= torch.cuda.device_count():
                raise BackendError(f"device {name}: there are {torch.cuda.device_count()} CUDA devices")
            try:
                self._uploads = torch.cuda.Stream(self.torch)
            except RuntimeError as error:  # others have it alone, or all its memory
                raise BackendError(f"device {name}: {error}") from error

    @property
    def title(self) -> str:
        """For people."""
        if self._uploads is None:
            return "PyTorch on CPU"
        return f"{torch.cuda.get_device_name(self.torch)} ({self.torch})"

    @contextmanager
    def work(self) -> Iterator[None]:
        """In which the calling thread's work goes to a stream of its own; at its end that work is done.

        Raises InferenceError where the device fails, for want of memory among others.
        """
        if self._uploads is None:
            yield
            return
        try:
            if not hasattr(self._local, "stream"):
                self._local.stream = torch.cuda.Stream(self.torch)
            with torch.cuda.stream(self._local.stream):
                yield
                done = torch.cuda.Event(blocking=True)  # the cores are for the decoders, not to spin on
                done.record()
                done.synchronize()
        except RuntimeError as error:
            if not _is_of_device(error):
                raise
            raise InferenceError(f"{self.title}: {error}") from error

    def image(self, frame: Frame | YuvFrame) -> TorchImage:
        """Bring a frame up. What it was made of may be overwritten afterwards."""
        if isinstance(frame, YuvFrame):
            return TorchImage(yuv_to_rgb(self.upload(frame.planes), frame.layout))
        return TorchImage(self.upload(frame.rgb).permute(2, 0, 1).contiguous())

    def upload(self, pixels: UInt8Array) -> Tensor:
        """Bytes in memory -> a tensor of the same shape that the current stream may use."""
        if self._uploads is None:
            return torch.tensor(pixels)  # a copy
        staged = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        staged.numpy()[...] = pixels
        with torch.cuda.stream(self._uploads):
            uploaded = staged.to(self.torch, non_blocking=True)
        current = torch.cuda.current_stream(self.torch)
        current.wait_stream(self._uploads)
        uploaded.record_stream(current)
        return uploaded


def _is_of_device(error: RuntimeError) -> bool:
    """Whether CUDA failed. cuBLAS, which shrinks crops, has no class of its own for that."""
    return isinstance(error, DEVICE_ERRORS) or str(error).startswith("CUDA error")
