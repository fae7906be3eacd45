"""Prometheus metrics of the GPU, by NVIDIA's management library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pynvml
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer.errors import BackendError
from streamer.gpu.stamp import nvml_name


def gpu_handle(index: int) -> Any:
    """Of the library, which must be initialised. index: of the GPU, as CUDA counts. Raises NVMLError."""
    name = nvml_name(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if isinstance(name, int):
        return pynvml.nvmlDeviceGetHandleByIndex(name)
    return pynvml.nvmlDeviceGetHandleByUUID(name)


class GpuCollector(Collector):
    """Reads memory and busy share whenever the metrics are asked for."""

    def __init__(self, index: int) -> None:
        """index: of the GPU, as CUDA counts. Raises BackendError."""
        try:
            pynvml.nvmlInit()
            self._handle = gpu_handle(index)
        except pynvml.NVMLError as error:
            raise BackendError(f"GPU {index}: NVIDIA's management library: {error}") from error

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now; none while the library fails."""
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            busy = pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
        except pynvml.NVMLError:
            return
        yield GaugeMetricFamily(
            "streamer_gpu_memory_used_bytes", "Of the GPU, by all processes.", value=memory.used
        )
        yield GaugeMetricFamily("streamer_gpu_memory_total_bytes", "Of the GPU.", value=memory.total)
        yield GaugeMetricFamily(
            "streamer_gpu_busy_ratio", "Share of time in which a kernel ran on the GPU.", value=busy / 100
        )
