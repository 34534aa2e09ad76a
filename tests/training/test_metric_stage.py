"""Metric fine-tuning: what it starts from, what it learns, and that a killed run ends with the same bits."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from depthany.data.batch import Batch
from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.labeled_options import PLAIN, LabeledOptions
from depthany.data.sampler import Draw
from depthany.data.views import Views
from depthany.losses.silog import silog_loss
from depthany.models.files.loading import load_model
from depthany.models.files.model_source import ModelSource
from depthany.models.model import DenseModel, build_model, depth_anything, save_model
from depthany.training.metric_model import (
    labeled_options,
    learned_ends_m,
    metric_head,
    metric_notes,
    require_cameras,
    require_trained_head,
    trained_on,
)
from depthany.training.optim import LrFactors, OptimizerSettings, build_optimizer
from depthany.training.output_watch import OutputWatch, faults_of
from depthany.training.settings import ModelSettings, TrainSettings
from depthany.training.stages.metric import MetricSettings, MetricStage, at_label_sizes
from depthany.training.starting_weights import build_from
from depthany.training.validation import evaluate, input_of_validation

pytestmark = pytest.mark.usefixtures("micro")

HEADS = {
    "bins": {"name": "metric_bins", "max_depth_m": 10.0},
    "sigmoid": {"name": "metric_sigmoid", "max_depth_m": 10.0},
    "bins_nk": {"name": "metric_bins_nk", "domains": {"near": 10.0, "far": 65.0}},
}


def model_with(head: str) -> DenseModel:
    torch.manual_seed(1)
    return build_model({"name": "dinov2", "size": "micro"}, head=HEADS[head], input_size=28)


def stage(**changed: Any) -> MetricStage:
    settings = MetricSettings("metric", **{"terms": {"silog": 1.0}, **changed})
    return MetricStage(settings, {"normalisation": "median_mad", "reduction": "batch"}).train()


def batch(known: float = 1.0, **changed: Any) -> Batch:
    """Three images whose depth, 1 to 6 m, is their brightness."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 1, 4, 4, generator=draw)
    light = F.interpolate(coarse, (28, 28), mode="bicubic").clamp(0, 1)  # [3 1 28 28]
    mask = torch.rand(3, 28, 28, generator=draw) < known
    image = (255 * light).to(torch.uint8).expand(-1, 3, -1, -1)
    values = {
        "labeled_image": image,
        "target": torch.where(mask, 1 + 5 * light[:, 0], 0),
        "mask": mask,
        "unlabeled_image": image[:0],
        "domain": torch.tensor([0, 1, 0]),
    }
    return Batch(**{**values, **changed})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("head", HEADS)
def test_loss_falls_and_metres_come_near(head: str) -> None:
    model, learned, seen = model_with(head).train(), stage(w_domain=1.0), batch(known=0.3)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses, errors = [], []
    for step in range(15):
        output = learned(model, seen, generator(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
        errors.append(float(output.scalars["train/abs_rel"]))
    assert losses[-1] < 0.7 * losses[0]
    assert errors[-1] < 0.7 * errors[0]
    assert 0.25 < output.scalars["train/known_pixels"] < 0.35


def test_no_known_pixel_is_counted_and_teaches_nothing() -> None:
    model, nothing = model_with("bins").train(), batch(known=0.0)
    output = stage()(model, nothing, generator())
    output.loss.backward()
    assert output.loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    watch = OutputWatch(is_relative=False)
    watch.add(output.images)
    means = watch.read()
    assert means["output/counted_labeled"] == 0
    assert (
        "0% of the labeled crops have known labels in range"
        in faults_of(means, False)["output/counted_labeled"]
    )


def test_batch_without_images_has_a_zero_gradient() -> None:
    some, none = batch(), torch.zeros(0, dtype=torch.int64)
    parts = {name: getattr(some, name)[:0] for name in ("labeled_image", "target", "mask")}
    for sizes in (None, []):
        model = model_with("bins_nk").train()
        stage()(model, batch(**parts, domain=none, label_hw=sizes), generator()).loss.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_prediction_goes_to_the_size_of_sparse_labels() -> None:
    model, sizes = model_with("bins").eval(), [(35, 70), (50, 44), (28, 28)]
    target, mask = torch.zeros(3, 50, 70), torch.zeros(3, 50, 70, dtype=torch.bool)
    points = [(0, 34, 69, 2.0), (0, 3, 5, 4.0), (1, 49, 43, 3.0)]
    for i, y, x, metres in points:
        target[i, y, x], mask[i, y, x] = metres, True
    seen = batch(target=target, mask=mask, label_hw=sizes)
    output = stage()(model, seen, generator())
    small = model(model.preprocessing.normalise(seen.labeled_image)).map
    predicted = [
        F.interpolate(small[i][None, None], sizes[i], mode="bilinear", align_corners=True)[0, 0, y, x]
        for i, y, x, _ in points
    ]
    wanted = torch.tensor([metres for *_, metres in points])[None, None]
    by_hand = silog_loss(torch.stack(predicted)[None, None], wanted, wanted > 0)
    torch.testing.assert_close(output.loss, by_hand)
    assert output.images["labeled"].prediction.shape == (3, 50, 70)
    assert at_label_sizes(small, batch()) is small


def test_domain_loss_is_cross_entropy_of_the_sets() -> None:
    model, seen = model_with("bins_nk").eval(), batch()
    output = stage(w_domain=100.0)(model, seen, generator())
    logits = model(model.preprocessing.normalise(seen.labeled_image)).extra["domain_logits"]
    of_domain = F.cross_entropy(logits, seen.domain)
    torch.testing.assert_close(output.scalars["loss/labeled/domain"], of_domain)
    torch.testing.assert_close(output.loss, output.scalars["loss/labeled"] + 100 * of_domain)


def test_dropout_follows_the_generator() -> None:
    model = model_with("bins_nk").train()
    losses = [float(stage()(model, batch(), generator(seed)).loss.detach()) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("init_parts", ["all", "encoder+decoder", "encoder"])
@pytest.mark.parametrize("head", HEADS)
def test_start_fills_all_but_the_new_layers(tmp_path: Path, head: str, init_parts: str) -> None:
    torch.manual_seed(5)
    relative = depth_anything("micro", input_size=28)
    for parameter in relative.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(relative, tmp_path)
    config = relative.config
    parts = {"encoder": config["encoder"], "decoder": config["decoder"], "head": HEADS[head]}
    model = build_from(ModelSource(str(tmp_path)), init_parts, parts, 28)
    theirs, ours = relative.state_dict(), model.state_dict()
    taken = {name for name, tensor in ours.items() if name in theirs and torch.equal(tensor, theirs[name])}
    layers = ("conv1", "conv2") if head == "sigmoid" else ("conv1", "conv2", "conv3")
    wanted = tuple(f"{part}." for part in init_parts.replace("all", "encoder+decoder").split("+"))
    if init_parts == "all":
        wanted += tuple(f"head.{layer}." for layer in layers)
    assert taken == {name for name in ours if name.startswith(wanted)}


def test_relative_layers_learn_at_the_decoders_rate() -> None:
    model = model_with("bins")
    optimizer = build_optimizer(model, [], OptimizerSettings(1e-3, lr_factors=LrFactors(0.02, 0.02, 1)))
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(1 for _ in model.parameters())
    slow = {name for name, p in model.named_parameters() if rates[id(p)] == pytest.approx(2e-5)}
    new = {name for name, _ in model.named_parameters()} - slow
    assert "head.conv1.weight" in slow
    assert new and all(name.startswith("head.") and ".conv" not in name for name in new)


class Set:
    """A labeled set with a range and a camera."""

    def __init__(
        self, max_depth: float, focal: float | None = None, focal_width: float | None = None
    ) -> None:
        self.max_depth, self.focal, self.focal_width = max_depth, focal, focal_width
        self.min_depth = 0.0


def train_settings(head: dict[str, Any], **of_stage: Any) -> Any:
    settings = TrainSettings.__new__(TrainSettings)  # as much of it as is needed
    settings.crop_size = [28, 42]
    settings.model = ModelSettings({}, {}, head, False)
    settings.stage = MetricSettings("metric", {"silog": 1.0}, **of_stage)
    settings.data = type("Data", (), {"labeled": {"rooms": {}, "streets": {}}})()
    return settings


def test_range_of_the_head_is_that_of_the_sets() -> None:
    both = [Set(10.0), Set(65.0)]
    open_end, own = {"name": "metric_sigmoid", "max_depth_m": None}, {"name": "x", "max_depth_m": 20.0}
    nk = {"name": "metric_bins_nk", "domains": None}
    assert metric_head(train_settings(open_end), both)["max_depth_m"] == 65
    assert metric_head(train_settings(open_end, far_m=30.0), both)["max_depth_m"] == 30
    assert metric_head(train_settings(own), both)["max_depth_m"] == 20
    assert metric_head(train_settings(nk), both)["domains"] == {"rooms": 10, "streets": 65}
    with pytest.raises(ValueError, match="there is one labeled set: add another domain, or choose head=bins"):
        metric_head(train_settings(nk), both[:1])


def test_stage_domains_become_those_of_the_head() -> None:
    both, nk = [Set(10.0), Set(65.0)], {"name": "metric_bins_nk", "domains": None}
    settings = train_settings(nk, domains={"rooms": "nyu"})
    assert metric_head(settings, both)["domains"] == {"nyu": 10, "streets": 65}
    assert labeled_options(settings, both).domains == [0, 1]
    settings = train_settings(nk, domains={"rooms": "nyu", "halls": "nyu"})
    settings.data.labeled = {"rooms": {}, "halls": {}, "streets": {}}
    assert metric_head(settings, [Set(10.0), Set(20.0), Set(65.0)])["domains"] == {"nyu": 20, "streets": 65}
    with pytest.raises(ValueError, match=r"there are only labeled sets of rooms: add another domain"):
        metric_head(train_settings(nk, domains={"streets": "rooms"}), both)


@pytest.mark.parametrize("head, told", [
    ({"name": "metric_sigmoid", "max_depth_m": "abc"}, "model.head.max_depth_m='abc': expected metres"),
    ({"name": "metric_bins_nk", "domains": ["a", "b"]}, r"model.head.domains=\['a', 'b'\]: expected two or"),
])  # fmt: skip
def test_wrong_range_is_one_line(head: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        labeled_options(train_settings(head), [Set(10.0), Set(65.0)])


def test_empty_range_is_refused() -> None:
    settings = train_settings({"name": "metric_sigmoid", "max_depth_m": None}, near_m=10.0)
    with pytest.raises(
        ValueError, match=r"rooms: no depth counts, from 10 m \(stage.near_m\) to 10 m \(max_de"
    ):
        labeled_options(settings, [Set(10.0), Set(65.0)])


def test_labels_end_with_their_domain(tiny_world: Any) -> None:
    head = {"name": "metric_bins_nk", "domains": {"rooms": 5.0, "streets": 65.0}, "bin_centers": "normed"}
    options = labeled_options(train_settings(head), [Set(10.0), Set(65.0)])
    assert [options.far_end_m(part) for part in (0, 1)] == [5, 65]
    images = FolderDepth(str(tiny_world.root / "labeled"), depth_scale=1000)
    ends = []
    for end_m in (80.0, 4.0):
        cut = LabeledOptions(None, ["mine"], ends_m=[end_m])
        batch = TrainingSet([images], [], 28, target="depth_m", options=cut)[[Draw(True, 0, seed=1)]]
        ends.append(float(batch.target.max()))
    assert ends[1] < 4 < ends[0]


def test_labels_stay_within_head_and_domains() -> None:
    both = [Set(10.0), Set(65.0)]
    options = labeled_options(train_settings({"name": "x", "max_depth_m": 20.0}, near_m=0.5), both)
    assert (options.near_m, options.far_m, options.domains) == (0.5, 20, None)
    head = {"name": "metric_bins_nk", "domains": {"far": 65.0, "rooms": 10.0}}
    assert labeled_options(train_settings(head, domains={"streets": "far"}), both).domains == [1, 0]
    with pytest.raises(ValueError, match=r"domain 'streets'.* far, rooms: set \+stage.domains.streets"):
        labeled_options(train_settings(head), both)
    with pytest.raises(ValueError, match=r"stage.domains: model.head.name=metric_bins has no domains"):
        labeled_options(train_settings({"name": "metric_bins"}, domains={"streets": "far"}), both)
    with pytest.raises(ValueError, match=r"domains.roads: no such labeled set; the sets are rooms, streets"):
        labeled_options(train_settings(head, domains={"roads": "far"}), both)


def test_learned_end_is_that_of_settings_and_set() -> None:
    both = [Set(10.0), Set(65.0)]
    settings = train_settings({"name": "metric_bins", "max_depth_m": None}, far_m=8.0)
    for changed, wanted in (
        (settings, [8, 8]),
        (train_settings({"name": "x", "max_depth_m": 20.0}), [10, 20]),
    ):
        ends_m = learned_ends_m(changed, both, labeled_options(changed, both))
        assert list(ends_m.items()) == list(zip(("data.labeled.rooms", "data.labeled.streets"), wanted))


def test_trained_head_must_fit_the_labels() -> None:
    both, model = [Set(10.0), Set(65.0)], model_with("sigmoid")
    of_sets = {"name": "metric_sigmoid", "max_depth_m": None}
    require_trained_head(model, train_settings(of_sets, far_m=10.0), both)
    with pytest.raises(
        ValueError, match=r"is for depth up to 10 m, but labels go to 65 m: set stage.far_m=10, or start"
    ):
        require_trained_head(model, train_settings(of_sets), both)
    named = {"name": "metric_bins_nk", "domains": {"near": 10.0, "far": 65.0}}
    require_trained_head(model_with("bins_nk"), train_settings(named), both)
    farther = {**named, "domains": {"near": 10.0, "far": 80.0}}
    with pytest.raises(
        ValueError, match=r"far of model.init=None is for depth up to 65 m, but .* to 80 m: set"
    ):
        require_trained_head(model_with("bins_nk"), train_settings(farther), both)
    with pytest.raises(
        ValueError, match=r"are near, far, but those of the settings rooms, streets: set head"
    ):
        require_trained_head(model_with("bins_nk"), train_settings({**named, "domains": None}), both)


@pytest.mark.parametrize("given, wanted", [("sigmoid", "bins"), ("bins", "sigmoid"), ("bins_nk", "sigmoid")])
def test_another_metric_head_is_not_ignored(given: str, wanted: str) -> None:
    settings = train_settings(HEADS[wanted])
    settings.model.init = "outputs/m"
    told = (
        rf"outputs/m has the head metric_{given}, and metric_{wanted} was chosen.*: choose head={given}, or"
    )
    with pytest.raises(ValueError, match=told):
        require_trained_head(model_with(given), settings, [Set(10.0), Set(65.0)])


@pytest.mark.parametrize("changed", [{"bin_centers": "normed"}, {"attractor_alpha": 1000}])
def test_other_settings_of_trained_bins_are_refused(changed: dict[str, Any]) -> None:
    same = {"name": "metric_bins", "max_depth_m": 10.0, "bin_centers": "softplus", "attractor_alpha": 300}
    settings, (name,) = train_settings(same), changed
    settings.model.init = "outputs/m"
    require_trained_head(model_with("bins"), settings, [Set(10.0)])
    settings.model.head = same | changed
    with pytest.raises(
        ValueError, match=rf"with {name}=.*: set model.head.{name}=(300|softplus)[.0]*, or start"
    ):
        require_trained_head(model_with("bins"), settings, [Set(10.0)])


def test_whole_views_are_validated_stretched(tiny_world: Any) -> None:
    images = FolderDepth(str(tiny_world.root / "val"), depth_scale=1000)
    whole = LabeledOptions(Views(view="whole"), ["val"])
    seen = [(TrainingSet([images], [], [28, 42], target="depth_m", options=o)) for o in (whole, PLAIN)]
    stretched, kept = (input_of_validation(each) for each in seen)
    assert stretched == {"input_size": 28, "eval_size": (28, 42), "canonical_focal": None}
    assert kept["eval_size"] is None
    model, shapes = model_with("sigmoid").eval(), set()
    model.register_forward_pre_hook(lambda _, args: shapes.add(tuple(args[0].shape[2:])))
    evaluate(model, {"val": images}, **stretched)
    assert shapes == {(28, 42)}


def test_checkpoint_names_sets_and_camera() -> None:
    settings = train_settings({"name": "x"})
    same, other = [Set(1.0, 500.0, 640.0)] * 2, [Set(1.0, 500.0, 640.0), Set(1.0, 700.0, 640.0)]
    about = trained_on(settings, same)
    assert (about.sets, about.focal_px, about.image_width) == (("rooms", "streets"), 500, 640)
    assert trained_on(settings, other).focal_px is None
    about = trained_on(train_settings({"name": "x"}, canonical_focal=30.0), other)
    assert (about.focal_px, about.image_width, about.canonical) == (30, 42, True)


def test_camera_without_width_is_told_of() -> None:
    settings = train_settings({"name": "x"})
    (line,) = metric_notes(settings, [Set(1.0, 500.0)] * 2)
    assert line.startswith("the checkpoint stores no camera: that takes the same focal and focal_width")
    assert (
        metric_notes(settings, [Set(1.0, 500.0, 640.0)] * 2) == metric_notes(settings, [Set(1.0)] * 2) == []
    )


def test_canonical_predictions_are_metres_of_the_camera(tiny_world: Any) -> None:
    model = model_with("sigmoid")
    torch.nn.init.zeros_(model.head.conv3.weight)  # 5 m everywhere
    val = FolderDepth(str(tiny_world.root / "val"), depth_scale=1000, focal=60, focal_width=56)
    scores = evaluate(model, {"val": val}, 28, metrics=("abs_rel", "rmse"), canonical_focal=15.0)["val"]
    errors = []
    for i in range(len(val)):
        labels, seen_width = val.labels(i), 28 * max(1, val.labels(i).values.shape[1] / 42)
        factor = 60 / 56 * round(seen_width / 14) * 14 / 15
        known = labels.values[labels.valid]
        errors.append(float(np.abs(np.minimum(5 * factor, 80) / known - 1).mean()))
    assert scores["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-4)
    settings = train_settings({"name": "x"}, canonical_focal=15.0)
    require_cameras(settings, {"data.val.mine": val})
    with pytest.raises(ValueError, match=r"data.val.mine.focal is null.*: set it \(pixels\), or leave"):
        require_cameras(settings, {"data.val.mine": Set(1.0)})


# Runs of the command.


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two labeled folders, for --config-dir."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "data").mkdir()
    text = "defaults:\n  - folder\n  - /dataset@labeled.other: folder_depth\n  - _self_\n"
    (folder / "data/two.yaml").write_text(text)
    return folder


def command(world: Any, configs: Path, run_dir: Path, init: Path, *more: str) -> list[str]:
    words = world.settings("metric", run_dir, f"model.init={init}")
    words = [word for word in words if not word.startswith(("data", "optimizer"))]
    root = world.root
    sets = [f"data.labeled.{name}.depth_scale=1000" for name in ("mine", "other")]
    sets += [f"data.labeled.mine.root={root / 'labeled'}", f"data.labeled.other.root={root / 'val'}"]
    sets += ["data.labeled.mine.max_depth=7", "data.labeled.other.max_depth=5"]
    sets += [f"data.val.mine.root={root / 'val'}", "data.val.mine.depth_scale=1000"]
    views = "stage.views={view:whole,rotation:1,colour_p:0.5}"
    rates = ["optimizer.lr=1e-3", "head=bins_nk", views, "image_every=3"]
    return ["--config-dir", str(configs), "data=two", *words, *sets, *rates, *more]


def logged(run_dir: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock and the process."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("speed/", "memory"))} for line in lines]


@pytest.fixture(scope="module")
def whole(start: Any, tiny_world: Any, configs: Path, teacher_run: Path, tmp_path_factory: Any) -> Path:
    """A run of 6 steps that was never interrupted, with what it printed in `out.txt` beside it."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    ended = start(command(tiny_world, configs, run_dir, teacher_run))
    assert ended.code == 0, ended.err
    (run_dir.parent / "out.txt").write_text(ended.out)
    return run_dir


def test_run_says_its_depth_and_saves_its_range(whole: Path) -> None:
    out, model = (whole.parent / "out.txt").read_text(), load_model(whole)
    assert "metres, of some files" in out
    assert "data.labeled.other, 3 of 3" in out
    assert model.quantity.is_metric
    assert model.config["head"]["domains"] == {"mine": 7, "other": 5}
    assert model.trained_on.sets == ("mine", "other")
    line = logged(whole)[0]
    assert line["optimizer/clipped_steps"] == 1
    assert {"loss/labeled", "loss/labeled/domain", "train/delta1"} < line.keys()
    assert "output/zeros" not in line
    assert "val/mine/abs_rel" in logged(whole)[-1]


def test_metric_run_resumes_to_same_bits(
    start: Any, tiny_world: Any, configs: Path, teacher_run: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    (run_dir / "model.safetensors").unlink()
    (run_dir / "checkpoints/step_00000006.pt").unlink()
    ended = start(command(tiny_world, configs, run_dir, teacher_run))
    assert ended.code == 0, ended.err
    assert "continuing at step 4 of 6" in ended.out
    assert (run_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert logged(run_dir) == logged(whole)


def test_missing_start_is_one_line_with_remedies(start: Any, tiny_world: Any, tmp_path: Path) -> None:
    init = f"model.init={tmp_path / 'student'}"
    ended = start(tiny_world.settings("metric", tmp_path / "run", init))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    for part in (
        "python -m depthany.train stage=teacher, then stage=student",
        "outputs/teacher",
        "init=null",
    ):
        assert part in ended.err


@pytest.mark.slow
def test_killed_metric_run_ends_with_same_bits(
    start: Any,
    start_elsewhere: Any,
    signal_at: Any,
    tiny_world: Any,
    configs: Path,
    teacher_run: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    words = command(tiny_world, configs, tmp_path / "run", teacher_run, "workers=1")
    assert start_elsewhere(words, signal_at(signal.SIGKILL, step=5)).code == -signal.SIGKILL
    assert "continuing at step 4 of 6" in start(words).out
    assert (tmp_path / "run/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert logged(tmp_path / "run") == logged(whole)


@pytest.mark.slow
def test_two_ranks_take_the_metric_steps_of_one(
    start: Any, torchrun: Any, tiny_world: Any, configs: Path, teacher_run: Path, tmp_path: Path
) -> None:
    more = ("head=bins", "batch_size=5", "steps=8", "optimizer.clip_norm=null")
    runs = {name: tmp_path / name for name in ("one", "two")}
    words = {name: command(tiny_world, configs, runs[name], teacher_run, *more) for name in runs}
    assert start(words["one"]).code == 0
    ended = torchrun(words["two"])
    assert ended.code == 0, ended.err
    one, two = logged(runs["one"]), logged(runs["two"])
    assert len(one) == len(two)
    for line, other in zip(one, two):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert other[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    states = [load_model(run).state_dict() for run in runs.values()]
    assert max(float((states[0][name] - tensor).abs().max()) for name, tensor in states[1].items()) < 1e-4
    assert not math.isnan(one[0]["loss/total"])
