"""Precision in which convolutions and matrix products are computed while training; weights stay f32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from streamer.training.config import TrainConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """In which a network is to be called. config: its precision settled."""
    if config.precision == "f32":
        return nullcontext()
    context: AbstractContextManager[object] = torch.autocast(device.type, DTYPES[config.precision])
    return context


def with_precision(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The same with `auto` settled for a device."""
    if config.precision != "auto":
        return config
    return config.model_copy(update={"precision": "bf16" if computes_bf16(device) else "f32"})


def computes_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bfloat16, lest it be emulated: on an AMD Zen 3, without AVX-512,
    steps of three networks took 5, 8 and 15 times as long as in f32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last one: ARM
