"""Which precisions this machine survives: a tiny network is run in a subprocess before OpenVINO uses them.

A virtual machine may show AMX in CPUID and yet mask it; OpenVINO then dies of SIGILL as soon as it runs bf16
or int8, and takes the process with it. `ONEDNN_MAX_CPU_ISA` lowers the instruction set that oneDNN uses.
OpenVINO reads it once, when its CPU plugin is created, so it must be in the environment before that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from streamer.errors import BackendError

Precision = Literal["f32", "bf16", "int8"]

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"

ISA_STEPS = ("AVX512_CORE_FP16", "AVX512_CORE_BF16", "AVX512_CORE_VNNI", "AVX512_CORE", "AVX2_VNNI", "AVX2")
"""Instruction sets without AMX, best first (oneDNN, "CPU dispatcher control")."""

_PROBE_TIMEOUT_SECONDS = 60.0

_PROBE = """
import sys
sys.modules["openvino_telemetry"] = None
import numpy as np
import openvino as ov
from openvino import opset13 as op
weights = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64, 1, 1)
image = op.parameter([1, 64, 16, 16], np.float32)
if sys.argv[1] == "int8":
    def quantised(node, levels):
        limits = [op.constant(np.float32(v)) for v in (-1.28, 1.27, -1.28, 1.27)]
        return op.fake_quantize(node, *limits, levels)
    kernel = quantised(op.constant(weights), 255)
    features = quantised(image, 256)
else:
    kernel, features = op.constant(weights), image
out = op.convolution(features, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
hint = "bf16" if sys.argv[1] == "bf16" else "f32"
compiled = ov.Core().compile_model(
    ov.Model([out], [image]), "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
)
assert np.isfinite(compiled([np.ones((1, 64, 16, 16), np.float32)])[0]).all()
chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
sys.exit(0 if chosen == hint else 3)
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of a probe."""

    usable: bool
    isa: str | None
    """Value that ONEDNN_MAX_CPU_ISA needs; None: nothing to set."""
    reason: str
    """Why it is not usable, or what was found; empty when all is well."""


_lock = threading.Lock()


def probe(precision: Precision) -> Probe:
    """Find out whether OpenVINO survives `precision` here, and with which instruction set.

    Runs a subprocess (about 0.5 s each) on the first call; the outcome is kept for the life of the process.
    """
    with _lock:
        return _probe(precision)


@cache
def _probe(precision: Precision) -> Probe:
    code, text = _run(precision, None)
    if code == 0:
        return Probe(True, None, "")
    if code == 3:
        return Probe(False, None, f"this CPU has no {precision} arithmetic that OpenVINO would use")
    if code >= 0:
        return Probe(False, None, f"OpenVINO cannot run {precision} here: {text[-300:]}")
    died = f"OpenVINO dies of {signal.Signals(-code).name} when it runs {precision} on this machine"
    if preset := os.environ.get(ISA_VARIABLE):
        return Probe(
            False, None, f"{died} with {ISA_VARIABLE}={preset} in the environment; unset or lower it"
        )
    for isa in ISA_STEPS:
        if (code := _run(precision, isa)[0]) == 0:
            return Probe(True, isa, f"{died}, unless {ISA_VARIABLE}={isa}")
        if code == 3:
            break
    return Probe(False, None, f"{died}, whatever {ISA_VARIABLE}")


def _run(precision: Precision, isa: str | None) -> tuple[int, str]:
    environment = dict(os.environ) | ({ISA_VARIABLE: isa} if isa else {})
    try:
        done = subprocess.run(  # noqa: S603 (our own text, our own interpreter)
            [sys.executable, "-c", _PROBE, precision],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {_PROBE_TIMEOUT_SECONDS:.0f} s"
    return done.returncode, done.stderr.strip()


def cpu_shows_amx() -> bool:
    """Whether CPUID shows AMX, the instruction set that virtual machines show and then mask."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def lower_isa(found: Probe, *, too_late: bool) -> None:
    """Put into the environment what a probe found necessary.

    too_late: OpenVINO's CPU plugin may exist in this process already; then raises BackendError.
    """
    if found.isa is None or os.environ.get(ISA_VARIABLE) == found.isa:
        return
    if too_late:
        raise BackendError(
            f"{found.reason}, and this process may have used OpenVINO already: "
            f"start it with {ISA_VARIABLE}={found.isa} in the environment"
        )
    os.environ[ISA_VARIABLE] = found.isa
