"""HDR pictures of PQ (ITU-R BT.2100) as an ordinary screen shows them. Pure.

The networks were trained on ordinary video. Taken as they are, values of PQ make pictures without contrast,
and the same face gets another score. Those of HLG, the other HDR, are made to be shown as they are.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from streamer.types import Float32Array, UInt8Array

PQ = 16
"""Transfer characteristic of PQ in ITU-T H.273, table 3."""

_WHITE_NITS = 203.0
"""Of paper in HDR (ITU-R BT.2408); here it is the white of the screen."""
_KNEE = 0.75
"""Share of the white from which highlights are compressed, so that what is above white keeps its shape."""
_SCREEN_GAMMA = 2.4  # ITU-R BT.1886
_STEPS = 4096
_ROWS = 64  # worked on at once: what lies in between stays in the cache
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear light, ITU-R BT.2087."""


def tone_mapped(rgb: NDArray[np.uint16]) -> UInt8Array:
    """(height, width, 3) uint16 RGB of PQ with BT.2020 primaries, full range -> uint8 RGB as of BT.709."""
    out = np.empty(rgb.shape, np.uint8)
    table = _light()
    for top in range(0, len(rgb), _ROWS):
        rows = slice(top, top + _ROWS)
        # a colour at a time: numpy is several times as fast on whole rows as on three values
        light = np.stack([table[rgb[rows, :, colour] >> 4] for colour in range(3)])  # (3, rows, width)
        light = np.maximum(np.tensordot(_BT2020_TO_BT709, light, axes=1), 0)
        brightest = np.maximum(np.maximum(light[0], light[1]), light[2])
        above = np.maximum(brightest - np.float32(_KNEE), 0)
        light *= 1 - above * above / ((above + np.float32(1 - _KNEE)) * np.maximum(brightest, _KNEE))
        for colour in range(3):
            out[rows, :, colour] = _screen_values()[_step(light[colour])]
    return out


def _step(light: Float32Array) -> NDArray[np.uint16]:
    """Place of light in [0, 1] in a table by its square root, which is finer where it is dark."""
    return (np.sqrt(light) * np.float32(_STEPS - 1) + np.float32(0.5)).astype(np.uint16)


@cache
def _light() -> Float32Array:
    """Of each value, in _STEPS: the screen's light, white 1 (BT.2100, table 4)."""
    root = np.linspace(0, 1, _STEPS) ** (4096 / (128 * 2523))
    ratio = np.maximum(root - 3424 / 4096, 0) / (32 * 2413 / 4096 - 32 * 2392 / 4096 * root)
    return np.asarray(10_000 / _WHITE_NITS * ratio ** (16384 / 2610), np.float32)


@cache
def _screen_values() -> UInt8Array:
    """Of light in [0, 1]."""
    light = np.linspace(0, 1, _STEPS) ** 2
    return np.rint(255 * light ** (1 / _SCREEN_GAMMA)).astype(np.uint8)
