"""Runs under torchrun: the same results however many processes share a batch, one log, one end for all."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from depthany.models.files.loading import load_model
from nursery import Ended

pytestmark = pytest.mark.usefixtures("micro")

# Micro-batches of 3 labeled and 6 unlabeled images, which no even number of processes shares evenly.
UNEVEN = ("steps=20", "accumulate=2", "batch_size=18", "save_every=5", "eval_every=10", "optimizer.lr=1e-4")
UNEVEN += ("stage.feature_alignment.alpha=0.01",)
SKIP = ("data.unreadable=skip", "data.max_unreadable_share=1")
# A median, and with it a share of the gradient, jumps from pixel to pixel; least squares is smooth.
SMOOTH = (*UNEVEN, "loss.normalisation=least_squares")


def arguments(world, run_dir: Path, teacher_run: Path, *more: str) -> list[str]:
    return world.settings("student", run_dir, f"stage.teacher={teacher_run}", *more)


def logged(run_dir: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock and the process."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("speed/", "memory"))} for line in lines]


def assert_same_curves(run_dir: Path, other: Path, rel: float) -> None:
    found, expected = logged(run_dir), logged(other)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():  # outputs have no normalisation that takes rounding out
            scale = 10 if name.startswith("output/") else 1
            assert mine[name] == pytest.approx(value, rel=scale * rel, abs=1e-6), name


def assert_same_weights(run_dir: Path, other: Path, largest: float) -> None:
    found, expected = (load_model(folder).state_dict() for folder in (run_dir, other))
    differences = {name: float((found[name] - tensor).abs().max()) for name, tensor in expected.items()}
    for name in (
        "head.conv2.bias",
        "head.conv3.bias",
    ):  # the loss is blind to the shift: their gradient
        assert differences.pop(name) < 2e-3  # is rounding alone, which Adam brings to the size of a step
    assert max(differences.values()) <= largest, max(differences.items(), key=lambda item: item[1])


@pytest.fixture(scope="module")
def alone(start, tiny_world, teacher_run: Path, tmp_path_factory) -> Path:
    """A run of one process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    ended = start(arguments(tiny_world, run_dir, teacher_run, *SMOOTH))
    assert ended.code == 0, ended.err
    return run_dir


@pytest.fixture(scope="module")
def two(torchrun, tiny_world, teacher_run: Path, tmp_path_factory) -> Path:
    """The same run of two processes, with what it printed in `out.txt` beside it."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    ended = torchrun(arguments(tiny_world, run_dir, teacher_run, *SMOOTH))
    assert ended.code == 0, ended.err
    (run_dir.parent / "out.txt").write_text(ended.out)
    return run_dir


def only(rank: int, code: str) -> str:
    """`before` of one process: the lines of `code`."""
    lines = "\n".join(f"    {line}" for line in code.strip().splitlines())
    return f"import os\nif os.environ['RANK'] == '{rank}':\n{lines}"


def errors(err: str) -> list[str]:
    """What ours say on stderr, without what torchrun adds."""
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_two_ranks_take_the_steps_of_one(alone: Path, two: Path) -> None:
    assert_same_curves(two, alone, rel=1e-4)
    assert_same_weights(two, alone, largest=1e-6)
    assert any(
        0 < line.get("feature_alignment/tokens_kept", 0) < 1 for line in logged(alone)
    )  # a mean over the kept


@pytest.mark.slow
def test_two_ranks_share_pseudo_labels_alone(
    start, torchrun, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    words = (*SMOOTH, "steps=6", "stage.ratio=[0,1]", "stage.weights.labeled=0", "stage.terms={gradient: 2}")
    one, two, split = tmp_path / "one", tmp_path / "two", tmp_path / "split"
    for begin, run_dir, more in (
        (start, one, ()),
        (torchrun, two, ()),
        (torchrun, split, ("parallel=fsdp",)),
    ):
        ended = begin(arguments(tiny_world, run_dir, teacher_run, *words, *more))
        assert ended.code == 0, ended.err
    assert_same_curves(two, one, rel=1e-4)
    assert_same_weights(two, one, largest=1e-5)
    # FSDP rounds otherwise, which changes signs in the gradient of |step|; Adam makes steps of that
    assert_same_curves(split, one, rel=1e-3)
    assert_same_weights(split, one, largest=5e-4)
    assert all("loss/unlabeled/gradient" in line for line in logged(one) if "loss/total" in line)


def test_rank_0_writes_and_prints_for_all(alone: Path, two: Path) -> None:
    names = [sorted(path.name.split(".vm")[0] for path in run.rglob("*")) for run in (alone, two)]
    assert [name.split(".")[0] for name in names[0]] == [name.split(".")[0] for name in names[1]]
    out = (two.parent / "out.txt").read_text()
    assert out.count("step 7/20") == out.count("model: ") == 1
    assert "cpu in float32, 2 processes (DDP)" in out


@pytest.mark.slow
def test_signal_to_one_rank_stops_all(
    torchrun, start, signal_at, tiny_world, teacher_run, two, alone, tmp_path: Path
) -> None:
    settings = arguments(tiny_world, tmp_path / "run", teacher_run, *SMOOTH)
    ended = torchrun(settings, before=only(1, signal_at(signal.SIGUSR1, step=7)))
    assert ended.code != 0
    assert ended.out.count("stopped at step 7, all saved; the same command continues") == 1, ended.err
    assert not errors(ended.err)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    again = torchrun(settings)
    assert "continuing at step 7 of 20" in again.out, again.err
    assert (tmp_path / "run/model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert logged(tmp_path / "run") == logged(two)
    (tmp_path / "run").rename(tmp_path / "of_two")
    (tmp_path / "moved").rename(tmp_path / "run")
    assert "continuing at step 7 of 20" in start(settings).out
    assert_same_curves(tmp_path / "run", alone, rel=1e-4)
    assert_same_weights(tmp_path / "run", alone, largest=1e-6)


def test_bad_image_of_one_rank_ends_all(torchrun, own_world, teacher_run: Path, tmp_path: Path) -> None:
    bad = own_world.root / "unlabeled/street_3.jpg"
    bad.write_bytes(b"")
    began = time.monotonic()
    ended = torchrun(arguments(own_world, tmp_path / "run", teacher_run, "batch_size=9"))
    assert time.monotonic() - began < 40  # with the start of torch, which takes most of it
    assert ended.code != 0
    said = errors(ended.err)
    assert sum(str(bad) in line for line in said) == 1
    assert all(str(bad) in line or "lost contact" in line for line in said)  # if torchrun is slow to end it
    assert "src/depthany" not in "".join(re.findall(r"^.*Traceback.*\n(?:.*\n){3}", ended.err, re.MULTILINE))


@pytest.mark.slow
def test_killed_rank_ends_others_and_loses_nothing(
    torchrun, signal_at, tiny_world, teacher_run, two, tmp_path: Path
) -> None:
    settings = arguments(tiny_world, tmp_path / "run", teacher_run, *SMOOTH, "workers=1")
    ended = torchrun(settings, before=only(1, signal_at(signal.SIGKILL, step=8)), timeout_s=60)
    assert ended.code != 0
    assert not (tmp_path / "run/model.safetensors").exists()
    assert "continuing at step 5 of 20" in torchrun(settings).out
    assert (tmp_path / "run/model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert logged(tmp_path / "run") == logged(two)


@pytest.mark.slow
def test_rank_failing_at_start_keeps_none_waiting(
    torchrun, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    noted = tmp_path / "noted"
    failing = f"""
import pathlib, time
time.sleep(6)  # the other one is there before
pathlib.Path({str(noted)!r}).write_text(str(time.time()))
raise SystemExit("no such disk on this machine")
"""
    ended = torchrun(arguments(tiny_world, tmp_path / "run", teacher_run), before=only(1, failing))
    assert ended.code != 0
    assert time.time() - float(noted.read_text()) < 15
    assert "no such disk on this machine" in ended.err


def test_mistake_in_command_is_reported_once(torchrun, tiny_world, teacher_run, tmp_path: Path) -> None:
    ended = torchrun(arguments(tiny_world, tmp_path / "run", teacher_run, "batch_size=3"), processes=3)
    assert ended.code != 0
    assert len(errors(ended.err)) == 1
    assert "batch_size=3 is that of all processes together" in errors(ended.err)[0]


@pytest.mark.slow
def test_four_ranks_take_the_steps_of_one(torchrun, tiny_world, teacher_run, alone, tmp_path: Path) -> None:
    ended = torchrun(arguments(tiny_world, tmp_path / "run", teacher_run, *SMOOTH), processes=4)
    assert ended.code == 0, ended.err
    assert_same_curves(tmp_path / "run", alone, rel=1e-4)
    assert_same_weights(tmp_path / "run", alone, largest=1e-6)


@pytest.mark.slow
def test_four_ranks_resume_to_same_bits(
    torchrun, start, signal_at, own_world, teacher_run, tmp_path: Path
) -> None:
    (own_world.root / "unlabeled/street_3.jpg").write_bytes(b"")
    settings = {
        name: arguments(own_world, tmp_path / name, teacher_run, *UNEVEN, *SKIP)
        for name in ("alone", "four", "stopped")
    }
    assert start(settings["alone"]).code == 0
    ended = torchrun(settings["four"], processes=4)
    assert ended.code == 0, ended.err
    losses = [
        [x["loss/total"] for x in logged(tmp_path / run) if "loss/total" in x] for run in ("four", "alone")
    ]
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # medians jump
    lists = [
        sorted((tmp_path / run / "unreadable.txt").read_text().splitlines()) for run in ("alone", "four")
    ]
    assert lists[0] == lists[1] != []
    torchrun(settings["stopped"], processes=4, before=only(2, signal_at(signal.SIGTERM, step=6)))
    assert "continuing at step 6 of 20" in torchrun(settings["stopped"], processes=4).out
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("stopped", "four")]
    assert weights[0] == weights[1]
    assert logged(tmp_path / "stopped") == logged(tmp_path / "four")


SPLIT = (*SMOOTH, "parallel=fsdp")


@pytest.mark.slow
def test_fsdp_run_resumes_on_one_rank(
    torchrun, start, signal_at, tiny_world, teacher_run, alone, tmp_path: Path
) -> None:
    settings = arguments(tiny_world, tmp_path / "run", teacher_run, *SPLIT)
    ended = torchrun(settings, before=only(0, signal_at(signal.SIGTERM, step=12)))
    assert "2 processes (FSDP)" in ended.out, ended.err
    assert "stopped at step 12, all saved" in ended.out, ended.err
    checkpoints = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert checkpoints == ["best.pt", "progress.json", "step_00000010.dcp", "step_00000012.dcp"]
    again = start(settings)
    assert "continuing at step 12 of 20" in again.out, again.err
    assert_same_curves(tmp_path / "run", alone, rel=1e-3)  # convolutions of another memory layout round more
    assert_same_weights(tmp_path / "run", alone, largest=1e-5)


@pytest.mark.slow
def test_sharded_checkpoint_resumes_on_any_ranks(
    torchrun, signal_at, tiny_world, teacher_run, alone, tmp_path: Path
) -> None:
    def settings(name: str, *more: str) -> list[str]:
        return arguments(tiny_world, tmp_path / name, teacher_run, *SPLIT, *more)

    assert torchrun(settings("whole")).code == 0
    stopped = only(1, signal_at(signal.SIGTERM, step=12))
    torchrun(settings("run"), before=stopped)
    shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    torchrun(settings("run"))
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")

    def goes_on(from_step: int, *more: str, processes: int = 2) -> Ended:
        ended = torchrun(settings("run", *more), processes)
        assert f"continuing at step {from_step} of 20" in ended.out, ended.err
        assert_same_curves(tmp_path / "run", alone, rel=1e-3)
        assert_same_weights(tmp_path / "run", alone, largest=1e-5)
        return ended

    def again() -> Path:
        shutil.rmtree(tmp_path / "run")
        return shutil.copytree(tmp_path / "stopped", tmp_path / "run") / "checkpoints"

    again()
    goes_on(12, processes=3)
    again()
    goes_on(12, "parallel=ddp")
    damaged = next((again() / "step_00000012.dcp").glob("__1_*.distcp"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    ended = goes_on(10)
    assert f"step_00000012.dcp is damaged ({damaged.name}: its checksum" in ended.err
    shutil.rmtree(tmp_path / "run")
    torchrun(settings("run", "parallel=ddp"), before=stopped)
    goes_on(12)


FULL_ONCE = """
import depthany.training.checkpoints.sharded as sharded
crc32, calls = sharded.crc32, []
def full(path):
    calls.append(path)
    if len(calls) == 1:
        raise OSError(28, "No space left on device")
    return crc32(path)
sharded.crc32 = full
"""


@pytest.mark.slow
@pytest.mark.parametrize("if_save_fails", ["continue", "stop"])
def test_unwritable_shard_leaves_no_half_checkpoint(
    torchrun, tiny_world, teacher_run, alone, tmp_path: Path, if_save_fails: str
) -> None:
    settings = arguments(tiny_world, tmp_path / "run", teacher_run, *SPLIT, f"if_save_fails={if_save_fails}")
    ended = torchrun(settings, before=only(1, FULL_ONCE))
    assert f"{ended.out}{ended.err}".count("No space left on device; files written before are complete") == 1
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*.dcp"))
    if if_save_fails == "stop":
        assert ended.code != 0
        assert len(errors(ended.err)) == 1
        assert kept == []
        assert torchrun(settings).code == 0
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*.dcp")) == [
        "step_00000015.dcp",
        "step_00000020.dcp",
    ]
    assert_same_curves(tmp_path / "run", alone, rel=1e-3)


@pytest.mark.slow
def test_other_settings_end_all_ranks_in_one_line(torchrun, tiny_world, teacher_run: Path) -> None:
    ended = torchrun(tiny_world.settings("teacher", teacher_run, "seed=5"))
    assert ended.code == 1
    assert len(errors(ended.err)) == 1
    assert "finished run with other settings or data" in ended.err
    assert "seed: 0 -> 5" in ended.err
    ended = torchrun(tiny_world.settings("teacher", teacher_run))
    assert (ended.code, ended.out.count("holds a finished run with these settings")) == (0, 1)


@pytest.mark.slow
def test_changed_teacher_ends_all_ranks_in_one_line(
    torchrun, tiny_world, teacher_run: Path, tmp_path: Path
) -> None:
    teacher, run_dir = shutil.copytree(teacher_run, tmp_path / "teacher"), tmp_path / "run"
    more = ("steps=2", "eval_every=0", "data.val.mine.root=null", f"stage.teacher={teacher}")
    command = tiny_world.settings("student", run_dir, *more)
    assert torchrun(command).code == 0
    weights = load_file(teacher / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, teacher / "model.safetensors")
    ended = torchrun(command)
    assert ended.code == 1 and len(errors(ended.err)) == 1
    assert "the weights there have changed since the run began" in ended.err
    (run_dir / "model.safetensors").unlink()
    ended = torchrun(command)
    assert len(errors(ended.err)) == 1
    assert "the weights there have changed since the run began" in ended.err
