"""What a stage learns from labels in metres, in disparity and of classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.labeled import Decoded, PairedDepth
from depthany.data.pairs import Pair
from depthany.data.sampler import Draw
from depthany.data.samples import NoValidPixel
from depthany.data.targets import TARGETS, Labels, make_target
from depthany.data.transforms import Crop, draw_crop

NAN = np.nan
WHOLE = Crop((1, 4), 0, 0, 1, 4, flip=False)  # all of a map [1 4]


def plane(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def known(*values: int) -> np.ndarray:
    return np.array([values], bool)


METRES = Labels(plane(2, NAN, 4, 900), "m", known(1, 0, 1, 0), known(0, 0, 0, 1))


def test_disparity_of_metres_is_their_inverse() -> None:
    assert METRES.mask.tolist() == [[True, False, True, True]]
    assert METRES.disparity.tolist() == [[0.5, 0, 0.25, 0]]


def test_disparity01_by_hand() -> None:
    target, mask = make_target("disparity01", METRES, WHOLE)
    assert target.tolist() == [[1, 0, 0.5, 0]]  # sky is 0: 1/2 m, unknown, 1/4 m, sky
    assert mask.tolist() == [[True, False, True, True]]
    assert (target.dtype, mask.dtype) == (np.float32, np.bool_)


def test_disparity01_without_sky_begins_at_the_farthest() -> None:
    labels = Labels(plane(2, 4, 8, 16), "m", known(1, 1, 1, 0))
    np.testing.assert_allclose(make_target("disparity01", labels, WHOLE)[0], [[1, 1 / 3, 0, 0]], atol=1e-7)


def test_disparity01_of_disparity_by_hand() -> None:
    labels = Labels(plane(0.2, 0.4, 0.7, 99), "disparity", known(1, 1, 1, 0))
    np.testing.assert_allclose(make_target("disparity01", labels, WHOLE)[0], [[0, 0.4, 1, 0]], atol=1e-6)
    with_sky = Labels(plane(0.2, 0.4, 0.7, 99), "disparity", known(1, 1, 1, 0), known(0, 0, 0, 1))
    target, mask = make_target("disparity01", with_sky, WHOLE)
    np.testing.assert_allclose(target, [[2 / 7, 4 / 7, 1, 0]], atol=1e-6)
    assert mask.all()


def test_constant_disparity_becomes_zeros_and_no_nan() -> None:
    labels = Labels(plane(3, 3, 3, 3), "m", known(1, 1, 1, 1))
    assert make_target("disparity01", labels, WHOLE)[0].tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("unit", ["m", "disparity"])
@pytest.mark.parametrize("with_sky", [False, True])
def test_disparity01_is_scaled_over_the_whole_map(unit: str, with_sky: bool) -> None:
    random = np.random.default_rng(0)
    values = random.uniform(0.5, 90, (40, 70)).astype(np.float32)
    valid, sky = random.random((40, 70)) < 0.6, random.random((40, 70)) < 0.1
    values[~valid] = random.choice([np.nan, np.inf, -np.inf, -1, 0, 1e30], (~valid).sum())
    labels = Labels(values, unit, valid & ~sky, sky if with_sky else None)
    with np.errstate(all="ignore"):
        disparity = np.where(labels.valid, 1 / values if unit == "m" else values, np.float32(0))
    low, high = disparity[labels.mask].min(), disparity[labels.mask].max()
    expected = np.where(labels.mask, (disparity - low) / (high - low), np.float32(0))
    for seed in range(5):
        crop = draw_crop(40, 70, (28, 14), seed)
        target, mask = make_target("disparity01", labels, crop)
        np.testing.assert_array_equal(target, crop.of_map(expected))
        np.testing.assert_array_equal(mask, crop.of_map(labels.mask))


def test_depth_m_leaves_sky_and_unknown_out() -> None:
    target, mask = make_target("depth_m", METRES, WHOLE)
    assert target.tolist() == [[2, 0, 4, 0]]
    assert mask.tolist() == [[True, False, True, False]]


def test_classes_are_whole_numbers_with_a_mask() -> None:
    labels = Labels(plane(0, 18, 255, 3), "class", known(1, 1, 0, 1))
    target, mask = make_target("classes", labels, Crop((1, 4), 0, 1, 1, 3, flip=True))
    assert target.tolist() == [[3, 0, 18]]
    assert mask.tolist() == [[True, False, True]]
    assert target.dtype == np.int64


@pytest.mark.parametrize(
    "target, unit, message",
    [
        (
            "depth_m",
            "disparity",
            "disparity of unknown scale cannot become depth_m, which is made from depth i",
        ),
        ("depth_m", "class", "class numbers cannot become depth_m"),
        ("disparity01", "class", "made from depth in metres or disparity of unknown scale"),
        ("classes", "m", "depth in metres cannot become classes, which is made from class numbers"),
    ],
)
def test_units_that_cannot_become_the_target(target: str, unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_target(target, Labels(plane(1, 2, 3, 4), unit, known(1, 1, 1, 1)), WHOLE)


def test_labels_of_classes_have_no_disparity() -> None:
    with pytest.raises(ValueError, match="class numbers cannot become disparity"):
        _ = Labels(plane(1), "class", known(1)).disparity


@pytest.mark.parametrize(
    "labels, message",
    [
        ((plane(1, 2), "m", known(1)), r"shape \(1, 2\), \(1, 1\): expected one shape"),
        ((plane(1), "m", known(1), known(1, 0)), r"shape \(1, 1\), \(1, 1\), \(1, 2\)"),
        ((plane(1).astype(np.float64), "m", known(1)), "type float64, bool: expected float32 values"),
        ((plane(1), "m", plane(1)), "type float32, float32"),
        ((plane(1), "cm", known(1)), "unknown unit of labels 'cm'; choose from m, disparity, class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Labels(*labels)


def folder(root: Path, depth_mm: list[list[int]]) -> str:
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True)
    stored = np.array(depth_mm, np.uint16)
    Image.new("RGB", stored.shape[::-1]).save(root / "images/a.png")
    Image.fromarray(stored).save(root / "depth/a.png")
    return str(root)


class Classes(PairedDepth):
    """The stored numbers are classes, and 255 is unknown."""

    unit = "class"

    def find(self) -> tuple[list[Pair], list[str]]:
        return [Pair("a", self.root / "images/a.png", self.root / "depth/a.png")], []

    def decode(self, pair: Pair) -> Decoded:
        stored = np.asarray(Image.open(pair.depth))
        return Decoded(stored.astype(np.float32), stored != 255)


def test_training_set_makes_the_target_of_its_stage(tmp_path: Path) -> None:
    metres = FolderDepth(
        folder(tmp_path / "metres", [[1000, 2000], [4000, 65535]]), depth_scale=1000, sky_value=65535
    )
    classes = Classes(folder(tmp_path / "classes", [[0, 7], [255, 3]]))
    draw = [Draw(True, 0, seed=0)]  # flipped
    batch = TrainingSet([metres], [], 2, target="depth_m")[draw]
    assert (batch.target.tolist(), batch.mask.tolist()) == (
        [[[2, 1], [0, 4]]],
        [[[True, True], [False, True]]],
    )
    batch = TrainingSet([metres], [], 2)[draw]
    assert (batch.target.tolist(), batch.mask.all()) == ([[[0.5, 1], [0, 0.25]]], True)
    batch = TrainingSet([classes], [], 2, target="classes")[draw]
    assert (batch.target.tolist(), batch.mask.tolist()) == (
        [[[7, 0], [3, 0]]],
        [[[True, True], [True, False]]],
    )
    assert batch.target.dtype == torch.int64


def test_training_set_refuses_labels_before_reading_them(tmp_path: Path) -> None:
    classes = Classes(folder(tmp_path, [[0, 7], [255, 3]]))
    with pytest.raises(
        ValueError, match=r"Classes \(.*depth/a\.png, \.\.\.\): class numbers cannot become disp"
    ):
        TrainingSet([classes], [], 2)
    with pytest.raises(
        ValueError, match="unknown target 'normals'; choose from disparity01, depth_m, classes"
    ):
        TrainingSet([], [], 2, target="normals")


def test_unknown_classes_alone_have_no_valid_pixel(tmp_path: Path) -> None:
    with pytest.raises(NoValidPixel, match=r"a\.png: no valid pixel \(class 0 or more\): remove the pair"):
        Classes(folder(tmp_path, [[255, 255]])).labels(0)


def test_targets_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = TARGETS["depth_m"]._replace(
        make=lambda labels, crop: (2 * crop.of_map(labels.values), labels.valid)
    )
    monkeypatch.setitem(TARGETS, "twice", row)
    metres = FolderDepth(folder(tmp_path, [[1000, 2000], [4000, 3000]]), depth_scale=1000)
    batch = TrainingSet([metres], [], 2, target="twice")[[Draw(True, 0, seed=0)]]
    assert batch.target.tolist() == [[[4, 2], [6, 8]]]
