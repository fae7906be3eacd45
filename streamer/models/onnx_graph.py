"""Changes to ONNX graphs: constants computed beforehand, other number formats, normalisation inside.

What TensorRT computes in is what the graph says: its networks are strongly typed from version 11 on, and here
with every version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from streamer.errors import ModelError
from streamer.manifest import InputSpec

FLOATS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

_F32_INPUTS = {"Resize": (1, 2)}
"""Operator -> inputs that are float32 whatever the images are."""


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace every node that depends on constants alone by its result, in place.

    The TorchScript exporter writes, for example, the amounts of a padding as a chain of ten nodes.
    """
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer} | {""}
    foldable = []
    for node in graph.node:
        if set(node.input) <= constant and not any(a.HasField("g") for a in node.attribute):
            foldable.append(node)
            constant |= set(node.output)
    if not foldable:
        return
    rest = [node for node in graph.node if node not in foldable]
    kept = {name for node in rest for name in node.input} | {output.name for output in graph.output}
    wanted = [name for node in foldable for name in node.output if name in kept]
    inputs = {name for node in foldable for name in node.input}
    part = helper.make_graph(
        foldable,
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in wanted],
        [tensor for tensor in graph.initializer if tensor.name in inputs],
    )
    folder = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    results = ReferenceEvaluator(folder).run(wanted, {})
    tensors = [numpy_helper.from_array(np.asarray(r), name) for r, name in zip(results, wanted, strict=True)]
    tensors += [tensor for tensor in graph.initializer if tensor.name in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(rest)
    graph.initializer.extend(tensors)


def store_as_f16(model: onnx.ModelProto) -> None:
    """Store weights of two dimensions and more as float16, cast to float32 in the graph, in place.

    Inference libraries fold the casts when they load the network, and compute in float32. What has one
    dimension (biases, statistics of batch normalisation) is a hundredth of the bytes and stays. The weights
    must be representable: round them before exporting. Raises ModelError if one is not.
    """
    graph = model.graph
    casts, cast_of = [], {}
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            raise ModelError(f"{tensor.name}: not representable as float16; round the weights first")
        cast_of[tensor.name] = f"{tensor.name}.f32"
        casts.append(helper.make_node("Cast", [tensor.name], [cast_of[tensor.name]], to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    nodes = list(graph.node)
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = cast_of.get(name, name)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make these the outputs, in their order, in place. Raises ModelError if one is missing."""
    present = {output.name: output for output in model.graph.output}
    if missing := [name for name in names if name not in present]:
        raise ModelError(f"no output {missing[0]!r}; there are {sorted(present)}")
    wanted = [present[name] for name in names]
    del model.graph.output[:]
    model.graph.output.extend(wanted)


def cast_floats(model: onnx.ModelProto, kind: Literal["fp16", "bf16"]) -> None:
    """Compute in another float format, in place; inputs and outputs stay float32.

    The graph's constants must be initialisers: see `fold_constants`.
    Raises ModelError if a weight is too large for it, or if the graph has subgraphs.
    """
    graph, to = model.graph, FLOATS[kind]
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        raise ModelError("a graph with subgraphs cannot be cast")
    kept = {
        node.input[index]
        for node in graph.node
        for index in _F32_INPUTS.get(node.op_type, ())
        if index < len(node.input)
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_converted(tensor, kind))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = to
    before = _renamed(graph, [value.name for value in _float32(graph.input)], ".cast", inputs=True)
    after = _renamed(graph, [value.name for value in _float32(graph.output)], ".uncast", inputs=False)
    nodes = [
        *(helper.make_node("Cast", [old], [new], to=to) for old, new in before.items()),
        *graph.node,
        *(helper.make_node("Cast", [new], [old], to=TensorProto.FLOAT) for old, new in after.items()),
    ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _float32(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    return [value for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]


def _renamed(graph: onnx.GraphProto, names: list[str], suffix: str, *, inputs: bool) -> dict[str, str]:
    """Rename values inside the graph: where it takes its inputs, or everywhere for its outputs."""
    new = {name: name + suffix for name in names}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = new.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = name if inputs else new.get(name, name)
    return new


def _converted(tensor: onnx.TensorProto, kind: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if kind == "fp16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise ModelError(f"{tensor.name}: beyond float16; use bf16 or f32")
        return numpy_helper.from_array(half, tensor.name)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
    raw = rounded.astype("<u2").tobytes()
    return helper.make_tensor(tensor.name, TensorProto.BFLOAT16, values.shape, raw, raw=True)


def take_images(model: onnx.ModelProto, spec: InputSpec) -> None:
    """Let the graph take (n, height, width, 3) uint8 RGB, in place: layout and normalisation become its own.

    Raises ModelError if it has not exactly one input.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ModelError(f"one input expected, there are {len(inputs)}")
    name = inputs[0].name
    last = "images.normalised" if spec.layout == "NCHW" else name
    nodes = [
        helper.make_node("Cast", ["images"], ["images.float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["images.float", "images.mean"], ["images.centred"]),
        helper.make_node("Div", ["images.centred", "images.std"], [last]),
    ]
    if spec.layout == "NCHW":
        nodes.append(helper.make_node("Transpose", [last], [name], perm=[0, 3, 1, 2]))
    shape: list[str | int] = ["n", spec.height, spec.width, 3]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(values, np.float32), f"images.{what}")
        for what, values in (("mean", spec.mean), ("std", spec.std))
    )
    nodes += graph.node
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
