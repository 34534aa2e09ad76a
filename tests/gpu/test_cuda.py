"""What a GPU computes: the same losses, maps, scores and labels as the CPU, in each precision.

`pytest -m gpu` runs these where CUDA is found. They need no data but what the fixtures write.
"""

import json
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

from depthany import load_model
from depthany.config.entry import run_entry
from depthany.data.perturb import Perturb
from depthany.evaluate import run as run_evaluate
from depthany.inference.predictor import Predictor, PreparedImage
from depthany.inference.replay import ReplayedMaps
from depthany.losses.difference import without_largest
from depthany.losses.order import masked_median
from depthany.models.fast import prepare_for_inference
from depthany.models.half_weights import hold_weights
from depthany.models.model import DenseModel, depth_anything
from depthany.models.preprocess import Preprocessing
from depthany.models.upsample import resize
from depthany.predict import run as run_predict
from depthany.pseudo_label import run as run_pseudo_label
from depthany.system.distributed import ALONE
from depthany.training.checkpoints.state import TrainingState
from depthany.training.ema import EmaSettings, WeightAverage
from depthany.training.finite import FiniteCheck
from depthany.training.loop import draw_generator, update
from depthany.training.meter import Meter
from depthany.training.optim import OptimizerSettings, build_optimizer
from depthany.training.stages.base import trained_parameters
from device_steps import make_batch, stage_of

pytestmark = pytest.mark.gpu

RUNS = {"predict": run_predict, "evaluate": run_evaluate, "pseudo_label": run_pseudo_label}


@pytest.fixture(autouse=True)
def _micro(micro: str) -> None:
    """The tiny encoder is known in every test of this file."""


@pytest.fixture(autouse=True)
def _no_tf32() -> None:
    """float32 products are compared with the CPU's."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`command("predict", "out=...", ...)` runs a command in this process; it must succeed."""

    def start(name: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *words])
        assert run_entry(name, RUNS[name]) == 0

    return start


@pytest.fixture(scope="module")
def cuda_teacher(tiny_world, start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher trained on the GPU in float32; tests must not change it."""
    run_dir = tmp_path_factory.mktemp("cuda") / "teacher"
    ended = start(tiny_world.settings("teacher", run_dir, "device=cuda"))
    assert ended.code == 0, ended.err
    return run_dir


def losses(run_dir: Path) -> list[float]:
    """Returns the total loss of each step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss/total"] for row in rows if "loss/total" in row]


def photo(height: int, width: int) -> np.ndarray:
    """A random picture [height width 3] uint8."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def model_of_20_channels(dtype: torch.dtype = torch.float32) -> DenseModel:
    """A tiny model with random weights, on the CPU."""
    torch.manual_seed(0)
    return depth_anything("micro", input_size=56).eval().to(dtype)


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_float32_losses_equal_the_cpu(stage, tiny_world, start, teacher_run, tmp_path) -> None:
    teacher = [f"stage.teacher={teacher_run}"] if stage == "student" else []
    for device in ("cpu", "cuda"):
        ended = start(tiny_world.settings(stage, tmp_path / device, f"device={device}", *teacher))
        assert ended.code == 0, ended.err
    cpu, cuda = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    assert cuda[0] == pytest.approx(cpu[0], rel=1e-4)  # later ones part: rounding moves the median's pixel
    assert cuda == pytest.approx(cpu, rel=0.1)


@pytest.mark.parametrize("stage", ["teacher", "student"])
@pytest.mark.parametrize(
    "options", [["precision=bf16"], ["precision=fp16"], ["activation_checkpointing=true"]]
)
def test_options_train_on_cuda(stage, options, tiny_world, start, cuda_teacher, tmp_path) -> None:
    teacher = [f"stage.teacher={cuda_teacher}"] if stage == "student" else []
    plain = ["device=cuda", "workers=1", *teacher]
    for name, more in (("fp32", []), ("other", options)):
        ended = start(tiny_world.settings(stage, tmp_path / name, *plain, *more))
        assert ended.code == 0, ended.err
    fp32, other = losses(tmp_path / "fp32"), losses(tmp_path / "other")
    assert np.isfinite(other).all()
    assert other[0] == pytest.approx(fp32[0], rel=0.05)


@pytest.mark.parametrize(
    "name, first, mean",  # tolerances, relative: of the first loss, and of the mean of the last ten
    [
        ("precision=fp32", 1e-4, 0.1),
        ("precision=fp32 compile=true", 1e-3, 0.1),
        ("precision=fp32 compile=true activation_checkpointing=true", 1e-3, 0.1),
        ("precision=bf16", 0.05, 0.15),
        ("precision=bf16 compile=true", 0.05, 0.15),
        ("precision=fp16", 0.05, 0.15),
        ("precision=fp16 compile=true", 0.05, 0.15),
    ],
)
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_twenty_steps_follow_the_cpu(
    stage, name, first, mean, tiny_world, start, teacher_run, twenty_steps_on_cpu, tmp_path
) -> None:
    words = twenty_steps(stage, tiny_world, tmp_path, teacher_run, "device=cuda", *name.split())
    assert (ended := start(words)).code == 0, ended.err
    cpu, cuda = twenty_steps_on_cpu(stage), losses(tmp_path)
    assert cuda[0] == pytest.approx(cpu[0], rel=first)  # later ones part: rounding moves the median's pixel
    assert np.mean(cuda[10:]) == pytest.approx(np.mean(cpu[10:]), rel=mean)
    assert load_model(tmp_path).state_dict().keys() == load_model(teacher_run).state_dict().keys()


def twenty_steps(stage, world, run_dir, teacher_run, *more) -> list[str]:
    """Returns the settings of a run of 20 steps."""
    teacher = [f"stage.teacher={teacher_run}"] if stage == "student" else []
    return world.settings(stage, run_dir, "steps=20", "eval_every=0", "save_every=0", *teacher, *more)


@pytest.fixture(scope="module")
def twenty_steps_on_cpu(tiny_world, start, teacher_run, tmp_path_factory) -> Callable[[str], list[float]]:
    """Returns the losses of a stage in float32 on the CPU."""

    @cache
    def run(stage: str) -> list[float]:
        run_dir = tmp_path_factory.mktemp("cpu") / stage
        assert (ended := start(twenty_steps(stage, tiny_world, run_dir, teacher_run))).code == 0, ended.err
        return losses(run_dir)

    return run


def test_second_step_compiles_nothing(tiny_world, start, cuda_teacher, tmp_path) -> None:
    counters = torch._dynamo.utils.counters
    words = ["device=cuda", "precision=bf16", "compile=true", f"stage.teacher={cuda_teacher}", "eval_every=0"]
    graphs = []
    for steps in (1, 6):
        torch._dynamo.reset()
        counters.clear()
        ended = start(tiny_world.settings("student", tmp_path / str(steps), *words, f"steps={steps}"))
        assert ended.code == 0, ended.err
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_give_the_bits_of_autocast(dtype) -> None:
    torch.manual_seed(0)
    model = depth_anything("micro", input_size=56).eval().requires_grad_(False).cuda()
    held, image = deepcopy(model), torch.rand(2, 3, 56, 70, device="cuda")
    hold_weights([held], dtype)
    with torch.autocast("cuda", dtype), torch.no_grad():
        assert torch.equal(held(image).map, model(image).map)


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_cuda_graphs_give_the_compiled_losses(stage, tiny_world, start, cuda_teacher, tmp_path) -> None:
    words = ["device=cuda", "compile=true"]
    words += [f"stage.teacher={cuda_teacher}"] if stage == "student" else []
    for name in ("false", "true"):
        ended = start(tiny_world.settings(stage, tmp_path / name, *words, f"cuda_graphs={name}"))
        assert ended.code == 0, ended.err
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-2)


def test_replayed_maps_are_those_of_the_pass() -> None:
    predictor = Predictor(model_of_20_channels().cuda(), 56)
    replayed = Predictor(predictor.model, 56, flip=True, forward=ReplayedMaps())
    for seed in range(4):
        image = PreparedImage("", predictor.prepare(photo(60, 80 + 30 * (seed % 2)), ""), (60, 80))
        expected = Predictor(predictor.model, 56, flip=True).predict([image])
        torch.testing.assert_close(replayed.predict([image]), expected)
    assert len(replayed.forward._graphs) == 2


def test_full_memory_ends_the_run_with_settings(tiny_world, start, tmp_path) -> None:
    in_use = torch.cuda.memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, in_use + 0.01))
    try:
        words = ["device=cuda", "batch_size=600", "crop_size=280", "log_every=1"]
        ended = start(tiny_world.settings("teacher", tmp_path, *words))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert ended.code == 2
    assert "memory ran out after step 0, with 600 images of 280 x 280" in ended.err
    assert "accumulate=2 (now 1)" in ended.err and "Traceback" not in ended.err


def test_launched_maps_equal_the_waited_ones() -> None:
    predictor = Predictor(model_of_20_channels().cuda(), 56)
    photos = [photo(60, 80), photo(90, 120)]
    images = [
        PreparedImage(str(i), predictor.prepare(each, ""), each.shape[:2]) for i, each in enumerate(photos)
    ]
    seconds = list[float]()
    pending = [predictor.launch(images, lambda values, _: values, seconds.append) for _ in range(5)]
    expected = predictor.predict(images).cpu().numpy()
    for batch in pending:
        for one, values in zip(batch, expected, strict=True):
            np.testing.assert_allclose(one.wait(), values, rtol=1e-5, atol=1e-5)
    assert len(seconds) == 5 and min(seconds) > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_resumed_run_repeats_every_bit(
    stage, precision, tiny_world, cuda_teacher, start_elsewhere, signal_at, tmp_path
) -> None:
    words = ["device=cuda", f"precision={precision}", "save_every=1", "deterministic=true"]
    words += [f"stage.teacher={cuda_teacher}"] if stage == "student" else []
    whole = start_elsewhere(tiny_world.settings(stage, tmp_path / "whole", *words))
    assert whole.code == 0, whole.err
    cut = tiny_world.settings(stage, tmp_path / "cut", *words)
    assert start_elsewhere(cut, signal_at(9, 4)).code == -9  # SIGKILL
    ended = start_elsewhere(cut)
    assert ended.code == 0, ended.err
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    weights = [load_model(tmp_path / name).state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_cuda_checkpoint_loads_on_the_cpu(cuda_teacher: Path) -> None:
    on_cpu, on_gpu = load_model(cuda_teacher), load_model(cuda_teacher).cuda()
    image = photo(64, 80)
    np.testing.assert_allclose(on_gpu.infer(image), on_cpu.infer(image), atol=1e-4)


@pytest.mark.parametrize(
    "dtype, within", [(torch.float32, 1e-4), (torch.float16, 0.03), (torch.bfloat16, 0.1)]
)
def test_prepared_model_gives_the_map(dtype, within) -> None:
    image = photo(70, 90)
    expected = model_of_20_channels().infer(image)
    fast = prepare_for_inference(model_of_20_channels().cuda(), dtype)
    np.testing.assert_allclose(fast.infer(image), expected, atol=within * np.ptp(expected))


def test_predict_writes_the_cpu_map(command, cuda_teacher, tiny_world, tmp_path) -> None:
    words = partial(
        command, "predict", f"checkpoint={cuda_teacher}", f"images={tiny_world.root / 'unlabeled'}"
    )
    for device in ("cpu", "cuda"):
        words(f"device={device}", f"out={tmp_path / device}", "save=npy", "precision=fp32")
    files = sorted((tmp_path / "cpu").rglob("*.npy"))
    assert len(files) == 6
    for path in files:
        on_gpu = np.load(tmp_path / "cuda" / path.relative_to(tmp_path / "cpu"))
        np.testing.assert_allclose(on_gpu, np.load(path), atol=1e-4)


def test_evaluation_scores_equal_the_cpu(command, cuda_teacher, tiny_world, tmp_path) -> None:
    scores = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        words = [
            f"checkpoint={cuda_teacher}",
            "protocols=folder",
            "folder.depth_scale=1000",
            f"roots.mine={tiny_world.root / 'val'}",
        ]
        command("evaluate", *words, f"device={device}", f"out={out}", "precision=fp32")
        scores.append(json.loads(next(out.rglob("results.json")).read_text()))
    assert flat(scores[1]) == pytest.approx(flat(scores[0]), rel=1e-3, abs=1e-4)


def flat(tree: object) -> list[float]:
    """Returns the scores in a tree of results, without times and counts."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) if key == "scores" for leaf in numbers(tree[key])] or [
            leaf for key in sorted(tree) for leaf in flat(tree[key])
        ]
    return [leaf for item in tree for leaf in flat(item)] if isinstance(tree, list) else []


def numbers(tree: object) -> list[float]:
    """Returns all numbers of a tree, in a fixed order."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in numbers(tree[key])]
    if isinstance(tree, list):
        return [leaf for item in tree for leaf in numbers(item)]
    return [float(tree)] if isinstance(tree, float) else []


def test_labels_made_on_cuda_train_a_student(command, cuda_teacher, tiny_world, start, tmp_path) -> None:
    store = tmp_path / "store"
    command("pseudo_label", *tiny_world.labeling(cuda_teacher, store, 2, "device=cuda", "precision=bf16"))
    words = [f"stage.teacher={cuda_teacher}", f"pseudo_labels={store}", "device=cuda"]
    ended = start(tiny_world.settings("student", tmp_path / "student", *words))
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["teacher", "student"])
def test_step_never_waits_for_the_gpu(name: str, amp: torch.dtype | None) -> None:
    cuda, fp16 = torch.device("cuda"), amp == torch.float16
    stage, model = stage_of(name).to(cuda), depth_anything("micro").train().to(cuda)
    optimizer = build_optimizer(model, trained_parameters(stage), OptimizerSettings(1e-3))
    average, scaler = WeightAverage(model, EmaSettings(0.9)), torch.amp.GradScaler("cuda", enabled=fp16)
    state, meter = TrainingState(model, stage, optimizer, scaler, average=average), Meter()
    check = FiniteCheck.for_run(optimizer, cuda, ALONE)
    assert not check.at_once
    batch = make_batch(2, 4, cuda) if name == "student" else make_batch(6, 0, cuda)
    try:
        for k in range(4):
            if k == 2:  # what is kept from step to step is there
                torch.cuda.set_sync_debug_mode("error")
            with torch.autocast("cuda", amp, enabled=amp is not None):
                output = stage(model, batch.to(cuda), draw_generator(0, k))
            scaler.scale(output.loss).backward(check.gradient_of_loss(output, k))
            meter.add(output, len(batch), 1)
            if check.settle():
                average.update(model, k)
            meter.add_step(update(state, 1.0, check), 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert check.settle()
    assert np.isfinite(meter.means()["loss/total"])


def test_loss_that_explodes_ends_the_run_on_cuda(tiny_world, start, tmp_path) -> None:
    words = ["device=cuda", "optimizer.lr=1e30", "log_every=0", "eval_every=0", "save_every=0"]
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *words))
    assert ended.code == 2
    assert re.fullmatch(r"error: loss/labeled is not finite at step \d .*lower optimizer.lr.*\n", ended.err)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_ways_of_a_gpu_equal_those_of_the_cpu() -> None:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (8, 3, 42, 56), generator=draw, dtype=torch.uint8)
    values, mask = torch.randn(8, 999, generator=draw), torch.rand(8, 999, generator=draw) < 0.7
    cells, perturb = torch.randn(2, 5, 9, 7, generator=draw), Perturb(blur_radius=(0.1, 3.0))
    results = []
    for device in ("cpu", "cuda"):
        leaf = cells.to(device).requires_grad_()
        resize(leaf, (18, 13)).sin().sum().backward()
        row, known = values.to(device), mask.to(device)
        results.append(
            [
                masked_median(row, known),
                without_largest(row.abs(), known, 0.2).float(),
                leaf.grad,
                Preprocessing().normalise(image.to(device)),
            ]
        )
        coloured = perturb.colour(image.to(device), torch.Generator().manual_seed(1))
        results[-1] += [coloured.float() / 255 / 100]  # a byte more or less is rounding
    for cpu, cuda in zip(*results):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-5, atol=5e-5)
