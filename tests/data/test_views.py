"""Views of metric fine-tuning: image and labels stay together, and what a turn uncovers has no label."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.images import Photo
from depthany.data.labeled_options import LabeledOptions, focal_seen_px
from depthany.data.sampler import Draw
from depthany.data.transforms import Crop
from depthany.data.views import Stretch, View, Views, recoloured


def ramp(height: int, width: int) -> np.ndarray:
    """[h w] 0 to 255, growing to the right and, more slowly, downwards."""
    y, x = np.mgrid[:height, :width]
    return (200 * x / (width - 1) + 55 * y / (height - 1)).astype(np.float32)


def photo(values: np.ndarray) -> Photo:
    pixels = np.repeat(values[:, :, None], 3, 2).round().astype(np.uint8)
    return Photo(pixels, *pixels.shape[:2])


def draw(views: Views, seed: int = 3, hw: tuple[int, int] = (48, 64)) -> View:
    return views.draw("mine", *hw, (28, 28), seed)


@pytest.mark.parametrize("view", ["crop", "whole"])
def test_turned_image_and_labels_stay_aligned(view: str) -> None:
    values = ramp(48, 64)
    taken = draw(Views(view=view, rotation=10.0))
    assert taken.angle != 0
    image = taken.of_image(photo(values))[:, :, 0].astype(float)
    labels = taken.of_map(values)
    mask = taken.of_map(np.ones((48, 64), bool))
    assert mask.dtype == np.bool_
    if view == "whole":
        assert labels.shape == (48, 64)
        rows, columns = (np.linspace(0, end, 28).round().astype(int) for end in (47, 63))
        labels, mask = labels[rows][:, columns], mask[rows][:, columns]
        assert not mask.all(), "corners have no label"
    inner = np.zeros_like(mask)
    inner[2:-2, 2:-2] = mask[2:-2, 2:-2] & mask[:-4, 2:-2] & mask[4:, 2:-2] & mask[2:-2, :-4] & mask[2:-2, 4:]
    assert inner.mean() > 0.4
    assert np.abs(image - labels)[inner].max() < 9, "a pixel to the right adds 3 to 7"


def test_stretch_has_aligned_corners() -> None:
    values = ramp(48, 64)
    stretched = Stretch((28, 28), flip=False).of_image(photo(values))[:, :, 0].astype(float)
    tensor = torch.from_numpy(photo(values).pixels[:, :, 0].astype(np.float32))[None, None]
    wanted = torch.nn.functional.interpolate(tensor, (28, 28), mode="bilinear", align_corners=True)[0, 0]
    assert np.abs(stretched - wanted.numpy()).max() <= 3, "OpenCV has steps of 1/32 pixel"
    mirrored = Stretch((28, 28), flip=True)
    assert (mirrored.of_image(photo(values))[:, ::-1, 0] == stretched).all()
    assert (mirrored.of_map(values)[:, ::-1] == values).all()


def test_bottom_centre_is_cut_as_kittis() -> None:
    views = Views(view="whole", bottom_centre={"mine": [352, 1216]})
    taken = views.draw("mine", 375, 1242, (28, 28), 0)
    values = np.arange(375 * 1242, dtype=np.float32).reshape(375, 1242)
    cut = taken.of_map(values)
    assert cut.shape == (352, 1216)
    assert min(cut[0, 0], cut[0, -1]) == values[23, 13]
    assert views.draw("other", 375, 1242, (28, 28), 0).cut_hw == (375, 1242)
    with pytest.raises(ValueError, match=r"mine is 64x48, too small for stage.views.bottom_centre.mine="):
        views.draw("mine", 48, 64, (28, 28), 0)


def test_colours_follow_their_formula() -> None:
    image = np.array([[[0, 51, 255], [128, 200, 100]]], np.uint8)
    found = recoloured(image, [1.1, 0.9, 1.0, 0.8, 1.2])
    wanted = np.clip((image / 255.0) ** 1.1 * 0.9 * [1.0, 0.8, 1.2], 0, 1) * 255
    assert np.abs(found - wanted).max() <= 0.5
    shares = [draw(Views(colour_p=0.5), seed).colours is not None for seed in range(200)]
    assert 0.35 < np.mean(shares) < 0.65


def test_views_of_a_seed_are_the_same() -> None:
    views = Views(view="whole", rotation=1.0, colour_p=0.5)
    assert draw(views, 5) == draw(views, 5)
    angles = [draw(views, seed).angle for seed in range(50)]
    assert -1 <= min(angles) < -0.5 < 0.5 < max(angles) <= 1
    assert 10 < sum(draw(views, seed).taken.flip for seed in range(50)) < 40
    assert draw(Views(rotation=1.0), 5).taken == draw(Views(), 5).taken, "the crop is that of relative depth"


def folder(root: Path, **settings) -> FolderDepth:
    """Two images of different sizes with sparse depth: 1, 2 ... mm * 1000 in a few pixels."""
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True)
    for i, (height, width) in enumerate([(40, 60), (50, 44)]):
        depth_mm = np.zeros((height, width), np.uint16)
        depth_mm[5 + i, 7], depth_mm[20, 30], depth_mm[33, 11] = 1000, 5000, 9000
        Image.fromarray(depth_mm).save(root / f"depth/{i}.png")
        Image.new("RGB", (width, height)).save(root / f"images/{i}.png")
    return FolderDepth(str(root), depth_scale=1000, **settings)


BOTH = [Draw(True, 0, seed=1), Draw(True, 1, seed=2)]


def test_whole_view_keeps_every_sparse_point(tmp_path: Path) -> None:
    options = LabeledOptions(Views(view="whole"), ["mine"])
    batch = TrainingSet([folder(tmp_path)], [], 28, target="depth_m", options=options)[BOTH]
    assert batch.label_hw == [(40, 60), (50, 44)]
    assert tuple(batch.target.shape) == (2, 50, 60)
    assert batch.mask.sum((1, 2)).tolist() == [3, 3]
    assert sorted(batch.target[batch.mask].tolist()) == [1, 1, 5, 5, 9, 9]
    assert not batch.mask[0, 40:].any() and not batch.mask[1, :, 44:].any()
    assert not batch.target[~batch.mask].any()


def test_range_of_depth_is_strict(tmp_path: Path) -> None:
    sets = [folder(tmp_path, max_depth=9)]
    known = []
    for near_m, far_m in ((0.0, math.inf), (1.0, math.inf), (0.0, 5.0), (0.0, 5.1)):
        options = LabeledOptions(Views(view="whole"), ["mine"], near_m=near_m, far_m=far_m)
        batch = TrainingSet(sets, [], 28, target="depth_m", options=options)[BOTH[:1]]
        known.append(sorted(batch.target[batch.mask].tolist()))
    assert known == [[1, 5], [5], [1], [1, 5]], "9 is max_depth of the set, which is out, too"


def test_canonical_focal_scales_depth(tmp_path: Path) -> None:
    images = folder(tmp_path, focal=30, focal_width=120)  # 15 px at a width of 60
    options = LabeledOptions(Views(view="whole"), ["mine"], focal_px=14.0)
    batch = TrainingSet([images], [], 28, target="depth_m", options=options)[BOTH[:1]]
    assert sorted(batch.target[batch.mask].tolist()) == pytest.approx([2, 10, 18])  # 15 * 28 / 60 = 7
    ended = replace(options, far_m=10.0, near_m=5.0)  # of the scaled depth
    batch = TrainingSet([images], [], 28, target="depth_m", options=ended)[BOTH[:1]]
    assert not batch.mask.any()
    batch = TrainingSet([images], [], 28, target="depth_m", options=replace(ended, far_m=11.0))[BOTH[:1]]
    assert batch.target[batch.mask].tolist() == pytest.approx([10])
    crop = Crop((28, 42), 0, 0, 28, 28, False)
    assert focal_seen_px(images, 60, crop) == pytest.approx(15 * 42 / 60)
    with pytest.raises(ValueError, match="focal of this set is null: set it"):
        TrainingSet([folder(tmp_path / "b")], [], 28, target="depth_m", options=options)


def test_metres_of_unknown_scale_are_refused(tmp_path: Path) -> None:
    images = folder(tmp_path)
    images.scale_is_known = False
    with pytest.raises(ValueError, match=r"its reconstructions is unknown.*: leave this data set out"):
        TrainingSet([images], [], 28, target="depth_m")
    with pytest.raises(ValueError, match=r"disparity of unknown scale cannot become depth_m.*: leave this"):
        TrainingSet([FolderDepth(str(tmp_path), quantity="disparity")], [], 28, target="depth_m")
