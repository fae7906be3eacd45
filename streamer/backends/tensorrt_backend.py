"""Inference on NVIDIA GPUs with TensorRT engines; PyTorch owns memory, streams and graphs.

A network has a stream of its own, so that the face detectors of one batch run beside the classifiers of
another. For every power of two up to the largest batch it holds a CUDA graph: one launch runs the whole
network. A batch is padded to the next of them. Memory is of PyTorch's pool, allocated when the engine is
loaded: runs allocate page-locked memory for outputs alone, which PyTorch keeps and takes again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from streamer.backends.base import Outputs
from streamer.backends.images import check_images
from streamer.errors import BackendError, InferenceError
from streamer.gpu.stamp import import_tensorrt
from streamer.manifest import Manifest
from streamer.types import Float32Array, Images

WARM_UP_RUNS = 2
"""Before the capture of a graph: TensorRT does outstanding work on the first run with a shape."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A batch size: where its images go in and its outputs come out, and the graph between."""

    images: Tensor
    outputs: list[Tensor]
    graph: torch.cuda.CUDAGraph
    context: Any
    """TensorRT's; the graph uses its memory."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch under way."""

    images: Tensor
    """Held until the stream has read them."""
    rows: list[list[Tensor]]
    """Outputs of each part of the batch, in page-locked memory."""
    done: torch.cuda.Event

    def outputs(self) -> tuple[Float32Array, ...]:
        """Wait for them. Raises RuntimeError, as PyTorch does."""
        self.done.synchronize()
        return tuple(
            np.concatenate([part.numpy() for part in parts]) for parts in zip(*self.rows, strict=True)
        )


class TensorRtNetwork:
    """A TensorRT engine; see `streamer.backends.base.AsynchronousNetwork`."""

    def __init__(
        self, file: Path, manifest: Manifest, *, precision: str, device: str, max_batch: int
    ) -> None:
        """file: the engine. device: as PyTorch names it. max_batch: of the engine. Raises BackendError."""
        self._file, self._manifest, self._max_batch = file, manifest, max_batch
        self._device = torch.device(device)
        self._lock = threading.Lock()
        self._reloaded = False
        self._buckets: dict[int, _Bucket] = {}
        self._trt = import_tensorrt()
        self._engine: Any = None
        self._stream = torch.cuda.Stream(self._device)
        self._title = f"tensorrt {precision} on {torch.cuda.get_device_name(self._device)}"
        self._load()

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def device(self) -> str:
        return self._title

    def run(self, images: Images) -> tuple[Float32Array, ...]:
        """See `Network.run`."""
        return self.start(images)()

    def start(self, images: Images) -> Outputs:
        """See `AsynchronousNetwork.start`."""
        check_images(images, self._manifest)
        try:
            pending = self._enqueue(images)
        except RuntimeError as error:
            pending = self._again(images, error)

        def wait() -> tuple[Float32Array, ...]:
            try:
                return pending.outputs()
            except RuntimeError as error:
                return self._again(images, error).outputs()

        return wait

    def close(self) -> None:
        """See `Network.close`. Waits for the runs under way."""
        with self._lock:
            if self._buckets:
                self._stream.synchronize()
            self._buckets.clear()
            self._engine = None

    def _enqueue(self, images: Images) -> _Pending:
        """Put copies and graphs on the stream. Raises RuntimeError, as PyTorch does, and InferenceError."""
        batch = images if isinstance(images, Tensor) else _page_locked(images)
        producer = torch.cuda.current_stream(self._device)
        rows: list[list[Tensor]] = []
        with self._lock, torch.cuda.stream(self._stream):
            if not self._buckets:
                raise InferenceError(f"{self._manifest.name}: used after close()")
            self._stream.wait_stream(producer)
            for part in batch.split(self._max_batch):
                bucket = self._buckets[bucket_of(len(part), self._max_batch)]
                bucket.images[: len(part)].copy_(part, non_blocking=True)
                bucket.graph.replay()
                rows.append([_to_host(output[: len(part)]) for output in bucket.outputs])
            done = torch.cuda.Event()
            done.record(self._stream)
        return _Pending(batch, rows, done)

    def _again(self, images: Images, error: RuntimeError) -> _Pending:
        """After a failure load the engine anew, once, and try again. Raises InferenceError."""
        failed = f"{self._manifest.name}: {self._title}: {error}"
        with self._lock:
            if self._reloaded:
                raise InferenceError(failed) from error
            self._reloaded = True
            log.error("engine failed, loading it anew", network=self._manifest.name, error=str(error))
            try:
                self._load()
            except (BackendError, RuntimeError) as second:
                raise InferenceError(f"{failed}; loaded anew: {second}") from second
        try:
            return self._enqueue(images)
        except RuntimeError as second:
            raise InferenceError(f"{failed}; loaded anew: {second}") from second

    def _load(self) -> None:
        """Engine, and a graph for every batch size. Raises BackendError."""
        self._buckets = {}
        trt, name = self._trt, self._manifest.name
        self._logger = logger = make_logger(trt, name)
        with torch.cuda.device(self._device):
            self._runtime = trt.Runtime(logger)
            self._engine = engine = self._runtime.deserialize_cuda_engine(self._file.read_bytes())
            if engine is None:
                raise BackendError(f"{name}: TensorRT cannot load {self._file}: {logger.last_error}")
            tensors = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
            # By position: builders name them differently.
            self._inputs = [t for t in tensors if engine.get_tensor_mode(t) == trt.TensorIOMode.INPUT]
            self._outputs = [t for t in tensors if t not in self._inputs]
            if (len(self._inputs), len(self._outputs)) != (1, len(self._manifest.outputs)):
                raise BackendError(f"{name}: {self._file} has the tensors {', '.join(tensors)}")
            sizes = sorted({bucket_of(n, self._max_batch) for n in range(1, self._max_batch + 1)})
            scratch = torch.empty(0, dtype=torch.uint8, device=self._device)
            for size in reversed(sizes):  # the largest first: the others work in its memory
                self._buckets[size], scratch = self._make_bucket(size, scratch)

    def _make_bucket(self, size: int, scratch: Tensor) -> tuple[_Bucket, Tensor]:
        """Prepare a batch size. scratch: memory for what lies between layers; returned, larger if need be."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        spec = self._manifest.input
        images = torch.zeros((size, spec.height, spec.width, 3), dtype=torch.uint8, device=self._device)
        (input_name,) = self._inputs
        if context is None or not context.set_input_shape(input_name, tuple(images.shape)):
            raise BackendError(f"{self._manifest.name}: no batch of {size}: {self._logger.last_error}")
        if (needed := context.update_device_memory_size_for_shapes()) > len(scratch):
            scratch = torch.empty(needed, dtype=torch.uint8, device=self._device)
        context.set_device_memory(scratch.data_ptr(), len(scratch))
        context.set_tensor_address(input_name, images.data_ptr())
        outputs = []
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            outputs.append(torch.empty(shape, dtype=torch.float32, device=self._device))
            context.set_tensor_address(name, outputs[-1].data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        ready = all(context.execute_async_v3(self._stream.cuda_stream) for _ in range(WARM_UP_RUNS))
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            ready = ready and context.execute_async_v3(self._stream.cuda_stream)
        if not ready:
            raise BackendError(
                f"{self._manifest.name}: does not run with a batch of {size}: {self._logger.last_error}"
            )
        return _Bucket(images, outputs, graph, (context, scratch)), scratch


def make_logger(trt: Any, name: str) -> Any:
    """TensorRT's messages -> our log. Its attribute `last_error` holds the last error, in words."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any thread."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
                log.error("tensorrt", network=name, message=message)
            elif severity == trt.ILogger.Severity.WARNING:
                log.warning("tensorrt", network=name, message=message)

    return Logger()


def bucket_of(n: int, max_batch: int) -> int:
    """The smallest batch size that holds n images."""
    return min(1 << (n - 1).bit_length(), max_batch)


def _page_locked(images: Any) -> Tensor:
    staged = torch.empty(images.shape, dtype=torch.uint8, pin_memory=True)
    staged.numpy()[...] = images
    return staged


def _to_host(outputs: Tensor) -> Tensor:
    host = torch.empty(outputs.shape, dtype=torch.float32, pin_memory=True)
    return host.copy_(outputs, non_blocking=True)
