"""The precision of training is one that the device computes."""

from __future__ import annotations

from typing import Any

import pytest
from toy import toy_config

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("able", "precision"),
    [
        ({"avx2": True}, "f32"),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "f32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"neon": True, "bf16": True}, "bf16"),
    ],
)
def test_auto_is_what_the_cpu_can(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, Any], precision: str
) -> None:
    from streamer.training.precision import with_precision

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert with_precision(toy_config(precision="auto"), CPU).precision == precision
    for named in ("f32", "bf16", "fp16"):
        assert with_precision(toy_config(precision=named), CPU).precision == named


@pytest.mark.parametrize(("precision", "dtype"), [("f32", "float32"), ("bf16", "bfloat16")])
def test_products_are_computed_in_it(precision: str, dtype: str) -> None:
    from streamer.training.precision import autocast

    with autocast(toy_config(precision=precision), CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, dtype)
