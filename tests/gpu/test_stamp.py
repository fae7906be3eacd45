"""What an engine depends on, and machines that do not tell it. Needs no GPU."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from streamer.errors import BackendError  # noqa: E402
from streamer.gpu.stamp import machine_stamp  # noqa: E402

pytestmark = pytest.mark.needs_torch


class FakeNvml(ModuleType):
    """NVIDIA's management library, as far as it is asked for the driver."""

    class NVMLError(Exception):
        pass

    def __init__(self, error: str = "") -> None:
        super().__init__("pynvml")
        self._error = error

    def nvmlInit(self) -> None:  # noqa: N802
        if self._error:
            raise self.NVMLError(self._error)

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"


@pytest.fixture(autouse=True)
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = SimpleNamespace(__version__="10.15.1")
    monkeypatch.setattr("streamer.gpu.stamp.import_tensorrt", lambda: trt)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")


@pytest.mark.usefixtures("h200")
def test_what_an_engine_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert machine_stamp("cuda:0") == {
        "gpu": "NVIDIA H200",
        "compute capability": "9.0",
        "driver": "580.1",
        "tensorrt": "10.15.1",
    }


@pytest.mark.parametrize("device", ["cuda:99", "cpu", "gpu"])
def test_a_device_that_is_no_gpu_here(device: str) -> None:
    with pytest.raises(BackendError, match=f"backend tensorrt: device {device}: "):
        machine_stamp(device)


@pytest.mark.usefixtures("h200")
@pytest.mark.parametrize(
    ("nvml", "message"),
    [
        (None, r"pynvml.*pip install -e '.\[gpu\]'"),
        (FakeNvml("NVML Shared Library Not Found"), "management library: NVML Shared Library Not Found"),
    ],
)
def test_a_driver_that_is_not_told(nvml: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that was not given the driver's tools (NVIDIA_DRIVER_CAPABILITIES)."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with pytest.raises(BackendError, match=message):
        machine_stamp("cuda:0")
