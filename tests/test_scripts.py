"""Every script runs at its smallest setting; none of them measures anything here."""

import importlib
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from depthany import load_model
from depthany.system.device import Compute

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
BENCHMARKS = {  # arguments of benchmark.py -> what it prints
    "inference --encoder vitt --size 28 --batches 1 --rounds 1": "transformers bf16 : ours bf16 =",
    "data --size 28 --pictures 84x63 --batch 2 --rounds 1": "ours reduced : torchvision v2 =",
    "labeling --encoder vitt --size 28 --batch 2 --images 2 --threads 1 --rounds 1": "median:",
    "labels --teacher {teacher} --images {images} --size 28 --rounds 1": "the store: plane + deflate Z_RLE",
    "student --batches 3 --images 3 --rounds 1 batch_size=3 crop_size=28 experiment=none model=vitt "
    "model.encoder.size=micro model.pretrained=false data=folder data.labeled.mine.depth_scale=1000 "
    "data.labeled.mine.root={world}/labeled data.unlabeled.mine.root={world}/unlabeled": "once, batch 3 |",
    "train --encoder vitt --sizes 28 --stage student --batch 3 --rounds 1 --one-process": "waiting for data",
    "train --encoder vitt --sizes 28 --stage metric --batch 2 --rounds 1 --one-process": "bins : relative =",
    "train --encoder vitt --sizes 28 --stage gradient --batch 2 --rounds 1 --one-process": "gradient : ",
}
OTHERS = {
    "benchmark_evaluate --images 2 --size 42 56 --model vitt --input-size 28 --threads 1": "% outside",
    "benchmark_predict --encoder vitt --photos 4 --size 80x60 --input-size 28 --rounds 1": "CPU time, the",
    "benchmark_saves --encoder vitt --rounds 1": "forward pass",
}
STARTS = ("bare_encoder", "teacher", "student")  # of the ladders that fine-tune


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
    names = {"teacher": teacher_run, "images": images, "world": tiny_world.root}
    assert BENCHMARKS[arguments] in run("benchmark " + arguments.format(**names))


@pytest.mark.parametrize("command", OTHERS)
def test_measuring_script_runs(command: str, run: Callable[[str], str]) -> None:
    assert OTHERS[command] in run(command)


def test_device_benchmark_counts_what_a_step_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    benchmark = importlib.import_module("benchmark_device")
    options = Namespace(encoder="vitt", sizes=[28], batch=3, stage=["student"], rounds=1, steps=1)
    options.compiled = options.checkpointing = False
    benchmark.run_training(options, Compute(torch.device("cpu"), torch.bfloat16), peak_side=64)
    printed = capsys.readouterr().out
    options.stage, options.head, options.batch = ["metric"], ["bins"], 2
    benchmark.run_training(options, Compute(torch.device("cpu"), torch.bfloat16), peak_side=64)
    assert "bins : relative =" in capsys.readouterr().out
    assert all(part in printed for part in ("| ours |", "| transformers |", "operators a step", "optimizer"))


def test_scaling_benchmark_has_help(run: Callable[[str], str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("benchmark scaling --help")


@pytest.mark.slow
def test_index_benchmark_runs(run: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(importlib.import_module("benchmark_index"), "KILLED_AT", (0.7,))
    printed = run("benchmark_index --entries 2000 --shards 4 --images 200 --lookups 50")
    assert printed.count("resumed: the same bytes") == 2  # tars and folders


@pytest.fixture
def sample_like(tiny_world: Any, tmp_path: Path) -> Path:
    """Returns a folder that is laid out as the sample's validation images are."""
    for folder in ("images", "depth"):
        for scenes in ("rooms", "streets"):
            for domain in ("labeled/val", "unlabeled/val"):
                shutil.copytree(
                    tiny_world.root / "val" / folder, tmp_path / "data" / domain / folder / scenes
                )
    return tmp_path / "data"


def finished(run: Path, *folders: Path) -> None:
    """Puts a trained run where a ladder looks for its own."""
    for folder in folders:
        shutil.copytree(run, folder)
        (folder / "cost.json").write_text('{"minutes": 1.5, "memory_gb": 2.0}')


def test_ladder_scores_finished_runs(
    run: Callable[[str], str], teacher_run: Path, sample_like: Path, tmp_path: Path, micro: str
) -> None:
    rungs = ("teacher", "naive_student", "perturbations", "feature_alignment")
    finished(teacher_run, *(tmp_path / f"runs/{rung}_0" for rung in rungs))
    command = f"ladder --seeds 0 --out {tmp_path / 'runs'} --data {sample_like}"
    printed = run(command)
    assert (
        "| | labeled AbsRel | labeled delta1 | unlabeled AbsRel | unlabeled delta1 | minutes | GB |"
        in printed
    )
    equal = "| naive student | +0.000 (+0.000 to +0.000) |"  # the same model as the teacher
    assert printed.count(equal) == 2
    assert "AbsRel of the last rung against its teacher, unlabeled: +0.0% (+0.0% to +0.0%)." in printed
    assert run(f"{command} --before {tmp_path / 'runs/ladder.json'}").count(equal) == 3
    assert (tmp_path / "runs/ladder.png").stat().st_size > 0


def test_metric_ladder_compares_starts(
    run: Callable[[str], str], teacher_run: Path, sample_like: Path, tmp_path: Path, micro: str
) -> None:
    ladder, out = tmp_path / "ladder", tmp_path / "runs"
    command = f"metric_ladder --seeds 0 --out {out} --ladder {ladder} --data {sample_like}"
    with pytest.raises(SystemExit, match="teacher_0 has no trained model: run python scripts/ladder"):
        run(command)
    finished(teacher_run, ladder / "teacher_0", ladder / "feature_alignment_0")
    names = [f"{scenes}_{head}" for scenes in ("rooms", "streets") for head in ("bins", "sigmoid")]
    finished(teacher_run, *(out / f"{name}_{start}_0" for name in names for start in STARTS))
    printed = run(command)
    assert printed.count("| streets, sigmoid, student |") == 2  # scores, and differences
    assert printed.count("| +0.000 (+0.000 to +0.000) |") >= 8  # the same model from each start
    assert (out / "metric_ladder.png").stat().st_size > 0
    printed = run(f"{command} --heads sigmoid")
    assert "| streets, sigmoid, student |" in printed and "bins" not in printed


def test_transfer_ladder_compares_encoders(
    run: Callable[[str], str], teacher_run: Path, class_run: Path, tiny_world: Any, tmp_path: Path, micro: str
) -> None:
    data, ladder, out = tmp_path / "data", tmp_path / "ladder", tmp_path / "runs"
    for domain in ("labeled", "unlabeled"):
        shutil.copytree(tiny_world.root / "val", data / domain / "val")
    shutil.copyfile(tiny_world.root / "val/classes.yaml", data / "classes.yaml")
    command = f"transfer_ladder --seeds 0 --out {out} --ladder {ladder} --data {data}"
    with pytest.raises(SystemExit, match="teacher_0 has no trained model: run python scripts/ladder"):
        run(command)
    finished(teacher_run, ladder / "teacher_0", ladder / "feature_alignment_0")
    names = [f"{way}_{start}" for way in ("linear_probe_frozen", "DPT_fine-tuned") for start in STARTS]
    finished(class_run, *(out / f"{name}_0" for name in (*names, "DeepLab_V3_MobileNetV2_random")))
    printed = run(command)
    assert printed.count("| DPT, fine-tuned, student |") == 2  # scores, and differences
    same = "| +0.000 (+0.000 to +0.000) |"  # the same model from each start
    assert printed.count(f"student {same}") == 2
    assert (out / "transfer_ladder.png").stat().st_size > 0


def test_result_strip_shows_both_models(
    run: Callable[[str], str], teacher_run: Path, student_run: Path, tmp_path: Path, micro: str
) -> None:
    run(f"result_strip {teacher_run} {student_run} --each 1 --out {tmp_path / 'strip.png'}")
    picture = np.asarray(Image.open(tmp_path / "strip.png"))
    assert picture.shape[1] == 4 * (260 + 6)  # image, teacher, student, truth
    assert (picture == 255).all(2).any(1).sum() > 2 * 18  # a caption below each of two rows


def test_sky_ladder_counts_pairs_and_has_known_settings(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ladder = importlib.import_module("sky_ladder")
    sky, ground = np.array([0.0, 1.0, 2.0]), np.array([2.0, 3.0])
    assert ladder.share_in_order(sky, ground) == pytest.approx(5.5 / 6)  # one tie
    trained = list[list[str]]()
    monkeypatch.setattr(ladder, "train", lambda folder, words: trained.append(words))
    options = Namespace(out=tmp_path, overrides=["threads=1"])
    for row in ladder.ROWS:
        ladder.train_one(0, row, {0: tmp_path / "masks"}, options)
        ended = start([*trained[-1], "--cfg", "job"])
        assert ended.code == 0, ended.err
        labeled = yaml.safe_load(ended.out)["data"]["labeled"]["sample"]
        assert (labeled["sky_value"] is None) == (row != "sky of the labels")
        assert (labeled["sky_masks"] is not None) == (row == "sky of predicted masks")


def test_ladder_of_both_recipes_scores_finished_runs(
    run: Callable[[str], str], teacher_run: Path, tmp_path: Path, micro: str
) -> None:
    finished(
        teacher_run, *(tmp_path / f"{name}_0" for name in ("v1_teacher_gradient", "v2_teacher", "v2_student"))
    )
    ladder, data = tmp_path / "ladder", SCRIPTS.parent / "data/sample"
    command = f"v2_ladder --seeds 0 --limit 2 --out {tmp_path} --ladder {ladder} --data {data}"
    with pytest.raises(SystemExit, match="teacher_0 has no trained model"):
        run(command)
    finished(teacher_run, ladder / "teacher_0", ladder / "feature_alignment_0")
    printed = run(command)
    for domain in ("labeled", "unlabeled"):
        columns = ("AbsRel", "delta1", "bound. F1", "edges 10 %", "accuracy")
        assert " | ".join(f"{domain} {column}" for column in columns) in printed
    assert "| V2 student - V1 student | +0.000 (+0.000 to +0.000) |" in printed
    assert (tmp_path / "v2_ladder.json").exists()


def test_ladder_settings_are_known(
    start: Callable, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    naive = importlib.import_module("ladder").NAIVE
    ended = start([*tiny_world.settings("student", tmp_path / "run", *naive), "--cfg", "job"])
    assert ended.code == 0, ended.err
    _, words = importlib.import_module("v2_ladder").ROWS["V1 teacher + gradient"]
    ended = start([*tiny_world.settings("teacher", tmp_path / "run", *words[1:]), "--cfg", "job"])
    assert yaml.safe_load(ended.out)["stage"]["terms"] == {"affine_invariant": 1.0, "gradient": 2}
    _, bare = importlib.import_module("metric_ladder").STARTS["bare encoder"]
    for scenes in ("rooms", "streets"):
        words = ["stage=metric", f"experiment=sample_metric_{scenes}", "head=sigmoid", *bare, "--cfg", "job"]
        ended = start(words)
        assert ended.code == 0, ended.err
    transfer = importlib.import_module("transfer_ladder")
    for settings in (*transfer.WAYS.values(), transfer.OF_DEEPLAB):
        ended = start(["stage=segmentation", *settings, "--cfg", "job"])
        assert ended.code == 0, ended.err


def pretrain(world: Any, out: Path) -> str:
    steps = "--parts mae distill --mae-steps 2 --mae-batch 2 --distill-steps 2 --distill-batch 2"
    roots = f"--roots {world.root / 'unlabeled'}"
    files = f"--work {out} --out {out}/e.safetensors"
    return f"pretrain_sample_encoder {steps} --threads 1 --log-every 1 {roots} {files}"


@pytest.mark.slow
def test_interrupted_pretraining_continues_exactly(
    run: Callable[[str], str], tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightly")
    run(pretrain(tiny_world, tmp_path / "whole"))
    script = importlib.import_module("pretrain_sample_encoder")
    monkeypatch.setattr(script, "SAVE_EVERY_S", -1)
    report, reached = script.report, []

    def interrupt(plan: Any, step: int, *more: Any) -> None:
        reached.append(step)
        if step == 2 and len(reached) in (2, 5):  # once in each part, before the save
            raise KeyboardInterrupt
        report(plan, step, *more)

    monkeypatch.setattr(script, "report", interrupt)
    for _ in range(2):
        with pytest.raises(SystemExit, match="interrupted: the same command continues"):
            run(pretrain(tiny_world, tmp_path / "parts"))
    assert "distill: continued after 1 of 2 steps" in run(pretrain(tiny_world, tmp_path / "parts"))
    whole, parts = (load_file(tmp_path / folder / "e.safetensors") for folder in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(SystemExit, match=r"mae.pt is of another run \(seed: began with 0, now 1; start"):
        run(f"{pretrain(tiny_world, tmp_path / 'parts')} --seed 1")
    with safe_open(tmp_path / "whole/e.safetensors", "pt") as file:
        assert file.metadata()["distill"] == "steps 2, batch 2, lr 0.0003"


def test_pretraining_draws_each_image_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightly")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    drawn = importlib.import_module("pretraining.images").drawn_images
    steps = torch.cat([drawn(10, step, 4, seed=0) for step in range(5)])
    assert [sorted(part.tolist()) for part in steps.chunk(2)] == [list(range(10))] * 2
    assert steps[:10].tolist() != steps[10:].tolist()


def test_pretraining_crops_stay_inside_their_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    images = importlib.import_module("pretraining.images")
    for name, size in (("wide", (40, 30)), ("high", (30, 40))):
        ramp = np.linspace(100, 200, size[0])[None, :, None].repeat(size[1], 0).repeat(3, 2)
        Image.fromarray(ramp.round().astype(np.uint8)).save(tmp_path / f"{name}.png")
    store = images.ImageStore(images.read_images(images.find_images([tmp_path]), 1), torch.device("cpu"))
    index = torch.tensor([0, 1] * 20)
    crops = images.random_crops(store, index, 14, (0.1, 0.5), torch.Generator().manual_seed(0), 2) * 255
    assert crops[:, :, 1:-1, 1:-1].min() > 99
    assert crops.max() < 201
    slope = crops[:, 0, :, -1] - crops[:, 0, :, 0]
    assert (slope.mean(1) > 0).any() and (slope.mean(1) < 0).any()  # half of them are mirrored


def test_feature_distances_are_measured(
    run: Callable[[str], str], student_run: Path, tiny_world: Any, tmp_path: Path, micro: str
) -> None:
    weights = tmp_path / "start.safetensors"
    save_file(load_model(student_run).encoder.state_dict(), weights)
    command = (
        f"feature_distances --encoder micro --weights {weights} --student {student_run} --size 28 --count 5 "
        f"--pairs 99 --images {tiny_world.root / 'unlabeled'} --out {tmp_path / 'drawn.png'}"
    )
    printed = run(command)
    rows = [row.strip("| ").split(" | ") for row in printed.splitlines() if row.startswith("| ")]
    assert [row[:2] for row in rows[1:]] == [
        [what, center]
        for what in ("cos, different places and images", "1 - cos, student and frozen, same place")
        for center in ("none", "mean")
    ]
    assert all(abs(float(value)) < 1e-3 for row in rows[3:] for value in row[2:-1])  # the same encoder
    assert float(rows[1][5]) > float(rows[2][5])  # medians: the common direction is gone
    assert run(command) == printed
    assert (tmp_path / "drawn.png").stat().st_size > 0


def test_pairs_of_tokens_differ_in_image_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("feature_distances")
    first, second = script.draw_pairs(3, 4, 2000, np.random.default_rng(0))
    assert (first // 4 != second // 4).all() and (first % 4 != second % 4).all()
    assert set(first) == set(second) == set(range(12))


def test_probe_finds_what_tokens_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("probe_encoder")
    draw = np.random.default_rng(0)

    def patches(informed: bool) -> Any:
        log_depth, classes = draw.normal(1, 0.5, 600), draw.integers(3, size=600)
        tokens = np.column_stack([log_depth, np.eye(3)[classes], draw.normal(size=(600, 4))])
        return script.Patches(tokens if informed else draw.normal(size=tokens.shape), log_depth, classes)

    for informed, depth, classes in ((True, (0, 1), (1, 1)), (False, (0.5, 0.35), (0.33, 0.2))):
        splits = {split: patches(informed) for split in (script.TRAIN, *script.HELD_OUT)}
        found = script.probe(splits, script.HELD_OUT[1])
        assert found == pytest.approx([*depth, *classes], abs=0.01 if informed else 0.12)


def test_probe_reads_the_sample(run: Callable[[str], str], tmp_path: Path) -> None:
    sample = SCRIPTS.parent / "data/sample"
    for split in ("labeled/train", "labeled/val", "unlabeled/val"):
        for image in sorted((sample / split / "images").rglob("*.jpg"))[::50][:2]:
            for kind, suffix in (("images", ".jpg"), ("depth", ".png"), ("masks", ".png")):
                name = image.relative_to(sample / split / "images").with_suffix(suffix)
                (tmp_path / split / kind / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(sample / split / kind / name, tmp_path / split / kind / name)
    table = run(f"probe_encoder {sample / 'encoder_vitt.safetensors'} --threads 1 --data {tmp_path}")
    assert len(table.splitlines()[2].split("|")) == 2 + 1 + 2 * 4 + 2
    with pytest.raises(SystemExit, match=r"error: .*none/labeled/train/images has no .jpg: pass --data"):
        run(f"probe_encoder {sample / 'encoder_vitt.safetensors'} --data {tmp_path / 'none'}")


def test_pretraining_renders_views_of_missing_scenes(run: Callable[[str], str], tmp_path: Path) -> None:
    pytest.importorskip("mitsuba")
    command = f"render_pretraining --out {tmp_path} --scenes 2 --views 2 --samples 1 --jobs 1"
    assert "0 of 2 scenes are there already" in run(command)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert names == [f"{kind}_{i}.jpg" for kind in ("rooms/00000", "streets/00001") for i in (0, 1)]
    first = tmp_path / "rooms/00000_1.jpg"
    first.unlink()
    assert "1 of 2 scenes are there already" in run(command)
    assert first.exists()


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
