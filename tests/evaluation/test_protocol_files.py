"""The protocols of published benchmarks: complete, sourced, and consistent with their readers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import benchmark_trees as trees
from depthany.config.entry import config_dir
from depthany.evaluation.protocol_files import choose
from depthany.evaluation.score import score_together, select
from depthany.metrics.crops import INPUT_CROPS

OF_ALL = ("name", "dataset", "count", "task", "metrics", "input_size", "upsample", "sources", "published")
OF_DEPTH = (
    "space",
    "align",
    "align_per",
    "crop",
    "input_crop",
    "min_depth",
    "max_depth",
    "truth_beyond",
    "clip_prediction",
    "averaging",
)
OF_METRES = (
    "bounds",
    "not_finite",
    "eval_size",
    "keep_aspect",
    "resize_first",
    "flip",
)  # where align is none
WITHOUT_SOURCE = {"name", "task", "sources", "published"}
# Name of the root in configs/evaluate.yaml, and the function that writes a tiny tree of it
TREES: dict[str, Callable[..., None]] = {
    "nyu": trees.write_nyu_mat,
    "kitti": trees.write_kitti,
    "diode": trees.write_diode,
    "eth3d": trees.write_eth3d,
    "sintel": trees.write_sintel,
    "ddad": trees.write_ddad,
    "ibims": trees.write_ibims,
    "scannet": trees.write_scannet,
    "vkitti2": trees.write_vkitti2,
    "hypersim": trees.write_hypersim,
    "sunrgbd": trees.write_sun_rgbd,
    "da2k": trees.write_da2k,
}
SIZES = {"nyu": (480, 640), "kitti": (375, 1242), "vkitti2": (375, 1242), "sunrgbd": (50, 60)}
SIZES |= {"ibims1_metric": (480, 640), "hypersim_metric_v1": (60, 80)}  # of one protocol
PROMISED = {
    "nyu_eigen_raw",
    "nyu_midas",
    "nyu_filled",
    "kitti_garg652",
    "kitti_marigold652",
    "kitti_midas161",
    "diode_indoor325",
    "diode_full771",
    "eth3d",
    "eth3d_marigold",
    "sintel_final",
    "sintel_clean",
    "sintel_final_clip72",
    "ddad",
    "ibims1",
    "scannet_marigold800",
    "vkitti2_val",
    "hypersim_val",
    "da2k",
    "nyu_metric",
    "kitti_metric",
    "sun_rgbd",
    "sun_rgbd_v1",
    "ibims1_metric",
    "hypersim_metric_v1",
    "vkitti2_metric",
    "diode_outdoor_metric",
}


def benchmarks() -> dict[str, DictConfig]:
    """The protocols of published data sets, not of the bundled sample or a folder of one's own."""
    files = {path.stem: OmegaConf.load(path) for path in sorted((config_dir() / "protocol").glob("*.yaml"))}
    return {
        stem: cfg for stem, cfg in files.items() if isinstance(cfg, DictConfig) and _root_of(cfg) in TREES
    }


def _root_of(protocol: DictConfig) -> str:
    """`nyu` where the root is ${roots.nyu}."""
    written = OmegaConf.to_container(protocol, resolve=False)
    assert isinstance(written, dict)
    return str(written.get("dataset", {}).get("root")).removeprefix("${roots.").removesuffix("}")


PROTOCOLS = benchmarks()
each_protocol = pytest.mark.parametrize("stem", sorted(PROTOCOLS))


def test_promised_protocols_exist_and_no_other() -> None:
    assert set(PROTOCOLS) == PROMISED


@each_protocol
def test_protocol_has_exactly_the_keys_of_its_task(stem: str) -> None:
    protocol = PROTOCOLS[stem]
    assert protocol.name == stem
    wanted = OF_ALL + (OF_DEPTH if protocol.task == "depth" else ())
    wanted += OF_METRES if protocol.get("align") == "none" else ()
    assert sorted(protocol) == sorted(wanted)


@each_protocol
def test_choices_and_sources_match(stem: str) -> None:
    protocol = PROTOCOLS[stem]
    sourced = [key for keys in protocol.sources for key in keys.split(", ")]
    choices = set(protocol) - WITHOUT_SOURCE | ({"task"} if protocol.task == "ordinal" else set())
    assert sorted(sourced) == sorted(choices)
    assert all(len(text.split()) >= 4 for text in protocol.sources.values())


@each_protocol
def test_reader_range_contains_the_protocol_range(stem: str, tmp_path: Path) -> None:
    protocol, dataset = build(stem, tmp_path)
    assert len(dataset) >= 1
    sample = dataset.read(0)
    assert sample.name == dataset.name(0)
    if protocol.task == "depth":
        assert dataset.min_depth <= (protocol.min_depth or 1e-3)
        assert dataset.max_depth >= (protocol.max_depth or 1e5)


def build(stem: str, root: Path, size: tuple[int, int] | None = None):
    """The protocol and its data set on a tiny tree."""
    TREES[_root_of(PROTOCOLS[stem])](root, **({} if size is None else {"size": size}))
    roots = OmegaConf.create({name: str(root) for name in TREES})
    ((chosen,), _) = choose([stem], roots, OmegaConf.create({}))
    return chosen.protocol, instantiate(chosen.dataset)


@each_protocol
def test_published_figures_are_shares_of_listed_metrics(stem: str) -> None:
    for figures in PROTOCOLS[stem].published.values():
        assert list(figures) == [name for name in PROTOCOLS[stem].metrics if name in figures]
        assert all(0 < value <= 1 for name, value in figures.items() if name != "rmse")


# Pixels of the first image of the tiny tree that count, by hand
COUNTED = {
    "nyu_eigen_raw": 426 * 560,
    "nyu_filled": 426 * 560,
    "nyu_midas": 480 * 640 - 1,  # one hole, which lies outside of Eigen's crop
    "kitti_garg652": (371 - 187) * (1197 - 44),  # of 375x1242; truth begins at row 187
    "kitti_marigold652": (321 - 164) * (1172 - 43),  # of the lower 352 rows, where truth begins at row 164
    "kitti_midas161": (375 - 187) * 1242 + 3,  # and three pixels of row 0
    "vkitti2_val": (321 - 117) * (1172 - 43),
    "diode_indoor325": 47,  # one pixel off the mask
    "diode_full771": 47,
    "eth3d": 40,  # a row without depth
    "eth3d_marigold": 40,
    "sintel_final": 40,  # a row of sky
    "sintel_clean": 40,
    "sintel_final_clip72": 48,  # sky counts
    "ddad": 1,
    "ibims1": 3 * 7,  # three of six rows are masked or empty; the first column is at 50 m
    "scannet_marigold800": 1,
    "hypersim_val": 48,
    "nyu_metric": 426 * 560,
    "kitti_metric": (349 - 164) * (1172 - 43),  # Garg's fractions of the lower 352 rows
    "sun_rgbd": (50 - 45) * (60 - 41) - 2,  # a pixel at 9 m and one without depth
    "sun_rgbd_v1": (50 - 45) * (60 - 41) - 1,  # 9 m is read as 0.6 m
    "ibims1_metric": 426 * 560,
    "hypersim_metric_v1": (60 - 45) * (80 - 41),  # of 60x80: the crop goes by its numbers
    "vkitti2_metric": (349 - 143) * (1172 - 43),
    "diode_outdoor_metric": (5 - 2) * 7,
}


@pytest.mark.parametrize("stem", COUNTED)
def test_counted_pixels_and_score_of_perfect_prediction(stem: str, tmp_path: Path) -> None:
    protocol, dataset = build(stem, tmp_path, SIZES.get(stem, SIZES.get(_root_of(PROTOCOLS[stem]))))
    labels = dataset.labels(0)
    box = INPUT_CROPS[protocol.input_crop](*labels.mask.shape)
    truth, mask = labels.disparity[box], labels.mask[box]
    noise = np.random.default_rng(0).random(truth.shape, dtype=np.float32)
    prediction, quantity = np.where(mask, 3 * truth + 1, noise), "disparity"
    if protocol.align == "none":
        prediction, quantity = np.where(mask, 1 / np.maximum(truth, 1e-6), noise), "depth"
    pixels = select(prediction, quantity, truth, mask, protocol)
    (row,) = score_together([pixels], quantity, protocol)
    assert row.pixels == COUNTED[stem]
    if protocol.align == "none":
        assert row.scores["abs_rel"] < 1e-5
    elif protocol.truth_beyond == "invalid":  # most tiny trees have a single distance, which has no score
        assert row.is_degenerate if np.ptp(pixels.depth_m) == 0 else row.scores["abs_rel"] < 1e-5


def test_every_depth_protocol_has_a_counted_number() -> None:
    assert set(COUNTED) == {stem for stem, protocol in PROTOCOLS.items() if protocol.task == "depth"}


def test_counts_add_up() -> None:
    counts = {stem: protocol.count for stem, protocol in PROTOCOLS.items()}
    assert counts["kitti_garg652"] == counts["kitti_marigold652"] == 697 - 45
    assert counts["diode_full771"] - counts["diode_indoor325"] == 446  # outdoor
    assert counts["vkitti2_val"] == 447 * 6 * 2  # frames, variants, cameras
    assert counts["vkitti2_metric"] == 21260 - 19559  # one camera, less the training list
    assert counts["kitti_metric"] == counts["kitti_garg652"]
    assert counts["diode_outdoor_metric"] == 446


def test_metric_protocols_cut_and_resize_as_their_code() -> None:
    metric = {stem: each for stem, each in PROTOCOLS.items() if each.get("align") == "none"}
    assert all(
        each.eval_size == [392, 518] and not each.keep_aspect and each.flip for each in metric.values()
    )
    assert {each.bounds for each in metric.values()} == {"strict"}
    assert {stem for stem, each in metric.items() if each.input_crop != "none"} == {
        "kitti_metric",
        "vkitti2_metric",
    }
    assert {stem for stem, each in metric.items() if each.resize_first} == {
        "hypersim_metric_v1",
        "diode_outdoor_metric",
    }
    ranges = {(each.min_depth, each.max_depth) for each in metric.values()}
    assert ranges == {(1e-3, 10), (1e-3, 80), (None, 8), (None, 10)}


def test_hypersim_val_keeps_the_published_pinhole(tmp_path: Path) -> None:
    (tmp_path / "metadata_camera_parameters.csv").write_text("not read")
    _, dataset = build("hypersim_val", tmp_path)
    assert dataset.camera_csv is None and dataset.warnings == []


@each_protocol
def test_hypotheses_are_marked_at_the_top(stem: str) -> None:
    text = (config_dir() / f"protocol/{stem}.yaml").read_text()
    assert text.startswith("# ")
    if "hypothesis" in text.split("sources:")[1]:
        assert "HYPOTHESIS" in text.splitlines()[0]
