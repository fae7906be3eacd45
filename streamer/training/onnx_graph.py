"""Changes to exported ONNX graphs: constants computed beforehand, weights stored in half the bytes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from streamer.errors import ModelError


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
