"""Probes, with real subprocesses that really die."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from streamer.backends import probe as module
from streamer.backends.probe import ISA_STEPS, ISA_VARIABLE, Probe, lower_isa, probe
from streamer.errors import BackendError

DIES_UNLESS = """
import os, signal, sys
if os.environ.get("ONEDNN_MAX_CPU_ISA") not in {allowed!r}:
    os.kill(os.getpid(), signal.SIGILL)
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine of which nothing is known yet."""
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    module._probe.cache_clear()
    yield monkeypatch
    module._probe.cache_clear()


def test_f32_runs_everywhere(machine: pytest.MonkeyPatch) -> None:
    assert probe("f32") == Probe(True, None, "")


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_this_machine_gets_an_answer(machine: pytest.MonkeyPatch, precision: module.Precision) -> None:
    found = probe(precision)
    assert found.usable or found.reason
    assert found.isa is None or found.isa in ISA_STEPS


def test_a_probe_runs_once_per_process(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(module, "_PROBE", "")
    assert probe("int8").usable
    machine.setattr(module, "_PROBE", "raise SystemExit(1)")
    assert probe("int8").usable


def test_the_best_instruction_set_that_survives_is_taken(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(module, "_PROBE", DIES_UNLESS.format(allowed=ISA_STEPS[2:]))
    found = probe("int8")
    assert found.usable
    assert found.isa == ISA_STEPS[2]
    assert "SIGILL" in found.reason


def test_none_that_survives(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(module, "_PROBE", DIES_UNLESS.format(allowed=()))
    found = probe("int8")
    assert not found.usable
    assert "SIGILL" in found.reason


def test_a_choice_of_the_user_is_not_overridden(machine: pytest.MonkeyPatch) -> None:
    machine.setenv(ISA_VARIABLE, "AVX512_CORE_AMX")
    machine.setattr(module, "_PROBE", DIES_UNLESS.format(allowed=ISA_STEPS))
    found = probe("bf16")
    assert not found.usable
    assert "ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX" in found.reason


def test_a_precision_that_openvino_would_replace_is_not_usable(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(module, "_PROBE", "raise SystemExit(3)")
    found = probe("bf16")
    assert not found.usable
    assert "no bf16 arithmetic" in found.reason


def test_a_broken_installation_says_why(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(module, "_PROBE", "import no_such_library")
    found = probe("bf16")
    assert not found.usable
    assert "no_such_library" in found.reason


def test_the_instruction_set_is_lowered_in_time(machine: pytest.MonkeyPatch) -> None:
    machine.setenv(ISA_VARIABLE, "")
    lower_isa(Probe(True, None, ""), too_late=True)
    assert not os.environ[ISA_VARIABLE]
    lower_isa(Probe(True, "AVX2", "dies"), too_late=False)
    assert os.environ[ISA_VARIABLE] == "AVX2"
    lower_isa(Probe(True, "AVX2", "dies"), too_late=True)  # it is so already


def test_or_else_the_user_is_told_what_to_do(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="with ONEDNN_MAX_CPU_ISA=AVX2 in the environment"):
        lower_isa(Probe(True, "AVX2", "dies"), too_late=True)
