"""The second way to an engine: the ONNX graph as a PyTorch module, exported, and compiled by
torch-tensorrt."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from streamer.backends.torch_backend import TorchGraph
from streamer.errors import BackendError, missing_extra
from streamer.gpu.graph import engine_graph
from streamer.gpu.stamp import import_tensorrt
from streamer.manifest import InputSpec, Manifest

PRECISIONS = ("f32", "fp16", "bf16")


class GraphModule(nn.Module):
    """An ONNX graph as a module."""

    def __init__(self, graph: TorchGraph) -> None:
        super().__init__()
        self._graph = graph
        self._buffers_of = {name: f"constant_{k}" for k, name in enumerate(graph.constants)}
        for name, buffer in self._buffers_of.items():
            self.register_buffer(buffer, graph.constants[name])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The graph's input -> its outputs."""
        constants = {name: getattr(self, buffer) for name, buffer in self._buffers_of.items()}
        return self._graph.compute(x, constants)


def images_module(file: Path, manifest: Manifest, precision: str) -> GraphModule:
    """A network that takes (n, height, width, 3) uint8 RGB, gives float32, and computes in `precision`."""
    graph = engine_graph(file, manifest, precision)
    return GraphModule(TorchGraph(graph, manifest.outputs, manifest.name))


def export_module(
    module: GraphModule, spec: InputSpec, max_batch: int, device: str
) -> torch.export.ExportedProgram:
    """Export a module from `images_module` for batches of 1 to `max_batch`. Raises what torch.export does."""
    # An example of one image would make the batch size a constant, which it is only if one is the most.
    example = torch.zeros((min(2, max_batch), spec.height, spec.width, 3), dtype=torch.uint8, device=device)
    sizes = ({0: torch.export.Dim("n", min=1, max=max_batch)},) if max_batch > 1 else None
    return torch.export.export(module, (example,), dynamic_shapes=sizes, strict=False)


def build_with_torch(file: Path, manifest: Manifest, precision: str, max_batch: int, device: str) -> bytes:
    """ONNX -> engine for batches of 1 to `max_batch`. Raises BackendError."""
    if precision not in PRECISIONS:
        raise BackendError(f"torch-tensorrt builds {', '.join(PRECISIONS)} here, not {precision}")
    import_tensorrt()
    try:
        import torch_tensorrt
    except Exception as error:  # it raises a bare Exception if libnvinfer is missing
        raise BackendError(f"torch-tensorrt: {error}; {missing_extra('gpu')}") from error
    module = images_module(file, manifest, precision).to(device).eval()
    spec = manifest.input
    shapes = [(n, spec.height, spec.width, 3) for n in (1, max(1, max_batch // 2), max_batch)]
    try:
        plan: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            export_module(module, spec, max_batch, device),
            arg_inputs=[
                torch_tensorrt.Input(
                    min_shape=shapes[0],
                    opt_shape=shapes[1],
                    max_shape=shapes[2],
                    dtype=torch.uint8,
                    name="images",
                )
            ],
            device=torch.device(device),
            disable_tf32=True,  # f32 is to mean f32
            use_explicit_typing=True,
            require_full_compilation=True,
        )
    except Exception as error:  # its exceptions share no base class
        raise BackendError(f"{manifest.name}: torch-tensorrt cannot build it: {error}") from error
    return plan
