"""Anchors of MediaPipe's BlazeFace networks: the points that raw boxes are relative to.

After `mediapipe/calculators/tflite/ssd_anchors_calculator.cc` with the options of
`face_detection_short_range`, `face_detection_back` and `face_detection_full_range`: cell centres in row-major
order, layers of one stride together, anchor width and height fixed at 1 (so boxes are in input pixels).
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType

import numpy as np

from streamer.errors import ManifestError
from streamer.types import Float32Array

_GRIDS = MappingProxyType(
    {
        # input size, px: ((cells per side, anchors per cell), ...)
        128: ((16, 2), (8, 6)),  # short range: strides 8, 16, 16, 16; two anchors for each stride
        256: ((16, 2), (8, 6)),  # back camera: strides 16, 32, 32, 32
        192: ((48, 1),),  # full range: one layer of stride 4, one anchor per cell
    }
)


@cache
def make_anchors(input_size: int) -> Float32Array:
    """Anchor centres of the network with this input.

    input_size: width and height of the network's input, pixels: 128, 256 (896 anchors) or 192 (2304).
    Returns (anchors, 2) float32, read-only, (x, y) as fractions of the input in (0, 1). Raises ManifestError
    for another size.
    """
    if input_size not in _GRIDS:
        raise ManifestError(
            f"no BlazeFace network has an input of {input_size} px; known: {', '.join(map(str, _GRIDS))}"
        )
    layers = []
    for cells, per_cell in _GRIDS[input_size]:
        centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        x, y = np.meshgrid(centres, centres)  # (cells, cells), row-major
        layers.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), per_cell, axis=0))
    anchors = np.concatenate(layers).astype(np.float32)  # (anchors, 2)
    anchors.setflags(write=False)
    return anchors
