"""A checkpoint that was cut short, changed or killed in its write is never taken for a whole one."""

import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from depthany.training.checkpoints.resume import load_latest
from depthany.training.checkpoints.state import list_checkpoints, read_checkpoint, write_checkpoint

CUTS, FLIPS = 60, 60


def payload(step: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    return {
        "model": {f"layer.{k}.weight": torch.randn(9, 7 + k, generator=draw) for k in range(12)},
        "optimizer": {"state": {k: {"step": torch.tensor(float(step))} for k in range(4)}},
        "state": {"step": step, "best_score": 0.25},
    }


def same(left: Any, right: Any) -> bool:
    """Whether two payloads are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        write_checkpoint(tmp_path / f"step_0000000{step}.pt", payload(step))
    return tmp_path


def test_cut_checkpoint_falls_back_to_previous(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = two / "step_00000002.pt"
    content, dice = newest.read_bytes(), random.Random(0)
    cuts = {0, 1, len(content) - 1, *(dice.randrange(len(content)) for _ in range(CUTS))}
    fell_back = 0
    for cut in cuts:
        caplog.clear()
        newest.write_bytes(content[:cut])
        fell_back += same(load_latest(two), payload(1)) and f"{newest} is damaged" in caplog.text
    assert len(cuts) >= CUTS
    assert fell_back == len(cuts)


def test_flipped_bit_falls_back_to_previous(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = two / "step_00000002.pt"
    content, dice = newest.read_bytes(), random.Random(0)
    fell_back = 0
    for _ in range(FLIPS):
        caplog.clear()
        flip(newest, content, dice.randrange(8 * len(content)))
        loaded = load_latest(two)
        fell_back += same(loaded, payload(1)) and f"{newest} is damaged" in caplog.text
    assert fell_back == FLIPS


def flip(path: Path, content: bytes, bit: int) -> None:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def test_flipped_bit_of_a_weight_is_noticed(two: Path) -> None:
    path = two / "step_00000002.pt"
    content = path.read_bytes()
    weight = payload(2)["model"]["layer.3.weight"].numpy().tobytes()
    flip(path, content, 8 * (content.index(weight) + 17) + 6)
    assert not same(torch.load(path, weights_only=True), payload(2)), "torch takes it as it is"
    with pytest.raises(ValueError, match="its checksum does not match its bytes"):
        read_checkpoint(path)


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.pt"
    write_checkpoint(path, {"model": {"w": torch.arange(6.0)}, "state": {"step": 1}})
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flip(path, content, bit)
        with pytest.raises((ValueError, RuntimeError, zipfile.BadZipFile), match=r"."):
            read_checkpoint(path)


def test_checkpoint_without_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.pt"
    torch.save(payload(1), path)
    with pytest.raises(ValueError, match="its end is missing"):
        read_checkpoint(path)


def test_torch_load_reads_a_sealed_checkpoint(two: Path) -> None:
    path = two / "step_00000002.pt"
    assert same(torch.load(path, weights_only=True), payload(2))
    assert same(torch.load(path, weights_only=True, mmap=True), payload(2))


# The child makes a process for each kill: it has imported everything and has no threads yet. Each saves again
# and again, changing the state in place right after each save, until the child kills it.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from depthany.training.stages.base import Stage
torch.set_num_threads(1)
from depthany.models.output import Quantity
from depthany.training.checkpoints.state import TrainingState, list_checkpoints
from depthany.training.checkpoints.resume import load_latest
from depthany.training.checkpoints.writer import CheckpointWriter

class Model(nn.Module):
    config, quantity = {}, Quantity("disparity")
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(100_000) for _ in range(8))

def save_on_and_on(folder, state, told):
    with CheckpointWriter(folder, 2, "stop", print) as writer:
        while True:
            state.progress.step += 1
            for weight in state.model.weights:
                weight.data.fill_(state.progress.step)
            writer.save(state)
            os.write(told, state.progress.step.to_bytes(8, "big"))
            for weight in state.model.weights:
                weight.data.fill_(-1)

folder, dice, step, damaged, wrong, half = Path(sys.argv[1]), random.Random(0), 0, 0, 0, 0
for kill in range(int(sys.argv[2])):
    hear, told = os.pipe()
    process = os.fork()
    if process == 0:
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        state = TrainingState(model, Stage(), optimizer, torch.amp.GradScaler("cpu", enabled=False))
        state.progress.step = step
        save_on_and_on(folder, state, told)
    os.close(told)
    os.read(hear, 8)  # of the first save
    time.sleep(dice.uniform(0, 0.05))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    begun = step + 1
    while heard := os.read(hear, 8):
        begun = int.from_bytes(heard, "big")
    os.close(hear)
    half += any(folder.glob(".*.partial"))
    before = step
    payload = load_latest(folder)
    if payload is not None:
        step = payload["state"]["step"]
        wrong += any((w != step).any() for w in payload["model"].values())
    assert step >= max(before, begun - 1), (before, begun, step)  # all but the save under way are durable
    assert step <= begun + 1
print(f"half {half} wrong {wrong} checkpoints {len(list_checkpoints(folder))} steps {step}")
"""


def killed(folder: Path, kills: int) -> dict[str, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLS, str(folder), str(kills)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "is damaged" not in err, "what has its name is whole"
    words = out.split()
    return dict(zip(words[::2], map(int, words[1::2])))


def test_every_save_before_a_kill_is_whole(tmp_path: Path) -> None:
    counts = killed(tmp_path, 20)
    assert counts["half"] >= 3, "kills came while a file was half written"
    assert counts["wrong"] == 0
    assert 1 <= len(list_checkpoints(tmp_path)) <= 3
