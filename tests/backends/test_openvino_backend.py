"""The OpenVINO backend beside ONNX Runtime, and what it promises beyond numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from networks import SIZE, images, make_network

from streamer.backends.load import load_network
from streamer.backends.probe import probe
from streamer.errors import BackendError, InferenceError, ManifestError

BOTH = ("logit", "features")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_agrees_with_onnxruntime(tmp_path: Path, layout: Literal["NCHW", "NHWC"], n: int) -> None:
    path = make_network(tmp_path, layout=layout, outputs=BOTH)
    ours = load_network(path, backend="openvino", precision="f32").run(images(n))
    theirs = load_network(path, backend="onnxruntime", precision="f32").run(images(n))
    assert [output.shape for output in ours] == [(n, 1), (n, 8)]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_outputs_come_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    path = make_network(tmp_path, outputs=("features", "logit"))
    outputs = load_network(path, backend="openvino", precision="f32").run(images(3))
    assert [output.shape for output in outputs] == [(3, 8), (3, 1)]


def test_a_result_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    network = load_network(make_network(tmp_path), backend="openvino", precision="f32", threads=2)
    batch = images(9)
    (together,) = network.run(batch)
    for index in range(9):
        (alone,) = network.run(batch[index : index + 1])
        assert alone[0] == together[index]


def test_threads_at_once_get_their_own_results(tmp_path: Path) -> None:
    network = load_network(make_network(tmp_path), backend="openvino", precision="f32", threads=2)
    batches = [images(1 + seed % 6, seed=seed) for seed in range(40)]
    expected = [network.run(batch)[0] for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for got, wanted in zip(pool.map(lambda b: network.run(b)[0], batches), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_outputs_are_not_overwritten_by_the_next_run(tmp_path: Path) -> None:
    network = load_network(make_network(tmp_path), backend="openvino", precision="f32", threads=1)
    (first,) = network.run(images(2, seed=1))
    before = first.copy()
    network.run(images(2, seed=2))
    np.testing.assert_array_equal(first, before)


def test_takes_images_that_are_not_contiguous(tmp_path: Path) -> None:
    network = load_network(make_network(tmp_path), backend="openvino", precision="f32")
    wide = images(3, size=2 * SIZE)[:, ::2, ::2]
    np.testing.assert_array_equal(network.run(wide)[0], network.run(wide.copy())[0])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
        np.zeros((1, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((1, SIZE, SIZE, 3), np.float32),
    ],
    ids=["empty", "size", "no batch", "dtype"],
)
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_other_images_are_refused(tmp_path: Path, backend: str, wrong: np.ndarray) -> None:
    network = load_network(make_network(tmp_path), backend=backend, precision="f32")
    with pytest.raises(InferenceError, match="small: expected"):
        network.run(wrong)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_close_is_final_and_idempotent(tmp_path: Path, backend: str) -> None:
    network = load_network(make_network(tmp_path), backend=backend, precision="f32")
    network.close()
    network.close()
    with pytest.raises(InferenceError, match=r"after close\(\)"):
        network.run(images(1))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_output_that_is_not_there(tmp_path: Path, backend: str) -> None:
    path = make_network(tmp_path, outputs=("score",))
    with pytest.raises(ManifestError, match=r"no output 'score'.*features"):
        load_network(path, backend=backend, precision="f32")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_file_that_is_no_network(tmp_path: Path, backend: str) -> None:
    import hashlib

    junk = b"not a network"
    path = make_network(tmp_path, sha256=hashlib.sha256(junk).hexdigest())
    (tmp_path / "small.onnx").write_bytes(junk)
    with pytest.raises(BackendError, match="cannot use"):
        load_network(path, backend=backend, precision="f32")


def test_bf16_is_close_to_f32_or_refused_with_a_reason(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    if not probe("bf16").usable:
        with pytest.raises(BackendError, match="bf16"):
            load_network(path, backend="openvino", precision="bf16")
        return
    (exact,) = load_network(path, backend="openvino", precision="f32").run(images(5))
    network = load_network(path, backend="openvino", precision="bf16")
    (rounded,) = network.run(images(5))
    assert network.device == "openvino bf16 on CPU"
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


def test_telemetry_stays_off(tmp_path: Path) -> None:
    """OpenVINO otherwise writes a client id below the home folder when it is imported, and sends it."""
    path = make_network(tmp_path / "engines")
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import sys; from pathlib import Path; from streamer.backends.load import load_network;"
        f"load_network(Path({str(path)!r}), backend='openvino', precision='f32');"
        "assert 'openvino' in sys.modules;"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry.')]"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"HOME": str(home)}, check=True)
    assert list(home.iterdir()) == []


def test_a_device_that_fails_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("streamer.backends.openvino_backend.OpenVinoNetwork._infer", fail)
    with pytest.raises(BackendError, match=r"OpenVINO cannot use \S+: out of memory$"):
        load_network(make_network(tmp_path), backend="openvino", precision="f32")
