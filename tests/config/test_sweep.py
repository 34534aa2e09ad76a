"""A sweep (-m) runs all of its jobs, to different places, and a table says what came out."""

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

from depthany.config.entry import run_entry
from depthany.config.sweep_plan import LONGEST_SUFFIX

SEEN: list[DictConfig] = []
PREDICT = ("checkpoint=x", "images=y")


@pytest.fixture
def sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, list[dict[str, str]]]]:
    """Runs a command under -m with a job of the test; returns exit code, stderr and the table."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, job: Callable[[DictConfig], int], *words: str, **more: Any) -> Any:
        SEEN.clear()
        monkeypatch.setattr(sys, "argv", [command, "-m", *words])
        several, output = ("checkpoint", "protocols", "save"), "run_dir" if command == "train" else "out"
        code = run_entry(command, job, several=several, output=output, **more)
        lines = [line for table in tmp_path.rglob("sweep.csv") for line in csv.DictReader(table.open())]
        return code, capsys.readouterr().err, lines

    return run


def keep(cfg: DictConfig) -> int:
    SEEN.append(cfg)
    return 0


def seen(key: str) -> list[Any]:
    return [getattr(cfg, key) for cfg in SEEN]


def test_all_jobs_run_in_order_to_different_places(sweep: Callable, tmp_path: Path) -> None:
    code, _, lines = sweep("predict", keep, *PREDICT, "fov_deg=50,60", "save=color,npy", "batch_size=1")
    assert code == 0
    assert [(cfg.fov_deg, cfg.save) for cfg in SEEN] == [
        (50, "color"),
        (50, "npy"),
        (60, "color"),
        (60, "npy"),
    ]
    assert seen("out")[1] == "outputs/predict_fov_deg=50_save=npy"
    assert [line["output"] for line in lines] == seen("out") and len(set(seen("out"))) == 4
    assert lines[0]["settings"] == "fov_deg=50 save=color"
    assert [line["exit"] for line in lines] == ["0"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    written = next((tmp_path / "outputs/sweeps").iterdir())
    assert sorted(path.name for path in written.iterdir()) == ["multirun.yaml", "sweep.csv"]


def test_own_output_is_kept_as_written(sweep: Callable) -> None:
    assert sweep("train", keep, "stage=teacher", "seed=0,1", "run_dir=o/${seed}_${hydra:job.num}")[0] == 0
    assert seen("run_dir") == ["o/0_0", "o/1_1"]


def test_one_output_for_two_jobs_is_refused_first(sweep: Callable, tmp_path: Path) -> None:
    for words in (["fov_deg=5,6", "out=o"], ["out=o/../p,p"]):
        code, err, _ = sweep("predict", keep, *PREDICT, *words)
        assert (code, SEEN, list(tmp_path.iterdir())) == (2, [], [])
        assert "jobs 0 and 1 would write there; add what differs to it, as in out=" in err
    code, err, _ = sweep("train", keep, "stage=teacher", "model=vits,vitx")
    assert (code, SEEN) == (2, []) and "unknown model 'vitx'" in err


def test_student_finds_teacher_of_its_sweep(sweep: Callable) -> None:
    assert sweep("train", keep, "stage=teacher,student")[0] == 0
    assert seen("run_dir") == ["outputs/teacher", "outputs/student"]
    assert SEEN[1].stage.teacher == "outputs/teacher"
    assert sweep("train", keep, "stage=teacher,student", "seed=0,1", "run_dir=o/${stage.name}${seed}")[0] == 0
    assert [cfg.stage.get("teacher") for cfg in SEEN] == [None, None, "o/teacher0", "o/teacher1"]


def test_teacher_must_come_before_its_student(sweep: Callable) -> None:
    code, err, _ = sweep("train", keep, "stage=student,teacher")
    assert (code, SEEN) == (2, []) and "is before its teacher: write stage=teacher,student" in err
    code, err, _ = sweep("train", keep, "stage=teacher,student", "stage.teacher=mine")
    assert (code, SEEN) == (2, []) and "unknown setting 'stage.teacher'" in err


def fail_first(cfg: DictConfig) -> int:
    if cfg.fov_deg == 5:
        raise ValueError("5 is bad")
    return keep(cfg) if cfg.fov_deg == 7 else {}[cfg.fov_deg]  # a KeyError, which is a defect


def test_other_jobs_go_on_after_an_error(sweep: Callable) -> None:
    code, err, lines = sweep("predict", fail_first, *PREDICT, "fov_deg=5,6,7")
    assert (code, seen("fov_deg")) == (2, [7])
    assert [line["exit"] for line in lines] == ["2", "1", "0"]
    assert [line["message"] for line in lines] == ["5 is bad", "KeyError: 6", ""]
    assert "error: job 0 (fov_deg=5): 5 is bad" in err


def fail_teacher(cfg: DictConfig) -> int:
    return 1 if cfg.stage.name == "teacher" else keep(cfg)


def test_student_of_a_failed_teacher_is_not_run(sweep: Callable) -> None:
    code, _, lines = sweep("train", fail_teacher, "stage=teacher,student")
    assert (code, SEEN, [line["exit"] for line in lines]) == (2, [], ["1", "2"])
    assert lines[1]["message"] == "not run, since job 0, its teacher, failed"


def interrupt(cfg: DictConfig) -> int:
    if cfg.fov_deg == 6:
        raise KeyboardInterrupt
    return keep(cfg)


def stop(cfg: DictConfig) -> int:
    if cfg.fov_deg == 6:
        raise SystemExit(143)
    return keep(cfg)


def return_130(cfg: DictConfig) -> int:
    return 130 if cfg.fov_deg == 6 else keep(cfg)


@pytest.mark.parametrize("job, expected", [(interrupt, 130), (stop, 143), (return_130, 130)])
def test_interruption_ends_the_whole_sweep(
    sweep: Callable, tmp_path: Path, job: Callable, expected: int
) -> None:
    try:
        code, _, _ = sweep("predict", job, *PREDICT, "fov_deg=5,6,7")
    except SystemExit as end:
        code = end.code
    lines = list(csv.DictReader(next(tmp_path.rglob("sweep.csv")).open()))
    assert (code, seen("fov_deg")) == (expected, [5])
    ends = [("0", ""), (str(expected), "interrupted"), ("", "not finished")]
    assert [(line["exit"], line["message"]) for line in lines] == ends


def test_suffix_is_the_name_of_a_file(sweep: Callable) -> None:
    assert sweep("predict", keep, "checkpoint=/a (1)/x.pth,org/name", "images=y")[0] == 0
    assert seen("out") == ["outputs/predict_checkpoint=-a-1-x.pth", "outputs/predict_checkpoint=org-name"]
    assert sweep("predict", keep, f"checkpoint=a b,a-b,{'c' * LONGEST_SUFFIX}", "images=y")[0] == 0
    assert seen("out") == [f"outputs/predict_job={i}" for i in range(3)]


OTHERS = {
    "evaluate": (["checkpoint=a (1),b", "protocols=folder"], "outputs/evaluate_checkpoint=a-1-"),
    "pseudo_label": (["teacher=a,b"], "outputs/pseudo_labels_teacher=a"),
    "check_data": (["seed=1,2"], "outputs/check_data_seed=1"),
}


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_sweep_too(sweep: Callable, command: str) -> None:
    words, first = OTHERS[command]
    code, _, lines = sweep(command, keep, *words)
    assert (code, len(SEEN), len({line["output"] for line in lines})) == (0, 2, 2)
    assert seen("out")[0] == first


def test_scores_are_columns_of_the_table(sweep: Callable) -> None:
    words = (*PREDICT, "fov_deg=5,6")
    code, _, lines = sweep("predict", keep, *words, scores=lambda cfg: {"abs_rel": 1 / cfg.fov_deg})
    assert (code, [float(line["abs_rel"]) for line in lines]) == (0, [1 / 5, 1 / 6])


def test_sweep_below_torchrun_is_refused(sweep: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    of_torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    of_torchrun |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for key, value in of_torchrun.items():
        monkeypatch.setenv(key, value)
    code, err, _ = sweep("predict", keep, *PREDICT, "fov_deg=5,6")
    assert (code, SEEN) == (2, []) and "leave out torchrun" in err


def test_page_is_not_served_by_a_sweep(sweep: Callable) -> None:
    code, err, _ = sweep("app", keep, "checkpoint=a,b", sweeps=False)
    assert (code, SEEN) == (2, []) and "-m is for commands that end by themselves" in err


def test_students_on_a_cluster_need_trained_teachers(sweep: Callable) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    code, err, _ = sweep("train", keep, "stage=teacher,student", "hydra/launcher=submitit_slurm")
    assert (code, SEEN) == (2, []) and "start the teachers first" in err


def test_jobs_equal_runs_of_their_own(
    start: Callable, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tiny_world.settings("student", tmp_path, "steps=2", "eval_every=0")
    words = [word for word in words if not word.startswith(("stage=", "run_dir="))]
    ended = start(["-m", "stage=teacher,student", "seed=0,1", *words])
    assert ended.code == 0, ended.err
    one = ["stage=student", "run_dir=single", "seed=1", "stage.teacher=outputs/teacher_seed=1"]
    assert start([*words, *one]).code == 0
    of_sweep, of_one = (load_file(f"{run}/model.safetensors") for run in ("outputs/student_seed=1", "single"))
    assert all(of_sweep[name].equal(of_one[name]) for name in of_one)
    line = next(csv.DictReader(next(tmp_path.rglob("sweep.csv")).open()))
    assert 0 < float(line["mine abs_rel"]) < 1


def test_student_of_another_teacher_is_not_skipped(
    start: Callable, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tiny_world.settings("student", tmp_path, "steps=1", "eval_every=0", "data.val.mine.root=null")
    words = [word for word in words if not word.startswith(("stage=", "run_dir="))]
    assert start(["-m", "stage=teacher,student", *words]).code == 0
    weights = load_file("outputs/teacher/model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, "outputs/teacher/model.safetensors")
    ended = start(["-m", "stage=teacher,student", *words])
    assert (ended.code, "1 of 2 jobs succeeded" in ended.out) == (1, True)
    assert "error: job 1 (stage=student): outputs/student holds a finished run with other" in ended.err
    assert "stage.teacher=outputs/teacher: the weights there have changed" in ended.err


def die_at_6(cfg: DictConfig) -> int:
    if cfg.fov_deg == 6:
        os._exit(3)
    Path(cfg.out).mkdir(parents=True)
    return 0


@pytest.mark.slow
def test_jobs_of_submitit_run_and_are_counted(
    sweep: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # of the function, in another process
    local = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2"]
    code, err, lines = sweep("predict", die_at_6, *PREDICT, "fov_deg=5,6", *local)
    assert (code, [line["exit"] for line in lines]) == (1, ["0", ""])
    assert "a job ended without a result" in err
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"sweeps", "predict_fov_deg=5"}
