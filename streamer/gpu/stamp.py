"""What an engine depends on: TensorRT builds for one kind of GPU, one version of itself, one driver."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import ModuleType

from streamer.errors import BackendError, missing_extra


def import_tensorrt() -> ModuleType:
    """Import TensorRT. Raises BackendError if it or a GPU is missing."""
    try:
        import tensorrt
        import torch
    except (ImportError, OSError) as error:
        raise BackendError(f"backend tensorrt: {error}; {missing_extra('gpu')}, on a GPU node") from error
    if not torch.cuda.is_available():  # asked first: without a driver TensorRT crashes at its end
        raise BackendError(f"backend tensorrt: PyTorch {torch.__version__} finds no CUDA device")
    module: ModuleType = tensorrt
    return module


def on_device(device: str) -> AbstractContextManager[object]:
    """In which the calling thread's CUDA device is this one."""
    import torch

    context: AbstractContextManager[object] = torch.cuda.device(device)
    return context


def nvml_name(index: int, visible: str | None) -> int | str:
    """What NVIDIA's management library, which does not know CUDA_VISIBLE_DEVICES, calls a GPU: index or UUID.

    index: as CUDA counts. visible: that variable; None: it is not set. Raises BackendError.
    """
    if visible is None:
        return index
    names = [name.strip() for name in visible.split(",")]
    if index >= len(names) or not names[index]:
        raise BackendError(f"cuda:{index}: CUDA_VISIBLE_DEVICES is {visible!r}")
    return int(names[index]) if names[index].isdigit() else names[index]


def machine_stamp(device: str) -> dict[str, str]:
    """GPU, compute capability, driver and versions of this machine, for `CompiledManifest.made_for`.

    device: as PyTorch names it. Raises BackendError.
    """
    trt = import_tensorrt()
    import torch

    try:
        index = torch.device(device)
        major, minor = torch.cuda.get_device_capability(index)
        gpu = torch.cuda.get_device_name(index)
    except (AssertionError, RuntimeError, ValueError) as error:  # no name of a GPU, or none of that number
        raise BackendError(f"backend tensorrt: device {device}: {error}") from error
    return {
        "gpu": gpu,
        "compute capability": f"{major}.{minor}",
        "driver": _driver_version(),
        "tensorrt": trt.__version__,
    }


def _driver_version() -> str:
    try:
        import pynvml
    except ImportError as error:
        raise BackendError(f"backend tensorrt: {error}; {missing_extra('gpu')}") from error
    try:
        pynvml.nvmlInit()
        try:
            version: str = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise BackendError(f"backend tensorrt: NVIDIA's management library: {error}") from error
    return version
