"""Predictions in files of other sizes than their images, and metres of another camera than the set's."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from depthany.data.samples import LabeledSample
from depthany.data.targets import Labels
from depthany.evaluation.predictors import QUANTITIES, FolderPredictor
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.run import score_set
from depthany.evaluation.stored_sizes import shown_part, stretch_warnings
from depthany.inference.canonical import at_camera_of
from depthany.inference.predictor import Predictor
from depthany.models.model import depth_anything
from depthany.models.trained_on import TrainedOn

METRES = Protocol("p", align="none", max_depth=80)
WHOLE, SHOWN = (375, 1242), (352, 1216)  # of a KITTI image, and of the box that input_crop=kitti_kb leaves


class One:
    """A set of one image, with the camera that the keywords name."""

    def __init__(self, depth_m: np.ndarray, **camera: float | None) -> None:
        self.depth_m = depth_m
        self.__dict__ |= camera

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "a"

    def read(self, index: int, convert_images: bool = False) -> LabeledSample:
        image = np.full((*self.depth_m.shape, 3), 90, np.uint8)
        return LabeledSample("a", image, Labels(1 / self.depth_m, "disparity", self.depth_m > 0))


def street(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (5 + 40 * (1 - y / height) + 3 * np.sin(x / 60)).astype(np.float32)


def preds(folder: Path, depth_m: np.ndarray) -> FolderPredictor:
    np.save(folder / "a.npy", depth_m)
    return FolderPredictor(folder, QUANTITIES["depth"], label="preds")


def abs_rel(predictor: object, dataset: One, protocol: Protocol) -> float:
    (row,) = score_set(predictor, dataset, protocol).rows
    return row.scores["abs_rel"]


@pytest.mark.parametrize("crop", ["none", "kitti_kb"])
def test_prediction_of_a_whole_image_is_cropped(tmp_path: Path, crop: str) -> None:
    depth_m = street(*WHOLE)
    protocol = replace(METRES, input_crop=crop)
    assert abs_rel(preds(tmp_path, depth_m), One(depth_m), protocol) == pytest.approx(0, abs=1e-6)
    cropped = depth_m[23:, 13:-13]
    assert cropped.shape == SHOWN
    if crop != "none":
        assert abs_rel(preds(tmp_path, cropped), One(depth_m), protocol) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "size, message",
    [
        ((1242, 375), "the prediction is 375x1242, its image 1216x352: rows and columns are swapped"),
        ((126, 420), "420x126, in the ratio of the whole image, 1242x375, but input_crop leaves 1216x352"),
        ((252, 840), "write predictions at the size of the whole image, which are cropped"),
    ],
)
def test_prediction_of_another_part_is_refused(tmp_path: Path, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        abs_rel(preds(tmp_path, street(*size)), One(street(*WHOLE)), replace(METRES, input_crop="kitti_kb"))


@pytest.mark.parametrize("size", [SHOWN, (126, 434), (518, 1792), (256, 896)])
def test_small_maps_of_the_crop_are_kept(size: tuple[int, int]) -> None:
    box = slice(23, 375), slice(13, 1229)
    assert shown_part(torch.zeros(size), SHOWN, WHOLE, box, "a").shape == size


def test_square_map_of_a_wide_image_is_warned_of(tmp_path: Path) -> None:
    dataset = One(street(60, 80))
    (line,) = stretch_warnings(preds(tmp_path, street(56, 56)), dataset, METRES)
    assert line.startswith(
        "protocol p, preds: the prediction of a is 56x56, its image 80x60: it is stretched"
    )
    assert stretch_warnings(preds(tmp_path, street(42, 56)), dataset, METRES) == []
    (tmp_path / "a.npy").unlink()
    assert stretch_warnings(FolderPredictor(tmp_path, QUANTITIES["depth"]), dataset, METRES) == []
    (tmp_path / "p").mkdir()  # the folder of this protocol's predictions
    np.save(tmp_path / "p" / "a.npy", street(56, 56))
    assert len(stretch_warnings(FolderPredictor(tmp_path, QUANTITIES["depth"]), dataset, METRES)) == 1


def test_canonical_metres_become_those_of_the_set(micro: str) -> None:
    torch.manual_seed(0)
    model = depth_anything(micro, max_depth_m=20.0, input_size=28).eval()
    model.trained_on = TrainedOn(("rooms",), 200.0, 28, canonical=True)
    predictor = Predictor(model, 28)
    seen = One(street(28, 28)).read(0).image
    half = model.infer(seen) / 2  # a camera of half the focal length at an input as wide as the image
    assert abs_rel(predictor, One(half, focal=100.0, focal_width=None), METRES) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match=r"p: the model predicts metres of one camera \(focal length 200 px"):
        score_set(predictor, One(half), METRES)
    aligned = replace(METRES, align="median")
    assert at_camera_of(predictor, SimpleNamespace(), "p", needs_metres=False) is predictor
    assert abs_rel(predictor, One(half), aligned) == pytest.approx(0, abs=1e-5)
