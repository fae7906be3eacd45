from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamer.errors import TrainingError
from streamer.training.workers import in_processes

_offset = 0


def start(offset: int) -> None:
    global _offset
    _offset = offset


def work(job: int) -> tuple[int, int]:
    if job == -1:
        os._exit(1)
    if job == -2:
        raise TrainingError("job -2")
    if job == 0:
        time.sleep(0.3)  # the first finishes last
    return job + _offset, os.getpid()


def test_in_the_order_of_the_jobs() -> None:
    results = list(in_processes(work, range(20), workers=2, start=start, arguments=(100,)))
    assert [number for number, _ in results] == list(range(100, 120))
    processes = {process for _, process in results}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_jobs_are_taken_as_they_are_needed() -> None:
    taken = []

    def jobs() -> object:
        for k in range(1000):
            taken.append(k)
            yield k

    results = in_processes(work, jobs(), workers=1, start=start, arguments=(0,))  # type: ignore[arg-type, type-var]
    next(results)
    assert len(taken) < 10
    results.close()  # type: ignore[attr-defined]


def test_an_error_of_a_job_is_raised_after_the_results_before_it() -> None:
    results = in_processes(work, [1, -2, 3], workers=1, start=start, arguments=(0,))
    assert next(results)[0] == 1
    with pytest.raises(TrainingError, match="job -2"):
        next(results)


def test_a_dead_worker() -> None:
    with pytest.raises(TrainingError, match="a worker process died"):
        list(in_processes(work, [-1], workers=1, start=start, arguments=(0,)))


def test_workers_end_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "from test_workers import wait\nif __name__ == '__main__': wait()"],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    assert parent.stdout.readline() == "working\n"
    parent.kill()
    assert parent.communicate(timeout=30)[0] == ""  # its workers, too, have let go of its output


def wait() -> None:
    results = in_processes(work, [1, 2], workers=1, start=start, arguments=(0,))
    next(results)
    print("working", flush=True)
    sys.stdin.read()  # until it is killed, or the test has failed


INTERRUPTED = """
import time
from streamer.training.workers import in_processes

if __name__ == "__mp_main__":
    print("importing", flush=True)
    time.sleep(1)

def work(job=0):
    return job

if __name__ == "__main__":
    try:
        list(in_processes(work, [1], workers=1, start=work, arguments=()))
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ctrl_c_while_workers_import_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "interrupted.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout
    assert parent.stdout.readline() == "importing\n"
    os.killpg(parent.pid, signal.SIGINT)
    said, errors = parent.communicate(timeout=60)
    assert said.splitlines()[-1] == "interrupted"
    assert errors == ""


def test_no_jobs() -> None:
    assert list(in_processes(work, [], workers=1, start=start, arguments=(0,))) == []
