"""How far a student is from the frozen encoder, in the log, and a feature alignment that decides nothing."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from depthany.system import cpu_wait
from depthany.system.distributed import ALONE, Processes
from depthany.training.alignment_watch import AlignmentWatch
from depthany.training.checkpoints.state import Progress
from depthany.training.meter import Meter, log_scalars
from depthany.training.quantiles import quantiles
from depthany.training.stages.base import StageOutput
from depthany.training.tracking import Tracker

ZERO_TO_TEN = torch.tensor([[3.0, 1.0, 2.0, 0.0], [10.0, 9.0, 8.0, 7.0], [4.0, 6.0, 5.0, 0.0]])


class Dealt(Processes):
    """Three processes, of which this one plays all: each holds a row."""

    def gather(self, value):
        rows = list(ZERO_TO_TEN.numpy())
        assert value.tolist() in [row.tolist() for row in rows]
        return [*rows, value[:0]]


def test_quantiles_by_hand_on_one_and_more_ranks() -> None:
    expected = {"a/p10": 0, "a/p50": 5, "a/p90": 9, "a/max": 10}  # places 1, 6, 10, 11 of 0 0 1 2 ... 10
    assert quantiles({"a": ZERO_TO_TEN}) == expected
    assert quantiles({"a": ZERO_TO_TEN[1]}, Dealt(size=4)) == expected
    assert quantiles({"a": torch.empty(0, 4)}) == {}


def output(kept: float | None, distance: float = 0.0) -> StageOutput:
    if kept is None:  # without unlabeled images
        return StageOutput(torch.tensor(1.0), {}, {})
    tokens = torch.full((2, 3), distance)
    return StageOutput(
        torch.tensor(1.0),
        {"feature_alignment/tokens_kept": torch.tensor(kept)},
        {},
        {"feature_alignment/distance": tokens},
    )


def test_quantiles_are_of_newest_micro_batch_with_tokens() -> None:
    meter = Meter()
    for each in (output(0.0, 0.25), output(0.0, 0.5), output(None)):
        meter.add(each, images=3, micro_batches=1)
    assert meter.means()["feature_alignment/distance/p50"] == 0.5
    meter.restart()
    meter.add(output(None), images=3, micro_batches=1)
    assert not any("feature" in name for name in meter.means())


def test_quantiles_wait_for_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> Tensor:
        raise AssertionError("sorted outside of a logging step")

    meter = Meter()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "sort", refuse)
        meter.add(output(0.0, 0.5), images=3, micro_batches=1)
    assert meter.means()["feature_alignment/distance/max"] == 0.5


class Log:
    """Lines of the log of a run, `every` steps apart, and what was said."""

    def __init__(self, folder: Path, total_steps: int, every: int, progress: Progress | None = None) -> None:
        self.progress, self.every = progress or Progress(), every
        self.meter = Meter(ALONE, True, AlignmentWatch(total_steps, self.progress.steps_in_a_row))
        self.tracker = Tracker(folder, self.progress.step, total_steps, "", loggers=["jsonl"])
        self.said: list[str] = []
        self.tracker.say = self.keep  # type: ignore[method-assign]
        self.optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "name": "encoder"}], 1.0)

    def keep(self, line: str) -> None:
        if "minutes to go" not in line:  # a slow machine says so
            self.said.append(line)

    def steps(self, shares: Iterable[float | None]) -> "Log":
        for share in shares:
            for _ in range(2):  # micro-batches
                self.meter.add(output(share, 0.02), images=1, micro_batches=2)
            self.progress.step += 1
            if self.progress.step % self.every == 0:
                zero = torch.tensor(0.0)
                log_scalars(
                    self.tracker, self.progress.step, self.meter, self.optimizer, zero, torch.device("cpu")
                )
        return self


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_wait, "SCHEDULER", tmp_path / "none")  # no line about a busy machine
    opened: list[Log] = []

    def open_log(total_steps: int = 1000, every: int = 10, progress: Progress | None = None) -> Log:
        opened.append(Log(tmp_path, total_steps, every, progress))
        return opened[-1]

    yield open_log
    for each in opened:
        each.tracker.close()


@pytest.mark.parametrize("every", [1, 10, 60])
def test_share_near_0_is_warned_of_after_300_steps(log, every: int) -> None:
    lines = log(every=every).steps([0.0, 0.015, 0.0] * 80)  # on average 0.5 %; alone 1.5 % is more than 1 %
    assert lines.said == []
    lines.steps([0.001] * 60)
    assert len(lines.said) == (every > 1)
    lines.steps([0.001] * 300)
    (line,) = lines.said
    step = 300 if every > 1 else 539  # of 240 steps the last two are above 1 % and below it
    assert line.startswith(f"warning: at step {step}: feature alignment does next to nothing")
    assert "for 300 steps in a row less than 1% of the tokens were beyond alpha (0.10% now" in line
    assert "1 - cos to the frozen encoder: median 0.02, largest 0.02" in line
    assert list(lines.meter.faults) == ["alignment_idle"], "named again as training ends"


def test_share_near_1_is_warned_of_once(log) -> None:
    lines = log().steps([0.995] * 300)
    assert len(lines.said) == 1
    assert "feature alignment leaves no token out: for 300 steps in a row more than 99%" in lines.said[0]
    lines.steps([0.5] * 10)
    assert lines.meter.faults == {}
    lines.steps([0.995] * 300 + [0.0] * 300)
    assert [line.split(": ")[2] for line in lines.said[1:]] == ["feature alignment does next to nothing"]


def test_share_that_acts_is_not_warned_of(log) -> None:
    assert log().steps([0.0] * 290 + [0.2] * 10 + [0.0] * 290 + [0.985, 0.011] * 300).said == []


@pytest.mark.parametrize(("acting", "count"), [(0.25, 0), (0.15, 1)])
def test_few_tokens_act_if_the_loss_is_their_mean(acting: float, count: int) -> None:
    watch, means = AlignmentWatch(), {"feature_alignment/tokens_kept": 0.002}
    means |= {"feature_alignment/steps_acting": acting}
    faults = watch.faults(means, 300)
    assert len(faults) == count
    assert all("0.20% now, and any in 15% of the steps" in line for line in faults.values())


def test_steps_without_unlabeled_images_do_not_count(log) -> None:
    lines = log().steps([None, 0.0] * 299)
    assert lines.said == []
    lines.steps([0.0, 0.0])
    assert len(lines.said) == 1


def test_long_run_waits_for_hundredth_of_its_steps(log) -> None:
    lines = log(total_steps=100_000, every=100).steps([0.0] * 900)
    assert lines.said == []
    assert len(lines.steps([0.0] * 100).said) == 1


def test_resumed_run_counts_on(log) -> None:
    first = log().steps([0.0] * 200)
    progress = Progress()
    progress.restore(json.loads(json.dumps(vars(first.progress))))
    assert progress.steps_in_a_row == {"alignment_idle": 200.0}
    assert len(log(progress=progress).steps([0.0] * 100).said) == 1
    progress.restore({"step": 5, "best_score": None})  # of an older version
    assert progress.steps_in_a_row == {}


def test_idle_alignment_is_named_as_training_ends(
    start, tiny_world, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthany.training.alignment_watch.FEWEST_STEPS", 4)
    words = (f"stage.teacher={teacher_run}", "log_every=2", "eval_every=0", "stage.feature_alignment.alpha=2")
    ended = start(tiny_world.settings("student", tmp_path / "run", *words))
    assert ended.code == 0, ended.err
    assert "warning: at step 4: feature alignment does next to nothing: for 4 steps" in ended.out
    assert "warning: as training ended: feature alignment does next to nothing: for 6 steps" in ended.out
    assert ended.out.count("next to nothing") == 2
