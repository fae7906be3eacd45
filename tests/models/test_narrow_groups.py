"""Convolutions that are slow in bf16: the same numbers, other precision."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride", "slow"),
    [
        (32, 32, 3, 1, False),
        (32, 32, 3, 2, True),
        (32, 32, 5, 1, True),
        (128, 32, 3, 1, True),
        (256, 32, 3, 1, False),
        (32, 1, 3, 2, False),
    ],
)
def test_which_are_slow(channels: int, groups: int, kernel: int, stride: int, slow: bool) -> None:
    from streamer.models.narrow_groups import is_slow

    assert is_slow(torch.nn.Conv2d(channels, channels, kernel, stride, groups=groups)) is slow


def test_replaced_by_one_of_the_same_weights() -> None:
    from streamer.models.narrow_groups import NarrowConv2d, replace_narrow

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.Sequential(torch.nn.Conv2d(8, 8, 5, 2, padding=2, groups=8, bias=True)),
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(2, 3, 16, 16)
    expected = network(x)
    replace_narrow(network)
    assert type(network[0]) is torch.nn.Conv2d
    assert type(network[1][0]) is NarrowConv2d
    assert list(network.state_dict()) == list(before)
    assert torch.equal(network(x), expected)


def test_training_in_bf16_has_the_gradients_of_f32() -> None:
    """Closer to those of f32 than to the difference that bf16 makes; types as before."""
    from streamer.models.narrow_groups import NarrowConv2d

    torch.manual_seed(0)
    conv = NarrowConv2d(16, 16, 5, 2, padding=2, groups=16, bias=False)
    image = torch.randn(2, 16, 16, 16).bfloat16()
    gradients = []
    for enabled in (True, False):
        x = (image if enabled else image.float()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x)
        assert y.dtype == x.dtype
        weight, grad = torch.autograd.grad(y.float().sum(), [conv.weight, x])
        gradients.append((weight, grad.float()))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-2, atol=1e-2)


def test_evaluation_follows_autocast() -> None:
    from streamer.models.narrow_groups import NarrowConv2d

    conv = NarrowConv2d(4, 4, 3, 2, groups=4).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(1, 4, 8, 8)).dtype == torch.bfloat16
