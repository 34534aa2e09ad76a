"""One of two processes of torchrun under kill -9: the other ends too, and two go on to the same bits."""

import json
import random
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("micro")]

# Begins a countdown in the process of one rank, in the phase of the run that is asked for.
COUNTDOWN = """
import os, pathlib, signal, threading, time
def die():
    pathlib.Path({note!r}).write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)
def begin(*_):
    countdown = threading.Timer({delay_s}, die)
    countdown.daemon = True
    countdown.start()
if os.environ["RANK"] == "{rank}":
{when}
"""
AT_ONCE = "    begin()"
# At a step of this process, counted from 1, and in a function of the loop.
AT_STEP = """
    import torch.optim.optimizer as optimizers
    taken = []
    def count(*_):
        taken.append(0)
        if len(taken) == {step}:
            begin()
    optimizers.register_optimizer_step_pre_hook(count)
"""
IN_FUNCTION = """
    import depthany.commands.train_command as train
    def wrapped(*arguments, function=train.{name}, **more):
        begin()
        return function(*arguments, **more)
    train.{name} = wrapped
"""
# The rank that dies (None: drawn), when its countdown begins, and how long it may take at most. The end of
# the run is that of rank 0, which alone writes. A fast machine takes several steps in a countdown: together
# they stay far below the steps of the run, so that each attempt still has a step to die in.
KILLS = (
    (None, AT_ONCE, 1.5),
    (None, AT_STEP.format(step=4), 0.05),
    (None, AT_STEP.format(step=6), 0.05),
    (None, IN_FUNCTION.format(name="evaluate"), 0.0),
    (0, AT_STEP.format(step=4), 0.05),
    (1, AT_STEP.format(step=7), 0.05),
    (0, IN_FUNCTION.format(name="finish"), 0.0),
)


def logged(run_dir: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock and the process."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("speed/", "memory"))} for line in lines]


def test_killed_rank_ends_both_and_resumes_bitwise(
    torchrun, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    more = ("steps=60", "batch_size=9", "save_every=2", "eval_every=30", "workers=1")
    settings = {
        name: tiny_world.settings("student", tmp_path / name, f"stage.teacher={teacher_run}", *more)
        for name in ("whole", "killed")
    }
    ended = torchrun(settings["whole"])
    assert ended.code == 0, ended.err

    dice, note, took = random.Random(0), tmp_path / "killed_at", []
    for rank, when, longest_s in KILLS:
        note.unlink(missing_ok=True)
        rank = dice.randrange(2) if rank is None else rank
        delay_s = dice.uniform(0, longest_s)
        before = COUNTDOWN.format(note=str(note), delay_s=delay_s, rank=rank, when=when)
        ended = torchrun(settings["killed"], before=before, timeout_s=90)
        assert note.exists(), f"rank {rank} was to be killed: {when}\n{ended.out}\n{ended.err}"
        took.append(time.time() - float(note.read_text()))
        assert ended.code != 0
        assert f"local_rank: {rank}" in ended.err and "SIGKILL" in ended.err
        assert not (tmp_path / "killed/model.safetensors").exists()
    ended = torchrun(settings["killed"])
    assert ended.code == 0, ended.err

    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert models[0] == models[1]
    assert logged(tmp_path / "whole") == logged(tmp_path / "killed")
    print(f"{len(took)} kills of one of two processes, all ended within {max(took):.1f} s; 0 steps lost")
    assert max(took) < 20
