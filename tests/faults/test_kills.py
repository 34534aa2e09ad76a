"""Training and labeling under kill -9 at random moments: what comes out is what comes out without.

Each run is killed from outside, a random time after it was seen to start, step, validate or save, and each
time further on. The counts are printed: pytest -s.
"""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.data.pseudo_labels.store import read_manifest
from depthany.data.pseudo_labels.verify import verify_shards

# For `before`: what a run is doing, and at which step, stands in a file, so that a test can tell what its
# kills have hit. Disk, steps and validation are slow, so that a phase lasts longer than a test on a busy
# machine takes to see it.
PHASES = """
import os, time
import depthany.training.loop as loop
import depthany.commands.train_command as train
def note(phase, step):
    now[:] = phase, step
    os.pwrite(handle, f"{{phase}} {{step}}".ljust(99).encode(), 0)
def told(name, phase, step_of=lambda *_: now[1]):
    function = getattr(train, name)
    def wrapped(*arguments, **more):
        before = now[0]
        note(phase, step_of(*arguments))
        time.sleep(0 if phase == "steps" else 0.1)
        try:
            return function(*arguments, **more)
        finally:
            note(before, now[1])
    setattr(train, name, wrapped)
def update(*arguments, take=loop.update):
    norm = take(*arguments)
    time.sleep(0.02)
    note(now[0], now[1] + 1)
    return norm
def slow_fsync(handle, fsync=os.fsync):
    time.sleep(0.03)
    fsync(handle)
handle, now = os.open({path!r}, os.O_RDWR | os.O_CREAT), ["start", 0]
note("start", 0)
told("train", "steps", lambda run, *_: run.state.progress.step)
told("evaluate", "validation")
told("finish", "finish")
loop.update, os.fsync = update, slow_fsync
"""
# Seconds after which the kill comes at most.
DELAYS = {"start": 0.3, "steps": 0.2, "save": 0.05, "validation": 0.03, "finish": 0.05}


def logged(run_dir: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock and the process."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("speed/", "memory"))} for line in lines]


def killed_once(
    nursery, module: str, command: list[str], is_time: Callable[[], bool], delay_s: float, before: str = ""
) -> int:
    """Exit code of a run that is killed so long after `is_time`, if it goes on for so long."""
    child = nursery.start(module, command, before)
    try:
        until = time.monotonic() + 60
        while not is_time() and not child.ended_within(0.001):
            assert time.monotonic() < until, "the run came to nothing"
        if not child.ended_within(delay_s):
            child.kill()
        return child.result(60).code
    finally:
        child.clean_up()


def settings(world, stage: str, run_dir: Path, teacher_run: Path, steps: int) -> list[str]:
    student = (f"stage.teacher={teacher_run}",) if stage == "student" else ()
    more = (f"steps={steps}", "save_every=2", "eval_every=5", "workers=1", "log_every=1")
    return world.settings(stage, run_dir, *more, *student)


def doing(run_dir: Path, note: Path) -> tuple[str, int]:
    """What a run is doing, or was doing as it was killed, and the steps that it has taken."""
    phase, step = (note.read_text().split() if note.exists() else None) or ("start", 0)
    return "save" if any(run_dir.glob("checkpoints/.*.partial")) else phase, int(step)


def aims_of(kills: int, steps: int) -> list[tuple[str, int]]:
    """What the kills wait for: a phase, after so many steps at least; the last three at the end of the run,
    where the save comes before the validation.
    """
    cycle, last = ("steps", "save", "start", "validation"), ("save", "validation", "finish")
    on_the_way = [(cycle[i % 4], steps * i // kills) for i in range(kills - 3)]
    return [*on_the_way, *((phase, steps) for phase in last)][-kills:]


def kill_training(
    nursery, command: list[str], run_dir: Path, aims: list[tuple[str, int]], dice: random.Random
) -> tuple[Counter[str], int]:
    """Kill a run once for each aim; gives what was hit and the steps that were to be taken again."""
    hit, again, note = Counter[str](), 0, run_dir.parent / "phase"
    for wanted, least in aims:
        note.unlink(missing_ok=True)
        for path in run_dir.rglob("*.partial"):  # of an earlier kill
            path.unlink()

        def is_time(wanted: str = wanted, least: int = least) -> bool:
            phase, step = doing(run_dir, note)
            return phase == wanted and (step >= least or wanted == "start")

        code = killed_once(
            nursery, "train", command, is_time, dice.uniform(0, DELAYS[wanted]), PHASES.format(path=str(note))
        )
        assert code == -signal.SIGKILL, f"{wanted} after step {least}: ended with {code} before it was killed"
        phase, step = doing(run_dir, note)
        hit[phase] += 1
        saved = max((int(path.stem[5:]) for path in run_dir.glob("checkpoints/step_*.pt")), default=0)
        again += max(0, step - saved)
    return hit, again


@pytest.mark.parametrize(
    "stage, kills",
    [
        ("student", 3),
        pytest.param("teacher", 24, marks=pytest.mark.slow),
        pytest.param("student", 24, marks=pytest.mark.slow),
    ],
)
def test_training_killed_at_random_reaches_same_bits(
    nursery, start, tiny_world, teacher_run: Path, tmp_path: Path, stage: str, kills: int
) -> None:
    steps = 60 if kills > 3 else 6
    whole, killed = (
        settings(tiny_world, stage, tmp_path / n, teacher_run, steps) for n in ("whole", "killed")
    )
    ended = start([*whole, "workers=0"])
    assert ended.code == 0, ended.err
    dice = random.Random(f"{stage} {kills}")
    hit, again = kill_training(nursery, killed, tmp_path / "killed", aims_of(kills, steps), dice)
    ended = start([*killed, "workers=0"])
    assert ended.code == 0, ended.err

    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert models[0] == models[1]
    last = [f"{name}/checkpoints/step_{steps:08d}.pt" for name in ("whole", "killed")]
    states = [torch.load(tmp_path / path, weights_only=True) for path in last]
    assert states[0]["state"] == states[1]["state"]
    assert logged(tmp_path / "whole") == logged(tmp_path / "killed")
    assert [line["step"] for line in logged(tmp_path / "killed") if "loss/total" in line] == [
        *range(1, steps + 1)
    ]
    print(f"{stage}: {hit.total()} kills ({dict(hit)}), all survived, 0 steps lost, {again} taken again")
    assert kills == 3 or hit.keys() == DELAYS.keys()


END = """
import os, signal
import depthany.commands.train_command as train
{where}
"""
LAST_WRITES = {
    "before the results": "train.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "within the model": """
import depthany.models.model as models
write = models.write_atomically
def half(path, fill):
    def filled(partial):
        fill(partial)
        os.truncate(partial, os.path.getsize(partial) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, filled)
models.write_atomically = half
""",
}


@pytest.mark.parametrize("where", LAST_WRITES)
def test_training_killed_writing_the_model_only_finishes(
    nursery, start, tiny_world, teacher_run: Path, tmp_path: Path, where: str
) -> None:
    command = tiny_world.settings("teacher", tmp_path / "run")
    child = nursery.start("train", command, END.format(where=LAST_WRITES[where]))
    assert child.result(60).code == -signal.SIGKILL
    assert not (tmp_path / "run/model.safetensors").exists()
    ended = start(command)
    assert ended.code == 0 and "continuing at step 6 of 6" in ended.out
    same = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "run", teacher_run)]
    assert same[0] == same[1]


def content(store: Path) -> dict[str, bytes]:
    """All files of a store, by name."""
    paths = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def label_settings(images: Path, teacher: Path, out: Path) -> list[str]:
    """Three images to a shard."""
    return [
        f"teacher={teacher}",
        f"out={out}",
        "data=folder",
        f"data.unlabeled.mine.root={images}",
        *("shard_size=3", "batch_size=2", "workers=1", "threads=1", "device=cpu", "precision=fp32"),
    ]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_labeling_killed_at_random_makes_same_store(
    nursery, teacher_run: Path, tmp_path: Path, kills: int
) -> None:
    images, count = tmp_path / "images", (40 if kills == 3 else 100) * kills
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for i in range(count):
        Image.fromarray(np.roll(pixels, i, 1)).save(images / f"{i:05d}.png")
    whole, killed = (label_settings(images, teacher_run, tmp_path / name) for name in ("whole", "killed"))
    assert nursery.start("pseudo_label", whole).result().code == 0

    dice, hit, store = random.Random(kills), Counter[str](), tmp_path / "killed"
    while hit.total() < kills:
        for path in store.rglob("*.partial"):  # of an earlier kill
            path.unlink()
        before = len(list(store.glob("shards/*.json")))
        has_begun = partial(lambda count: len(list(store.glob("shards/*.json"))) > count, before)
        is_time = (has_begun, lambda: any(store.rglob("*.partial")), lambda: True)[hit.total() % 3]
        delay_s = dice.uniform(0, (0.3, 0.003, 1.0)[hit.total() % 3])
        code = killed_once(nursery, "pseudo_label", killed, is_time, delay_s)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        in_write = any(store.rglob("*.partial"))
        hit["write of a file" if in_write else "labeling" if has_begun() else "start"] += 1
    assert nursery.start("pseudo_label", killed).result().code == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert [problem for shard in verify_shards(tmp_path / "killed") for problem in shard.problems] == []
    assert read_manifest(tmp_path / "killed")[1]["labels"] == count
    print(f"{hit.total()} kills of labeling ({dict(hit)}), {hit.total()} survived, 0 images lost of {count}")
    assert hit.total() == kills
    assert hit["labeling"] + hit["write of a file"] >= kills // 3
