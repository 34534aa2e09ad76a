"""A core that another program uses gets no thread."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from depthany.system import free_cores
from depthany.system.device import Compute
from depthany.system.free_cores import Observation, threads_of_model
from depthany.training import run_threads
from depthany.training.checkpoints.state import Progress
from depthany.training.run_threads import keep_threads


def observed(others: float | None) -> Observation:
    return cast(Observation, SimpleNamespace(used_by_others=lambda: others, most_threads=lambda: 2))


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_cores, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(("others", "count"), [(0.0, 2), (0.4, 2), (0.6, 1), (1.0, 1), (2.0, 1), (None, 2)])
def test_threads_leave_cores_to_others(two_cores: None, others: float | None, count: int) -> None:
    found = threads_of_model(None, observed(others))
    assert found.count == count
    assert (found.reason is None) == (count == 2)
    assert found.reason is None or "other programs use" in found.reason


def test_the_user_chooses_threads_first(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of_model(2, observed(2.0)).count == 2
    assert threads_of_model(None, None).count == 2  # the model is on a GPU
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_of_model(None, observed(2.0)).count == 2


def test_only_the_time_of_others_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = {"wall": 10.0, "own": 1.0}
    monkeypatch.setattr(free_cores.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(free_cores, "own_seconds", lambda: clock["own"])
    monkeypatch.setattr(free_cores, "cores", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2}, raising=False)
    tick = os.sysconf("SC_CLK_TCK")
    statistics = tmp_path / "stat"
    monkeypatch.setattr(free_cores, "STATISTICS", statistics)

    def write(idle_s: float) -> None:
        rows = [f"cpu{core} 1 2 3 {int(idle_s * tick)} 5 0 0 0 0 0" for core in range(3)]  # cpu1 is not ours
        statistics.write_text("\n".join(["cpu  9 9 9 9 9 0 0 0 0 0", *rows, "intr 7"]))

    write(100)
    observation = Observation()
    write(101.5)  # each of two cores idle for 1.5 of 10 seconds: 17 used, 10 of them by this process
    clock.update(wall=20.0, own=11.0)
    assert observation.used_by_others() == pytest.approx(0.7)
    monkeypatch.setattr(free_cores, "STATISTICS", tmp_path / "missing")
    assert cast(Any, observation).used_by_others() is None


def test_each_job_of_a_sweep_is_given_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = {"count": 2}
    monkeypatch.setattr(free_cores, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads["count"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    observation = Observation()
    monkeypatch.setattr(observation, "used_by_others", lambda: 1.0)
    threads["count"] = threads_of_model(None, observation).count
    assert threads["count"] == 1
    monkeypatch.setattr(observation, "used_by_others", lambda: 0.0)
    assert threads_of_model(None, observation).count == 2  # the job before had one


def test_a_job_of_a_sweep_observes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 0.0}
    monkeypatch.setattr(free_cores.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(free_cores.time, "sleep", lambda s: clock.update(wall=clock["wall"] + s))
    monkeypatch.setattr(free_cores, "cores", lambda: 2)
    monkeypatch.setattr(free_cores, "own_seconds", lambda: 0.0)
    monkeypatch.setattr(free_cores, "idle_seconds", lambda: max(0.0, 2 * (clock["wall"] - 1000)))
    observation = Observation()
    clock["wall"] = 1000.0  # an hour in which loaders and others were at work
    assert observation.used_by_others() == pytest.approx(0.0)


def test_a_continued_run_keeps_its_threads(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"count": 1}
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen["count"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: chosen.update(count=count))
    monkeypatch.setattr(run_threads, "cores", lambda: 2)
    busy = Compute(torch.device("cpu"), note="1 thread on 2 cores")
    progress = Progress()
    assert keep_threads(progress, None, busy) == ["1 thread on 2 cores"]
    assert progress.threads == 1
    progress.threads = 2  # it began on a quiet machine
    (line,) = keep_threads(progress, None, busy)
    assert "threads: 2, as when the run began" in line
    assert chosen["count"] == 2
    chosen["count"] = 1
    assert keep_threads(progress, 1, Compute(torch.device("cpu"))) == []  # the user has set threads=1
    assert progress.threads == 1
    restored = Progress()
    restored.restore(vars(progress))
    assert restored.threads == 1
