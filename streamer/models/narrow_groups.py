"""Convolutions of few channels a group, made fast to train in bf16 on a CPU."""

from __future__ import annotations

import torch
from torch import nn

NARROW = 4
"""Channels of a group."""


class NarrowConv2d(nn.Conv2d):
    """`nn.Conv2d` whose training on a CPU is done in f32, in and out of bf16.

    oneDNN (as of torch 2.11) computes some bf16 gradients by its reference code: those of depthwise
    convolutions that have a stride or are 5x5, and of convolutions of 4 channels a group, 3 to 100 times as
    long as in f32, half of the time of a step.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As of `nn.Conv2d`."""
        if self.training and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return self.convolve(x.float()).to(x.dtype)
        return self.convolve(x)

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution itself."""
        return super().forward(x)


def is_slow(conv: nn.Conv2d) -> bool:
    """Whether its bf16 gradients are slow."""
    a_group = conv.in_channels // conv.groups
    plain_depthwise = a_group == 1 and conv.kernel_size[0] == 3 and conv.stride[0] == 1
    return conv.groups > 1 and a_group <= NARROW and not plain_depthwise


def replace_narrow(network: nn.Module) -> None:
    """Put a `NarrowConv2d` of the same weights in the place of each slow convolution."""
    for name, conv in list(network.named_modules()):
        if type(conv) is nn.Conv2d and is_slow(conv):
            narrow = NarrowConv2d(
                conv.in_channels,
                conv.out_channels,
                _pair(conv.kernel_size),
                _pair(conv.stride),
                _pair(conv.padding),
                groups=conv.groups,
                bias=conv.bias is not None,
            )
            narrow.load_state_dict(conv.state_dict())
            network.set_submodule(name, narrow)


def _pair(sizes: tuple[int, ...] | str) -> tuple[int, int]:
    """As torch keeps what it was given for (height, width)."""
    if isinstance(sizes, str):
        raise ValueError(f"padding {sizes!r} is not supported")
    height, width = sizes
    return height, width
