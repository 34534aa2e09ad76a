"""The loop of evaluation: what cannot change its numbers, what is skipped, and predictions from files."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from depthany.data.samples import LabeledSample
from depthany.data.targets import Labels
from depthany.evaluation.predictors import QUANTITIES, FolderPredictor, holds_predictions
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.results import ProtocolResult, difference, statistic, summary
from depthany.evaluation.run import score_set
from depthany.evaluation.score import Row, score_together, select
from depthany.inference.predictor import Predictor
from depthany.metrics.table import DEFAULT_METRICS, pixel_sums, scores_of
from depthany.models.model import depth_anything
from depthany.system.distributed import Processes

DISPARITY, DEPTH = QUANTITIES["disparity"], QUANTITIES["depth"]
METRES = Protocol("p", align="none", max_depth=20)
RELATIVE = Protocol("p", max_depth=20)


class Memory:
    """A set of samples in memory; an index in `damaged` cannot be read."""

    def __init__(self, samples: list, damaged: tuple[int, ...] = ()) -> None:
        self.samples, self.damaged = samples, damaged

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return self.samples[index].name

    def read(self, index: int, convert_images: bool = False):
        if index in self.damaged:
            raise ValueError(f"{self.name(index)}.png: damaged")
        return self.samples[index]


def sample(name: str, depth_m: np.ndarray, seed: int = 0, mask: np.ndarray | None = None) -> LabeledSample:
    image = np.random.default_rng(seed).integers(0, 256, (*depth_m.shape, 3), dtype=np.uint8)
    known = depth_m > 0 if mask is None else mask
    disparity = np.where(np.isfinite(depth_m) & (depth_m > 0), 1 / np.where(depth_m > 0, depth_m, 1), 0)
    return LabeledSample(name, image, Labels(disparity.astype(np.float32), "disparity", known))


def random_depth(seed: int, height: int = 28, width: int = 42) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 9, (height, width)).astype(np.float32)


def room_set(count: int = 7) -> Memory:
    """Images of three shapes in two folders."""
    shapes = [(28, 42), (42, 28), (30, 44)]
    return Memory([sample(f"{i % 2}/{i}", random_depth(i, *shapes[i % 3]), i) for i in range(count)])


def write_predictions(folder: Path, maps: dict[str, np.ndarray]) -> None:
    for name, values in maps.items():
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)


def truths(dataset: Memory) -> dict[str, np.ndarray]:
    return {each.name: 1 / np.maximum(each.labels.disparity, 1e-3) for each in dataset.samples}


def flat(rows: list[Row]) -> dict[str, dict[str, float]]:
    return {row.name: row.scores for row in rows}


@pytest.mark.parametrize(
    "protocol", [RELATIVE, replace(RELATIVE, align_per="sequence"), replace(RELATIVE, align="robust_l1")]
)
def test_scores_ignore_batch_size_threads_and_order(micro: str, protocol: Protocol) -> None:
    torch.manual_seed(0)
    predictor = Predictor(depth_anything(micro).eval(), 28)
    dataset, expected = room_set(), None
    for batch_size, workers, step in [(1, 1, 1), (3, 4, 1), (8, 2, -1)]:
        rows = score_set(predictor, dataset, protocol, range(7)[::step], batch_size, workers).rows
        assert [row.index for row in rows] == list(range(7))
        expected = expected or flat(rows)
        for name, scores in flat(rows).items():  # float32 products differ in the last bits with the batch
            assert scores == pytest.approx(
                expected[name], rel=1e-4 if protocol.align == "robust_l1" else 1e-6
            )


class Crowd(FolderPredictor):
    """Its prediction of an image depends on the other images of the batch, much more than by rounding."""

    def predict(self, images):
        maps = super().predict(images)
        bend = sum(float(values.mean()) for values in maps)
        return [values + bend * values**2 for values in maps]


class Apart(Processes):
    """One of several processes, which receives nothing from the others."""

    def gather(self, value):
        return [value]


@pytest.mark.parametrize("protocol", [RELATIVE, replace(RELATIVE, align_per="sequence")])
def test_batches_are_the_same_for_any_processes(tmp_path: Path, protocol: Protocol) -> None:
    dataset = room_set(40)
    write_predictions(tmp_path, truths(dataset))
    predictor = Crowd(tmp_path, DEPTH)
    alone = flat(score_set(predictor, dataset, protocol, None, 2).rows)
    assert len(alone) == 40
    for size in (2, 3):
        shares = [
            flat(score_set(predictor, dataset, protocol, None, 2, processes=Apart(rank, size)).rows)
            for rank in range(size)
        ]
        assert sum(map(len, shares)) == 40
        assert {name: scores for share in shares for name, scores in share.items()} == alone


def test_scores_of_files_are_bit_for_bit_equal(
    tmp_path: Path,
) -> None:
    dataset = room_set()
    write_predictions(tmp_path, {name: each + np.sin(each) for name, each in truths(dataset).items()})
    predictor = FolderPredictor(tmp_path, DEPTH)
    for protocol in (RELATIVE, METRES, replace(RELATIVE, align="robust_l1", align_per="sequence")):
        found = [
            flat(score_set(predictor, dataset, protocol, range(7)[::step], batch, workers).rows)
            for batch, workers, step in [(1, 1, 1), (3, 4, -1), (8, 2, 1)]
        ]
        assert found[0] == found[1] == found[2]


# A change of each key of a protocol that is about scoring a model; not_finite has a test of its own
CHANGES: dict[str, dict] = {
    "space": {"align": "least_squares", "space": "disparity"},
    "align": {"align": "median"},
    "align_per": {"align": "median", "align_per": "sequence"},
    "crop": {"crop": "garg_kitti"},
    "input_crop": {"input_crop": "kitti_kb"},
    "min_depth": {"min_depth": 2.0},
    "max_depth": {"max_depth": 8.0},
    "bounds": {"bounds": "strict"},
    "truth_beyond": {"truth_beyond": "clip"},
    "clip_prediction": {"clip_prediction": (3.0, 4.0)},
    "input_size": {"eval_size": None, "keep_aspect": True, "input_size": 42},
    "eval_size": {"eval_size": (42, 28)},
    "keep_aspect": {"keep_aspect": True},
    "resize_first": {"resize_first": (20, 20)},
    "flip": {"flip": True},
    "upsample": {"upsample": "nearest"},
    "averaging": {"averaging": "pixel"},
}
WITHOUT: dict[str, dict] = {  # what is compared, where it is not the protocol without the change
    "space": {"align": "least_squares"},
    "align_per": {"align": "median"},
    "input_size": {"eval_size": None, "keep_aspect": True, "input_size": 28},
}


def test_changes_are_of_every_scoring_key() -> None:
    others = {"name", "count", "task", "not_finite", "metrics", "sources", "published"}
    others |= {"window", "stride"}  # of classes alone
    assert set(CHANGES) == {field.name for field in fields(Protocol)} - others


@pytest.fixture(scope="module")
def streets() -> Memory:
    """Two images of one folder: many pixels are exactly 1 or 9 m deep, some are farther."""
    samples = []
    for i, width in enumerate((1220, 1260)):
        depth_m = random_depth(i, 360, width) / (1 + i)
        depth_m[200:, :300], depth_m[200:, 300:600] = 1, 9
        depth_m[:60] *= 1 + i * 7
        samples.append(sample(f"a/{i}", depth_m, i))
    return Memory(samples)


@pytest.mark.parametrize("key", CHANGES)
def test_every_protocol_key_changes_the_score(micro: str, streets: Memory, key: str) -> None:
    torch.manual_seed(0)
    predictor = Predictor(depth_anything(micro, max_depth_m=10.0).eval(), 28)
    base = Protocol(
        "p",
        space="own",
        align="none",
        min_depth=1.0,
        max_depth=9.0,
        clip_prediction=(1e-3, 80.0),
        eval_size=(28, 42),
        keep_aspect=False,
        metrics=("abs_rel", "rmse"),
    )
    plain = replace(base, **WITHOUT.get(key, {}))
    changed = replace(base, **CHANGES[key])
    found = [summary(score_set(predictor, streets, each).rows, each) for each in (plain, changed)]
    assert found[0]["rmse"] != pytest.approx(found[1]["rmse"], rel=1e-6)


def test_metres_are_clipped_to_the_range(tmp_path: Path) -> None:
    depth_m = np.array([[2.0, 4.0, 8.0, 0.0]], np.float32)  # the last is unknown
    write_predictions(tmp_path, {"a": np.array([[2.0, 5.0, 99.0, 3.0]])})
    dataset = Memory([sample("a", depth_m)])
    (row,) = score_set(FolderPredictor(tmp_path, DEPTH), dataset, METRES).rows
    assert row.pixels == 3
    sums = pixel_sums(DEFAULT_METRICS["depth"], np.array([2.0, 5, 20]), np.array([2.0, 4, 8]))
    assert row.scores == pytest.approx({name: float(score) for name, score in scores_of(sums).items()})


def test_far_truth_is_left_out_or_clipped(tmp_path: Path) -> None:
    depth_m = np.array([[2.0, 4.0, 50.0, np.inf]], np.float32)
    write_predictions(tmp_path, {"a": np.array([[2.0, 4.0, 10.0, 1000.0]])})
    dataset = Memory([sample("a", depth_m)])
    (row,) = score_set(FolderPredictor(tmp_path, DEPTH), dataset, METRES).rows
    assert row.pixels == 2
    assert row.scores["abs_rel"] == pytest.approx(0, abs=1e-6)
    (row,) = score_set(FolderPredictor(tmp_path, DEPTH), dataset, replace(METRES, truth_beyond="clip")).rows
    assert row.pixels == 4
    assert row.scores["abs_rel"] == pytest.approx((10 / 20) / 4)  # 50 and infinity count as 20, 1000 too


def test_truth_at_the_cap_counts_despite_rounding(tmp_path: Path) -> None:
    depths = np.linspace(9.9, 10, 101, dtype=np.float32)[None]
    write_predictions(tmp_path, {"a": depths})
    rows = score_set(
        FolderPredictor(tmp_path, DEPTH), Memory([sample("a", depths)]), replace(METRES, max_depth=10)
    ).rows
    assert rows[0].pixels == 101


def test_perfect_prediction_depends_on_the_fitted_space(tmp_path: Path) -> None:
    dataset = room_set(3)
    write_predictions(tmp_path / "disparity", {n: 3 / each + 7 for n, each in truths(dataset).items()})
    write_predictions(tmp_path / "depth", {n: 3 * each + 7 for n, each in truths(dataset).items()})

    def abs_rel(quantity: str, space: str) -> float:
        predictor = FolderPredictor(tmp_path / quantity, QUANTITIES[quantity])
        return summary(score_set(predictor, dataset, replace(RELATIVE, space=space)).rows, RELATIVE)[
            "abs_rel"
        ]

    for quantity, wrong in (("disparity", "depth"), ("depth", "disparity")):
        assert abs_rel(quantity, quantity) < 1e-4
        assert abs_rel(quantity, "own") < 1e-4
        assert abs_rel(quantity, wrong) > 0.01


def test_relative_prediction_is_refused_without_alignment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="preds predicts disparity of unknown scale"):
        score_set(FolderPredictor(tmp_path, DISPARITY, label="preds"), room_set(), METRES)


def test_sequence_shares_one_fit(tmp_path: Path) -> None:
    depths = [random_depth(i) for i in range(4)]
    dataset = Memory([sample(f"{'ab'[i // 2]}/{i}", each) for i, each in enumerate(depths)])
    drift = [1.0, 1.5, 1.0, 1.0]  # the second image of sequence a is scaled by 1.5
    write_predictions(tmp_path, {dataset.name(i): drift[i] / each for i, each in enumerate(depths)})
    predictor = FolderPredictor(tmp_path, DISPARITY)
    alone = score_set(predictor, dataset, RELATIVE).rows
    together = score_set(predictor, dataset, replace(RELATIVE, align_per="sequence")).rows
    assert max(row.scores["abs_rel"] for row in alone) < 1e-5
    assert together[0].fitted == together[1].fitted != together[2].fitted == together[3].fitted
    assert together[0].scores["abs_rel"] > 0.05
    assert together[2].scores["abs_rel"] < 1e-5
    x = np.concatenate([(1 / depths[0]).ravel(), (1.5 / depths[1]).ravel()])
    y = np.concatenate([(1 / each).ravel() for each in depths[:2]])
    assert together[0].fitted.scale == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-4)


def test_sequence_does_not_wait_for_skipped_images(tmp_path: Path) -> None:
    dataset = room_set(6)
    maps = truths(dataset)
    del maps["1/5"]
    write_predictions(tmp_path, maps)
    dataset.damaged = (4,)
    scored = score_set(
        FolderPredictor(tmp_path, DEPTH),
        dataset,
        replace(RELATIVE, align_per="sequence"),
        skip_unreadable=True,
    )
    assert [row.name for row in scored.rows] == ["0/0", "1/1", "0/2", "1/3"]
    assert scored.missing == ["1/5"]
    assert scored.unreadable == ["0/4: 0/4.png: damaged"]


def test_damaged_image_stops_the_evaluation(tmp_path: Path) -> None:
    dataset = room_set(3)
    dataset.damaged = (1,)
    write_predictions(tmp_path, truths(dataset))
    with pytest.raises(ValueError, match=r"^1/1\.png: damaged$"):
        score_set(FolderPredictor(tmp_path, DEPTH), dataset, RELATIVE)


def test_images_without_counted_pixels_are_listed(tmp_path: Path) -> None:
    far = sample("far", np.full((4, 4), 50.0, np.float32))
    dataset = Memory([far, sample("near", random_depth(1, 4, 4))])
    write_predictions(tmp_path, truths(dataset))
    scored = score_set(FolderPredictor(tmp_path, DEPTH), dataset, RELATIVE)
    assert scored.empty == ["far"]
    assert [row.name for row in scored.rows] == ["near"]


def test_constant_and_reversed_predictions_get_finite_scores(tmp_path: Path) -> None:
    dataset = room_set(3)
    maps = truths(dataset)
    write_predictions(tmp_path, {"0/0": np.full((28, 42), 7.0), "1/1": maps["1/1"], "0/2": 1 / maps["0/2"]})
    scored = score_set(FolderPredictor(tmp_path, DISPARITY), dataset, RELATIVE)
    result = ProtocolResult(RELATIVE, {}, {}, 3, 3, {"p": scored})
    notes = " | ".join(result.notes("p"))
    assert "1 with a constant prediction, which cannot be aligned" in notes
    assert "0/0" in notes
    assert "1 fitted with a negative scale (near and far swapped), scored as fitted: 1/1" in notes
    assert all(np.isfinite(list(row.scores.values())).all() for row in scored.rows)


def test_predictions_are_resized_by_the_protocols_rule(tmp_path: Path) -> None:
    # 2 and 4 over four pixels, by hand
    write_predictions(tmp_path, {"a": np.array([[2.0, 4.0]])})
    expected = {
        "bilinear_corners": [2, 8 / 3, 10 / 3, 4],
        "bilinear": [2, 2.5, 3.5, 4],
        "nearest": [2, 2, 4, 4],
    }
    for rule, depth_m in expected.items():
        dataset = Memory([sample("a", np.array([depth_m], np.float32))])
        protocol = replace(METRES, upsample=rule)
        (row,) = score_set(FolderPredictor(tmp_path, DEPTH), dataset, protocol).rows
        assert row.scores["abs_rel"] == pytest.approx(0, abs=1e-6), rule


def test_crop_cuts_metrics_over_maps() -> None:
    depth_m = np.full((480, 640), 2, np.float32)
    depth_m[:, :10] = 1  # the only edge is outside of Eigen's crop
    known, flat = np.ones_like(depth_m, bool), np.full_like(depth_m, 2)
    found = {}
    for crop in ("none", "eigen_nyu"):
        protocol = replace(METRES, crop=crop, metrics=("abs_rel", "edge_recall_10"))
        (row,) = score_together([select(flat, "depth", 1 / depth_m, known, protocol)], "depth", protocol)
        found[crop] = row.scores
    assert found["none"]["edge_recall_10"] == 0 and found["none"]["abs_rel"] > 0
    assert found["eigen_nyu"] == {"abs_rel": 0}


def test_boundary_f1_needs_truth_without_holes(tmp_path: Path) -> None:
    depth_m = np.repeat([[1.0, 1.0, 3.0, 3.0]], 3, axis=0).astype(np.float32)
    holes = depth_m.copy()
    holes[0, 0] = 0
    dataset = Memory([sample("dense", depth_m), sample("holes", holes)])
    write_predictions(tmp_path, {"dense": depth_m, "holes": depth_m})
    protocol = replace(METRES, metrics=(*METRES.metrics, "boundary_f1"))
    scored = score_set(FolderPredictor(tmp_path, DEPTH), dataset, protocol)
    assert summary(scored.rows, protocol)["boundary_f1"] == pytest.approx(
        0.25
    )  # one direction of four has edges
    notes = ProtocolResult(protocol, {}, {}, 2, 2, {"p": scored}).notes("p")
    assert notes == ["no boundary_f1 for 1 of 2 images: their ground truth has holes"]


@dataclass
class Pairs:
    name: str
    scene: str
    image: np.ndarray
    pairs: list


def test_accuracy_is_over_pairs_and_by_scene(tmp_path: Path) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    right, wrong = ((0, 0), (1, 1)), ((1, 1), (0, 0))
    dataset = Memory(
        [
            Pairs("a", "indoor", image, [right, right, right]),
            Pairs("b", "indoor", image, [wrong]),
            Pairs("c", "aerial", image, [right]),
            Pairs("d", "aerial", image, []),
        ]
    )
    write_predictions(tmp_path, {name: np.array([[4.0, 3], [2, 1]]) for name in "abcd"})
    protocol = Protocol("p", task="ordinal")
    scored = score_set(FolderPredictor(tmp_path, DISPARITY), dataset, protocol)
    found = summary(scored.rows, protocol)
    assert found == {"accuracy": 4 / 5, "accuracy/indoor": 3 / 4, "accuracy/aerial": 1.0}
    assert scored.empty == ["d"]


def test_pixel_averaging_weighs_an_image_by_its_pixels(tmp_path: Path) -> None:
    dataset = Memory(
        [sample("a", np.full((1, 3), 2.0, np.float32)), sample("b", np.full((1, 1), 2.0, np.float32))]
    )
    write_predictions(tmp_path, {"a": np.full((1, 3), 2.0), "b": np.full((1, 1), 4.0)})
    rows = score_set(FolderPredictor(tmp_path, DEPTH), dataset, METRES).rows
    assert summary(rows, METRES)["abs_rel"] == pytest.approx(1 / 2)
    assert summary(rows, replace(METRES, averaging="pixel"))["abs_rel"] == pytest.approx(1 / 4)
    assert summary(rows, METRES)["rmse"] == pytest.approx(1)
    assert summary(rows, replace(METRES, averaging="pixel"))["rmse"] == pytest.approx(1)  # sqrt(4 / 4)


def test_predictors_are_compared_on_common_images(tmp_path: Path) -> None:
    dataset = room_set(5)
    maps = truths(dataset)
    write_predictions(tmp_path / "a", {name: 1.2 * each for name, each in maps.items()})
    del maps["0/4"]
    write_predictions(tmp_path / "b", {name: 1.1 * each for name, each in maps.items()})
    a, b = (score_set(FolderPredictor(tmp_path / each, DEPTH), dataset, METRES).rows for each in "ab")
    found = difference(b, a, METRES)
    assert found is not None
    assert found.images == 4
    assert found.values["abs_rel"] == pytest.approx(-0.1, abs=1e-5)
    assert found.intervals["abs_rel"] == pytest.approx((-0.1, -0.1), abs=1e-5)
    assert statistic(a, METRES)(np.eye(5))["abs_rel"] == pytest.approx([0.2] * 5, abs=1e-5)


def write_png(path: Path, stored: np.ndarray, texts: dict[str, str] | None = None) -> None:
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    Image.fromarray(stored).save(path, pnginfo=info)


def test_png_predictions_state_or_need_a_scale(tmp_path: Path) -> None:
    depth_m = np.array([[2.0, 4.0, 8.0]], np.float32)
    dataset = Memory([sample("a.jpg", depth_m)])
    texts = {"quantity": "depth in metres", "scale": "0.001", "offset": "1.0"}
    write_png(tmp_path / "a_16bit.png", ((depth_m - 1) * 1000).astype(np.uint16), texts)
    (row,) = score_set(FolderPredictor(tmp_path, DEPTH), dataset, METRES).rows
    assert row.scores["abs_rel"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="says that it holds depth in metres: pass quantity=depth"):
        score_set(FolderPredictor(tmp_path, DISPARITY), dataset, RELATIVE)
    (tmp_path / "p").mkdir()  # a folder with the protocol's name has priority
    write_png(tmp_path / "p" / "a.png", (depth_m * 256).astype(np.uint16))
    (row,) = score_set(FolderPredictor(tmp_path, DEPTH, stored_per_unit=256), dataset, METRES).rows
    assert row.scores["abs_rel"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="does not say its scale"):
        score_set(FolderPredictor(tmp_path, DEPTH), dataset, METRES)


def test_unusable_prediction_files_are_named(tmp_path: Path) -> None:
    dataset = Memory([sample("a", random_depth(0))])
    predictor = FolderPredictor(tmp_path, DISPARITY)
    write_predictions(tmp_path, {"a": np.full((3, 3), np.nan)})
    with pytest.raises(ValueError, match=r"a\.npy: 9 values are NaN or infinite"):
        score_set(predictor, dataset, RELATIVE)
    write_predictions(tmp_path, {"a": np.zeros((3, 3, 3))})
    with pytest.raises(ValueError, match=r"a\.npy: expected numbers \[h w\]"):
        score_set(predictor, dataset, RELATIVE)
    (tmp_path / "a.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.npy: cannot read"):
        score_set(predictor, dataset, RELATIVE)
    (tmp_path / "a.npy").unlink()
    write_png(tmp_path / "a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="too coarse to be scored"):
        score_set(predictor, dataset, RELATIVE)


def test_input_crop_cuts_image_and_truth(tmp_path: Path) -> None:
    depth_m = np.full((375, 1242), 5.0, np.float32)
    depth_m[:23] = 7.0  # outside the crop
    dataset = Memory([sample("a", depth_m)])
    write_predictions(tmp_path, {"a": np.full((352, 1216), 5.0)})
    (row,) = score_set(FolderPredictor(tmp_path, DEPTH), dataset, replace(METRES, input_crop="kitti_kb")).rows
    assert row.pixels == 352 * 1216
    assert row.scores["abs_rel"] == pytest.approx(0, abs=1e-6)
    small = Memory([sample("s", np.full((20, 30), 5.0, np.float32))])
    write_predictions(tmp_path, {"s": np.ones((20, 30))})
    with pytest.raises(ValueError, match="s: input_crop=kitti_kb cuts 1216x352, the image is 30x20"):
        score_set(FolderPredictor(tmp_path, DEPTH), small, replace(METRES, input_crop="kitti_kb"))


def test_folder_of_maps_differs_from_a_model(tmp_path: Path) -> None:
    write_predictions(tmp_path / "maps", {"x/a": np.ones((2, 2))})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "1.pt").touch()
    (tmp_path / "run" / "picture.png").touch()
    assert holds_predictions(tmp_path / "maps")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/disk").symlink_to(tmp_path / "maps")
    assert holds_predictions(tmp_path / "linked")
    assert not holds_predictions(tmp_path / "run")
    assert not holds_predictions(tmp_path / "none")
