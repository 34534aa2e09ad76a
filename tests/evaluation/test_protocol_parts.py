"""Crops, boundary F1, point pairs and the bootstrap, against numbers by hand or a plain reference."""

import numpy as np
import pytest

from depthany.evaluation.edge_zooms import edge_windows, enlarged
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.score import score_pairs
from depthany.metrics.bootstrap import intervals
from depthany.metrics.boundary import boundary_f1, edge_sums
from depthany.metrics.crops import CROPS, INPUT_CROPS
from depthany.metrics.ordinal import pair_sums
from depthany.metrics.table import image_sums, score_values

EDGES = ("edge_recall_5", "edge_recall_10", "edge_recall_25")


def corners(box):
    rows, columns = box
    return rows.start, rows.stop, columns.start, columns.stop


def test_crops_are_those_of_published_code():
    assert corners(CROPS["eigen_nyu"](480, 640)) == (45, 471, 41, 601)
    assert corners(CROPS["eigen_nyu_any_size"](768, 1024)) == (45, 471, 41, 601)
    assert corners(CROPS["eigen_nyu_any_size"](427, 561)) == (45, 427, 41, 561)
    # 375 x 1242: .40810811 -> 153.04, .99189189 -> 371.96, .03594771 -> 44.6, .96405229 -> 1197.4
    assert corners(CROPS["garg_kitti"](375, 1242)) == (153, 371, 44, 1197)
    # 352 x 1216: .3324324 -> 117.02, .91351351 -> 321.6, .0359477 -> 43.7, .96405229 -> 1172.3
    assert corners(CROPS["eigen_kitti"](352, 1216)) == (117, 321, 43, 1172)
    assert corners(INPUT_CROPS["kitti_kb"](375, 1242)) == (23, 375, 13, 1229)


def test_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="maps of 640x480, this one is 320x240"):
        CROPS["eigen_nyu"](240, 320)
    with pytest.raises(ValueError, match="the map is 41x600: use crop=none"):
        CROPS["eigen_nyu_any_size"](600, 41)
    with pytest.raises(ValueError, match="the image is 1200x370"):
        INPUT_CROPS["kitti_kb"](370, 1200)


def plain_boundary_f1(predicted, true):
    """The loop over pixels and neighbours, as the text describes it."""
    height, width = true.shape
    total = weight = 0.0
    for t in np.linspace(1.05, 1.25, 10):
        precision = recall = 0.0
        for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            found = there = both = 0
            for i in range(height):
                for j in range(width):
                    k, m = i + step[0], j + step[1]
                    if not (0 <= k < height and 0 <= m < width):
                        continue
                    p, g = predicted[k, m] / predicted[i, j] > t, true[k, m] / true[i, j] > t
                    found, there, both = found + p, there + g, both + (p and g)
            precision, recall = precision + both / max(found, 1) / 4, recall + both / max(there, 1) / 4
        if precision + recall:
            total += t * 2 * precision * recall / (precision + recall)
        weight += t
    return total / weight


def test_boundary_f1_equals_a_loop_over_pixels():
    draw = np.random.default_rng(0)
    true = np.exp(draw.normal(0, 0.2, (7, 9)))
    predicted = true * np.exp(draw.normal(0, 0.1, (7, 9)))
    assert boundary_f1(predicted, true) == pytest.approx(plain_boundary_f1(predicted, true), rel=1e-12)
    assert 0.1 < boundary_f1(predicted, true) < 0.9


def test_boundary_f1_of_a_weak_edge_by_hand():
    # A step of 1.15 instead of 2: found at the thresholds 1.05, 1.0722, ..., 1.1389, five of ten. In one of
    # the four directions there is an edge, from far to near: precision = recall = 1/4 where it is found.
    true = np.repeat([[1.0, 1.0, 2.0, 2.0]], 3, axis=0)
    predicted = np.repeat([[1.0, 1.0, 1.15, 1.15]], 3, axis=0)
    thresholds = np.linspace(1.05, 1.25, 10)
    expected = 0.25 * thresholds[:5].sum() / thresholds.sum()
    assert boundary_f1(predicted, true) == pytest.approx(expected)
    assert boundary_f1(5 * predicted, true) == pytest.approx(expected)  # no scale matters


def test_recall_of_edges_by_hand():
    # Steps of 1.2 and 2 in each row of four. The prediction has 1.3 and 1.02, the wrong way round in one row.
    true = np.repeat([[1.0, 1.2, 1.2, 2.4]], 3, axis=0)
    predicted = np.repeat([[1.0, 1.3, 1.3, 1.326]], 3, axis=0)
    predicted[2] = 1 / predicted[2]
    known = np.ones_like(true, bool)
    # 5 % and 10 %: six edges, of which two are found; 25 %: the three of 2, none found
    assert edge_sums(predicted, true, known).tolist() == [[6, 2], [6, 2], [3, 0]]
    assert edge_sums(5 * predicted, true, known).tolist() == [[6, 2], [6, 2], [3, 0]]  # no scale matters
    known[0, 1] = False  # both pairs of that pixel are gone: an edge that is found, and no edge
    assert edge_sums(predicted, true, known).tolist() == [[5, 1], [5, 1], [3, 0]]
    scores = score_values(image_sums(EDGES, "maps", predicted, true, known), EDGES)
    assert scores == {"edge_recall_5": 0.2, "edge_recall_10": 0.2, "edge_recall_25": 0}
    assert score_values(image_sums(EDGES, "maps", true, np.ones_like(true), known), EDGES) == {}


def test_zooms_lie_around_the_strongest_edges():
    depth_m = np.ones((64, 100))
    depth_m[10:30, 70:] = 3  # 20 + 2 * 30 pixels of border
    depth_m[50:52, 5:7] = 2  # 8 pixels of border
    counted = np.ones_like(depth_m, bool)
    first, second, *more = edge_windows(depth_m, counted, 9)
    assert [part.stop - part.start for part in first] == [16, 16]
    assert (depth_m[first] == 3).any() and (depth_m[second] == 3).any()
    windows = [first, second, *more]
    covered = np.zeros_like(depth_m)
    for window in windows:
        covered[window] += 1
    assert covered.max() == 1 and covered[50, 5] == 1
    counted[:] = False
    assert edge_windows(depth_m, counted, 9) == []
    assert edge_windows(np.ones((4, 5)), np.ones((4, 5), bool), 9) == []
    picture = np.zeros((128, 200, 3), np.uint8)  # twice the size of the map
    picture[20:60, 140:] = 255
    part = enlarged(picture, (slice(10, 26), slice(70, 86)), (64, 100), 320)
    assert part.shape == (320, 320, 3) and part.min() == 255


def test_equal_points_are_a_wrong_pair():
    nearness = np.array([[1.0, 2.0], [3.0, 3.0]])
    pairs = [((0, 1), (0, 0)), ((0, 0), (1, 1)), ((1, 0), (1, 1))]
    assert pair_sums(nearness, pairs).tolist() == [3, 1]
    with pytest.raises(ValueError, match="outside of the image of 2x2"):
        pair_sums(nearness, [((0, 2), (0, 0))])


def test_smaller_depth_is_nearer():
    depth_m, pairs = np.array([[1.0, 2.0]]), [((0, 0), (0, 1))]
    protocol = Protocol("p", task="ordinal")
    assert score_pairs(depth_m, "depth", pairs, protocol, "").scores == {"accuracy": 1.0}
    assert score_pairs(depth_m, "disparity", pairs, protocol, "").scores == {"accuracy": 0.0}


def test_constant_map_of_pairs_is_marked():
    protocol, pairs = Protocol("p", task="ordinal"), [((0, 0), (0, 1))]
    assert score_pairs(np.ones((2, 2)), "depth", pairs, protocol, "").is_constant
    assert not score_pairs(np.eye(2), "depth", pairs, protocol, "").is_constant


def test_bootstrap_of_a_mean_matches_textbook_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)

    def mean(counts):
        return {"mean": counts @ values / counts.sum(1)}

    low, high = intervals(mean, len(values))["mean"]
    error = 1.96 * values.std() / 20
    assert [low, high] == pytest.approx([values.mean() - error, values.mean() + error], abs=0.02)
    assert intervals(mean, len(values))["mean"] == (low, high)


def test_paired_difference_has_a_narrow_interval():
    draw = np.random.default_rng(0)
    hard = draw.exponential(1, 300)
    first, second = hard + 0.10 + draw.normal(0, 0.01, 300), hard

    def both(counts):
        a, b = (counts @ each / counts.sum(1) for each in (first, second))
        return {"first": a, "difference": a - b}

    found = intervals(both, 300)
    assert np.diff(found["first"]) > 0.15
    assert np.diff(found["difference"]) < 0.01
    assert found["difference"][0] > 0.09


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"align": "magic"}, "unknown align 'magic'; choose from least_squares, median"),
        (
            {"min_depth": 5, "max_depth": 2},
            "protocol p: min_depth=5 and max_depth=2: expected min_depth < max_depth",
        ),
        ({"clip_prediction": (3, 1)}, "nearest < farthest"),
        ({"max_depth": None}, "clip_prediction=null"),
        ({"count": 0}, "expected 1 or more"),
        (
            {"eval_size": (392, 518), "input_size": 518},
            "give only one of them; eval_size with keep_aspect=true",
        ),
        ({"keep_aspect": False}, r"keep_aspect=false needs eval_size=\[height, width\]"),
        ({"metrics": ("abs_rel", "mine")}, "p: unknown metric 'mine' of task depth; choose from abs_rel"),
        ({"task": "ordinal", "metrics": ("abs_rel",)}, "of task ordinal; choose from accuracy"),
        ({"published": {"A": {"absrel": 0.1}}}, "unknown metric 'absrel' in the figures of 'A'"),
    ],
)
def test_impossible_protocol_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Protocol("p", **settings)
