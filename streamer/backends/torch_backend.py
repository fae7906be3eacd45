"""Reference: the ONNX graph executed node by node with eager PyTorch, f32, on the CPU.

Slow and plain on purpose; it shares no inference code with the other backends. The operators are those of the
networks in `engines/` and of common classifier exports; a graph with any other is refused at loading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamer.backends.images import check_images, normalise, to_array
from streamer.errors import BackendError, InferenceError, ManifestError, missing_extra
from streamer.manifest import Manifest
from streamer.types import Float32Array, Images

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

Attributes = dict[str, Any]
Operator = Callable[[list[Any], Attributes], Any]


_SETTINGS = {"Pad": (1,), "ReduceMean": (1,), "Reshape": (1,), "Resize": (1, 2, 3)}
"""Operator -> inputs that say what to do rather than what to do it with: shapes, amounts, axes."""


class TorchGraph:
    """An ONNX graph, executed node by node with PyTorch, on any device."""

    def __init__(self, model: onnx.ModelProto, outputs: Sequence[str], name: str) -> None:
        """outputs: which to compute. name: for errors.

        Raises BackendError for an operator that is not in `OPERATORS`, ManifestError for a missing output.
        """
        from onnx import helper, numpy_helper

        graph = model.graph
        if unknown := sorted({node.op_type for node in graph.node} - OPERATORS.keys()):
            raise BackendError(f"{name}: the torch backend has no operator {', '.join(unknown)}")
        made = {output for node in graph.node for output in node.output}
        if missing := [output for output in outputs if output not in made]:
            raise ManifestError(f"{name}: no output {missing[0]!r}")
        settings = {
            node.input[index]
            for node in graph.node
            for index in _SETTINGS.get(node.op_type, ())
            if index < len(node.input)
        }
        self._settings: dict[str, Any] = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.name in settings
        }
        self.constants: dict[str, Tensor] = {
            tensor.name: _to_tensor(tensor) for tensor in graph.initializer if tensor.name not in settings
        }
        """Weights and the like, what operators compute with."""
        self._outputs = tuple(outputs)
        self._nodes = [
            (
                OPERATORS[node.op_type],
                list(node.input),
                node.output[0],
                {a.name: helper.get_attribute_value(a) for a in node.attribute},
            )
            for node in graph.node
        ]
        constants = {tensor.name for tensor in graph.initializer}
        self._input = next(i.name for i in graph.input if i.name not in constants)

    def compute(self, x: Tensor, constants: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs. x: the graph's input. constants: those of this graph, on the device of x."""
        values: dict[str, Any] = {**self._settings, **constants, self._input: x}
        for operator, inputs, output, attributes in self._nodes:
            values[output] = operator([values[i] if i else None for i in inputs], attributes)
        return tuple(values[name] for name in self._outputs)


class TorchNetwork:
    """A network in eager PyTorch; see `streamer.backends.base.Network`."""

    device = "torch f32 on CPU"

    def __init__(self, file: Path, manifest: Manifest, *, threads: int = 0) -> None:
        """file: ONNX. threads: CPU threads of the whole process, 0: leave as is.

        Raises BackendError when torch is missing or the graph has an operator that is not in `OPERATORS`.
        """
        try:
            import torch
        except ImportError as error:
            raise BackendError(
                f"backend torch: cannot import it: {error}; {missing_extra('train')}"
            ) from error
        import onnx

        if threads:
            torch.set_num_threads(threads)
        self._graph: TorchGraph | None = TorchGraph(onnx.load(file), manifest.outputs, manifest.name)
        self.manifest = manifest

    def run(self, images: Images) -> tuple[Float32Array, ...]:
        """See `Network.run`."""
        import torch

        check_images(images, self.manifest)
        if (graph := self._graph) is None:
            raise InferenceError(f"{self.manifest.name}: used after close()")
        x = torch.from_numpy(normalise(to_array(images), self.manifest.input))
        try:
            with torch.inference_mode():
                return tuple(output.numpy() for output in graph.compute(x, graph.constants))
        except (RuntimeError, ValueError) as error:
            raise InferenceError(f"{self.manifest.name}: {error}") from error

    def close(self) -> None:
        """See `Network.close`."""
        self._graph = None


def _to_tensor(constant: onnx.TensorProto) -> Tensor:
    import torch
    from onnx import TensorProto, numpy_helper

    values = numpy_helper.to_array(constant).copy()
    if constant.data_type == TensorProto.BFLOAT16:  # which NumPy does not know
        return torch.from_numpy(values.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(values)


# One function per ONNX operator (https://onnx.ai/onnx/operators/), named like it.


def _conv(x: list[Any], a: Attributes) -> Tensor:
    from torch.nn import functional as f

    image = _pad_image(x[0], a, value=0.0)
    bias = x[2] if len(x) > 2 else None
    return f.conv2d(image, x[1], bias, a.get("strides", 1), 0, a.get("dilations", 1), a.get("group", 1))


def _max_pool(x: list[Any], a: Attributes) -> Tensor:
    from torch.nn import functional as f

    image = _pad_image(x[0], a, value=float("-inf"))
    return f.max_pool2d(image, a["kernel_shape"], a.get("strides", 1), ceil_mode=bool(a.get("ceil_mode", 0)))


def _average_pool(x: list[Any], a: Attributes) -> Tensor:
    from torch.nn import functional as f

    if any(a.get("pads", ())) and not a.get("count_include_pad", 0):
        raise ValueError("AveragePool that leaves its padding out of the mean is not supported")
    image = _pad_image(x[0], a, value=0.0)
    return f.avg_pool2d(image, a["kernel_shape"], a.get("strides", 1), ceil_mode=bool(a.get("ceil_mode", 0)))


def _pad_image(image: Tensor, a: Attributes, *, value: float) -> Tensor:
    """Explicit padding: ONNX allows more below and right than above and left, torch's operators do not."""
    from torch.nn import functional as f

    if a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError(f"auto_pad {a['auto_pad'].decode()} is not supported")
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    return f.pad(image, (left, right, top, bottom), value=value) if any((top, left, bottom, right)) else image


def _batch_normalization(x: list[Any], a: Attributes) -> Tensor:
    from torch.nn import functional as f

    image, weight, bias, mean, variance = x
    return f.batch_norm(image, mean, variance, weight, bias, eps=a.get("epsilon", 1e-5))


def _gemm(x: list[Any], a: Attributes) -> Tensor:
    left = x[0].T if a.get("transA") else x[0]
    right = x[1].T if a.get("transB") else x[1]
    product = a.get("alpha", 1.0) * (left @ right)
    return product + a.get("beta", 1.0) * x[2] if len(x) > 2 else product


def _pad(x: list[Any], a: Attributes) -> Tensor:
    from torch.nn import functional as f

    if a.get("mode", b"constant") != b"constant" or (len(x) > 3 and x[3] is not None):
        raise ValueError("only constant padding of all axes is supported")
    pads = x[1].tolist()
    n = len(pads) // 2
    # torch wants (last axis begin, last axis end, one before the last begin, ...)
    flat = [pads[axis + side * n] for axis in reversed(range(n)) for side in (0, 1)]
    return f.pad(x[0], flat, value=float(x[2]) if len(x) > 2 and x[2] is not None else 0.0)


def _reshape(x: list[Any], a: Attributes) -> Tensor:
    shape = x[1].tolist()
    if not a.get("allowzero"):
        shape = [x[0].shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x[0].reshape(shape)


def _resize(x: list[Any], a: Attributes) -> Tensor:
    from torch.nn import functional as f

    kind = (a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel"))
    if kind != (b"linear", b"half_pixel") or len(x) > 3:
        raise ValueError("only linear, half_pixel resizing by scales is supported")
    scales = x[2].tolist()
    return f.interpolate(x[0], scale_factor=scales[2:], mode="bilinear", align_corners=False)


def _concat(x: list[Any], a: Attributes) -> Tensor:
    import torch

    return torch.cat(x, dim=a["axis"])


def _prelu(x: list[Any], a: Attributes) -> Tensor:
    image, slope = x
    return image.clamp(min=0) + slope * image.clamp(max=0)


def _cast(x: list[Any], a: Attributes) -> Tensor:
    import torch

    # onnx.TensorProto.DataType
    kinds = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16}
    if a["to"] not in kinds:
        raise ValueError(f"casting to type {a['to']} of TensorProto is not supported")
    result: Tensor = x[0].to(kinds[a["to"]])
    return result


def _reduce_mean(x: list[Any], a: Attributes) -> Tensor:
    axes = a.get("axes") or (x[1].tolist() if len(x) > 1 else None)  # an input from opset 18 on
    if axes is None:
        raise ValueError("only means over given axes are supported")
    mean: Tensor = x[0].mean(dim=axes, keepdim=bool(a.get("keepdims", 1)))
    return mean


def _clip(x: list[Any], a: Attributes) -> Tensor:
    low, high = (x[i] if len(x) > i else None for i in (1, 2))
    return x[0].clamp(min=low, max=high)


OPERATORS: dict[str, Operator] = {
    "Add": lambda x, a: x[0] + x[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": lambda x, a: x[0] / x[1],
    "Flatten": lambda x, a: x[0].flatten(a.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, a: x[0].mean(dim=(2, 3), keepdim=True),
    "Identity": lambda x, a: x[0],
    "MaxPool": _max_pool,
    "Mul": lambda x, a: x[0] * x[1],
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda x, a: x[0].relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda x, a: x[0].sigmoid(),
    "Sub": lambda x, a: x[0] - x[1],
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
}
"""ONNX operator -> function of its inputs (None for one left out) and attributes."""
