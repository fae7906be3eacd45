"""Inference on NVIDIA GPUs with TensorRT engines; PyTorch owns memory, streams and graphs.

A network has a stream of its own, so that the face detectors of one batch run beside the classifiers of
another. For every power of two up to the largest batch it holds a CUDA graph: one launch runs the whole
network. A batch is padded to the next of them. Memory is of PyTorch's pool, that of the weights TensorRT's
own, allocated when the engine is loaded: runs allocate page-locked memory for outputs alone, which PyTorch
keeps and takes again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
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

PROFILE = 0
"""The one optimisation profile of an engine."""

log = structlog.get_logger(__name__)

_loading = threading.Lock()
"""PyTorch records one graph at a time in a process."""


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
    generation: int
    """How often the engine had been loaded anew."""

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
        self.manifest = manifest
        self._file, self._max_batch = file, max_batch
        self._device = torch.device(device)
        self._lock = threading.Lock()
        self._generation = 0
        self._buckets: dict[int, _Bucket] = {}
        self._trt = import_tensorrt()
        self._engine: Any = None
        try:
            # Of another pool than those of `gpu.device.Device`: PyTorch hands the 32 of a pool out in turn,
            # and a graph must not record what someone else does.
            self._stream = torch.cuda.Stream(self._device, priority=-1)
        except RuntimeError as error:
            raise BackendError(f"{manifest.name}: device {device}: {error}") from error
        self.device = f"tensorrt {precision} on {torch.cuda.get_device_name(self._device)}"
        self._load()

    def run(self, images: Images) -> tuple[Float32Array, ...]:
        """See `Network.run`."""
        return self.start(images)()

    def start(self, images: Images) -> Outputs:
        """See `AsynchronousNetwork.start`."""
        check_images(images, self.manifest)
        generation = self._generation
        try:
            pending = self._enqueue(images)
        except RuntimeError as error:
            pending = self._again(images, generation, error)

        def wait() -> tuple[Float32Array, ...]:
            try:
                return pending.outputs()
            except RuntimeError as error:
                repeated = self._again(images, pending.generation, error)
            try:
                return repeated.outputs()
            except RuntimeError as error:
                raise InferenceError(self._failed(error)) from error

        return wait

    def close(self) -> None:
        """See `Network.close`. Waits for the runs under way."""
        with self._lock:
            self._unload()

    def _enqueue(self, images: Images) -> _Pending:
        """Put copies and graphs on the stream. Raises RuntimeError, as PyTorch does, and InferenceError."""
        batch = images if isinstance(images, Tensor) else _page_locked(images)
        producer = torch.cuda.current_stream(self._device)
        rows: list[list[Tensor]] = []
        with self._lock, torch.cuda.stream(self._stream):
            if not self._buckets:
                raise InferenceError(f"{self.manifest.name}: used after close()")
            self._stream.wait_stream(producer)
            for part in batch.split(self._max_batch):
                bucket = self._buckets[bucket_of(len(part), self._max_batch)]
                bucket.images[: len(part)].copy_(part, non_blocking=True)
                bucket.graph.replay()
                rows.append([_to_host(output[: len(part)]) for output in bucket.outputs])
            if batch.is_cuda:  # its memory is of the producer's stream, which would take it again too early
                batch.record_stream(self._stream)
            done = torch.cuda.Event(blocking=True)  # the cores are for the decoders, not to spin on
            done.record(self._stream)
            return _Pending(batch, rows, done, self._generation)

    def _again(self, images: Images, generation: int, error: RuntimeError) -> _Pending:
        """After a failure load the engine anew, once, and try again. Raises InferenceError.

        generation: of the engine that failed. All batches under way fail together; the first loads it anew.
        """
        with self._lock:
            if generation == self._generation:
                if generation > 0 or not self._buckets:
                    raise InferenceError(self._failed(error)) from error
                self._generation += 1
                log.error("engine failed, loading it anew", network=self.manifest.name, error=str(error))
                self._unload()
                try:
                    self._load()
                except BackendError as second:
                    raise InferenceError(f"{self._failed(error)}; loaded anew: {second}") from second
        try:
            return self._enqueue(images)
        except RuntimeError as second:
            raise InferenceError(f"{self._failed(error)}; loaded anew: {second}") from second

    def _failed(self, error: RuntimeError) -> str:
        return f"{self.manifest.name}: {self.device}: {error}"

    def _unload(self) -> None:
        if self._buckets:
            with suppress(RuntimeError):  # what was under way has failed
                self._stream.synchronize()
        self._buckets = {}
        self._engine = None

    def _load(self) -> None:
        """Engine, and a graph for every batch size. Raises BackendError."""
        trt, name = self._trt, self.manifest.name
        try:
            with _loading, torch.cuda.device(self._device), speaking_of(name):
                try:
                    self._runtime = trt.Runtime(shared_logger(trt))
                except TypeError as error:  # all that its bindings say when CUDA fails, as of its builder
                    raise BackendError(f"{name}: TensorRT cannot begin: {last_error()}") from error
                self._engine = self._runtime.deserialize_cuda_engine(self._file.read_bytes())
                if self._engine is None:
                    raise BackendError(f"{name}: TensorRT cannot load {self._file}: {last_error()}")
                self._find_tensors()
                # One after the other on one stream, so that all work in the same memory.
                needed = max(1, self._engine.device_memory_size_v2)
                scratch = torch.empty(needed, dtype=torch.uint8, device=self._device)
                sizes = sorted({bucket_of(n, self._max_batch) for n in range(1, self._max_batch + 1)})
                self._buckets = {size: self._make_bucket(size, scratch) for size in sizes}
        except RuntimeError as error:  # of CUDA, memory among it, as PyTorch has it
            raise BackendError(f"{name}: {self._file} cannot be loaded: {error}") from error

    def _find_tensors(self) -> None:
        """Names of inputs and outputs, by position: builders name them differently. Raises BackendError."""
        trt, engine = self._trt, self._engine
        tensors = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        self._inputs = [t for t in tensors if engine.get_tensor_mode(t) == trt.TensorIOMode.INPUT]
        self._outputs = [t for t in tensors if t not in self._inputs]
        types = [engine.get_tensor_dtype(t) for t in (*self._inputs, *self._outputs)]
        expected = [trt.DataType.UINT8, *(trt.DataType.FLOAT for _ in self.manifest.outputs)]
        if len(self._inputs) != 1 or types != expected:
            found = ", ".join(f"{t} {engine.get_tensor_dtype(t)}" for t in tensors)
            raise BackendError(f"{self.manifest.name}: {self._file} has the tensors {found}")

    def _make_bucket(self, size: int, scratch: Tensor) -> _Bucket:
        """Prepare a batch size. scratch: memory for what lies between layers. Raises BackendError."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._refused(size)
        if context.active_optimization_profile != PROFILE:  # it surely is in the first context alone
            context.set_optimization_profile_async(PROFILE, self._stream.cuda_stream)
        context.set_device_memory(scratch.data_ptr(), len(scratch))
        spec = self.manifest.input
        images = torch.zeros((size, spec.height, spec.width, 3), dtype=torch.uint8, device=self._device)
        (input_name,) = self._inputs
        if not context.set_input_shape(input_name, tuple(images.shape)):
            raise self._refused(size)
        outputs = [
            torch.empty(tuple(context.get_tensor_shape(name)), dtype=torch.float32, device=self._device)
            for name in self._outputs
        ]
        for name, tensor in zip((input_name, *self._outputs), (images, *outputs), strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for _ in range(WARM_UP_RUNS):
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise self._refused(size)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            recorded = context.execute_async_v3(self._stream.cuda_stream)
        if not recorded:
            raise self._refused(size)
        return _Bucket(images, outputs, graph, (context, scratch))

    def _refused(self, size: int) -> BackendError:
        return BackendError(f"{self.manifest.name}: does not run with a batch of {size}: {last_error()}")


class _Spoken(threading.local):
    """What TensorRT said in a thread."""

    network = "unknown"
    """Of which it speaks."""
    error = ""
    """The last one since it began to."""


_here = _Spoken()
_elsewhere = {"error": ""}
"""The last error in TensorRT's own threads, which do not know the network."""


@contextmanager
def speaking_of(network: str) -> Iterator[None]:
    """In which what TensorRT says in this thread is about a network."""
    _here.network, _here.error, _elsewhere["error"] = network, "", ""
    try:
        yield
    finally:
        _here.network = _Spoken.network


def last_error() -> str:
    """What TensorRT said last of the network that this thread speaks of."""
    return _here.error or _elsewhere["error"] or "no reason given"


@cache
def shared_logger(trt: Any) -> Any:
    """TensorRT's messages -> our log. One for good: TensorRT takes the first of a process and no other."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any thread."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                if _here.network == _Spoken.network:
                    _elsewhere["error"] = message
                else:
                    _here.error = message
                log.error("tensorrt", network=_here.network, message=message)
            elif severity == trt.ILogger.Severity.WARNING:
                log.warning("tensorrt", network=_here.network, message=message)

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
