"""Every script runs at its smallest setting; none of them measures anything here."""

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
BENCHMARKS = {  # arguments of benchmark.py -> what it prints
    "inference --encoder vitt --size 28 --batches 1 --rounds 1": "transformers bf16 : ours bf16 =",
    "data --size 28 --pictures 84x63 --batch 2 --rounds 1": "ours reduced : torchvision v2 =",
    "labels --teacher {teacher} --images {images} --size 28 --rounds 1": "the store: plane + deflate Z_RLE",
    "train --encoder vitt --sizes 28 --stage student --batch 3 --rounds 1 --one-process": "waiting for data",
}
OTHERS = {
    "benchmark_evaluate --images 2 --size 42 56 --model vitt --input-size 28 --threads 1": "% outside",
    "benchmark_labeling --encoder vitt --size 28 --batch 2 --images 2 --threads 1 --rounds 1": "median:",
    "benchmark_predict --encoder vitt --photos 4 --size 80x60 --input-size 28 --rounds 1": "CPU time, the",
    "benchmark_saves --encoder vitt --rounds 1": "forward pass",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Returns a function that runs `<script> <arguments>` in this process and returns what it printed."""

    def run_script(command: str) -> str:
        name, *arguments = command.split()
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        importlib.import_module(name).main()
        return capsys.readouterr().out

    return run_script


@pytest.mark.parametrize("arguments", BENCHMARKS)
def test_benchmark_runs(
    arguments: str, run: Callable[[str], str], teacher_run: Path, tiny_world: Any, micro: str
) -> None:
    images = tiny_world.root / "val/images/val_0.png"
    assert BENCHMARKS[arguments] in run("benchmark " + arguments.format(teacher=teacher_run, images=images))


@pytest.mark.parametrize("command", OTHERS)
def test_measuring_script_runs(command: str, run: Callable[[str], str]) -> None:
    assert OTHERS[command] in run(command)


def test_scaling_benchmark_has_help(run: Callable[[str], str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("benchmark scaling --help")


@pytest.mark.slow
def test_index_benchmark_runs(run: Callable[[str], str]) -> None:
    printed = run("benchmark_index --entries 2000 --shards 4 --images 200 --lookups 50")
    assert printed.count("resumed: the same bytes") == 2  # tars and folders


def test_ladder_scores_finished_runs(
    run: Callable[[str], str], teacher_run: Path, tiny_world: Any, tmp_path: Path, micro: str
) -> None:
    for rung in ("teacher", "naive_student", "perturbations", "feature_alignment"):
        shutil.copytree(teacher_run, tmp_path / f"runs/{rung}_0")
        (tmp_path / f"runs/{rung}_0/minutes.txt").write_text("1.5\n")
    for folder in ("images", "depth"):
        for scenes in ("rooms", "streets"):
            for domain in ("labeled/val", "unlabeled/val"):
                shutil.copytree(
                    tiny_world.root / "val" / folder, tmp_path / "data" / domain / folder / scenes
                )
    printed = run(f"ladder --seeds 0 --out {tmp_path / 'runs'} --data {tmp_path / 'data'}")
    assert "| | labeled AbsRel | labeled delta1 | unlabeled AbsRel | unlabeled delta1 | minutes |" in printed
    assert "| naive student | +0.000 (+0.000 to +0.000) |" in printed  # the same model as the teacher
    assert (tmp_path / "runs/ladder.png").stat().st_size > 0


def test_ladder_settings_are_known(
    start: Callable, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    naive = importlib.import_module("ladder").NAIVE
    ended = start([*tiny_world.settings("student", tmp_path / "run", *naive), "--cfg", "job"])
    assert ended.code == 0, ended.err


def test_sample_encoder_is_pretrained(run: Callable[[str], str], tiny_world: Any, tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    out = tmp_path / "encoder.safetensors"
    run(
        f"pretrain_sample_encoder --steps 1 --batch 2 --threads 1 --roots {tiny_world.root / 'unlabeled'} "
        f"--out {out}"
    )
    with safe_open(out, "pt") as file:
        assert file.metadata()["steps"] == "1"


def test_only_missing_images_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("render_sample")
    counts = [word for split in script.SPLITS for word in (f"--{split.option.replace('_', '-')}", "2")]
    monkeypatch.setattr(sys, "argv", ["render_sample.py", "--out", str(tmp_path), *counts])
    jobs = script.todo(script.parse_args())
    assert len(jobs) == 2 * len(script.SPLITS)
    first = jobs[0]
    assert first.missing() == ("depth", "masks", "images")
    first.path("images").touch()
    assert script.todo(script.parse_args())[0].missing() == ("depth", "masks")
    for kind in first.missing():
        first.path(kind).touch()
    assert script.todo(script.parse_args()) == jobs[1:]
