"""Crops of images with classes: padding, scale, one class that fills a crop, and image beside mask."""

import numpy as np
import pytest

from depthany.data.class_crops import PADDING, ClassCrops, share_of_largest
from depthany.data.images import Photo
from depthany.data.targets import Labels, classes


def labels_of(numbers: np.ndarray) -> Labels:
    return Labels(numbers.astype(np.float32), "class", np.ones(numbers.shape, bool))


def halves(height: int = 40, width: int = 60) -> np.ndarray:
    """Class 0 on the left, 1 on the right."""
    return (np.arange(width) >= width // 2)[None] * np.ones((height, 1), int)


def test_padding_is_ignored_and_has_its_colour() -> None:
    crops = ClassCrops(scale=(0.5, 0.5), colour_p=0)
    labels = labels_of(halves())
    crop = crops.draw(40, 60, (40, 40), 0, labels)
    target, mask = classes(labels, crop)
    image = crop.of_image(Photo(np.zeros((40, 60, 3), np.uint8), 40, 60))
    assert image.shape == (40, 40, 3)
    assert mask.sum() == 20 * 30, "half of 40 x 60"
    assert (target[~mask] == 0).all()
    assert (image[~mask] == PADDING).all()
    assert (image[mask] == 0).all()


def test_classes_are_never_mixed_by_resizing() -> None:
    numbers = np.random.default_rng(0).choice([0, 7, 13], (40, 60))
    labels = labels_of(numbers)
    for seed in range(6):
        target, mask = classes(labels, ClassCrops().draw(40, 60, (28, 28), seed, labels))
        assert set(np.unique(target[mask])) <= {0, 7, 13}


def test_image_and_mask_are_cropped_alike() -> None:
    numbers = halves()
    image = np.repeat((numbers * 255).astype(np.uint8)[:, :, None], 3, 2)
    labels = labels_of(numbers)
    for seed in range(8):
        crop = ClassCrops(colour_p=0).draw(40, 60, (28, 28), seed, labels)
        target, mask = classes(labels, crop)
        seen = crop.of_image(Photo(image, 40, 60))[:, :, 0] > 127
        assert (seen == target)[mask].mean() > 0.95


def test_crop_of_one_class_is_drawn_again() -> None:
    labels = labels_of(halves(40, 240))
    kept = ClassCrops(scale=(1, 1), most_of_one_class=0.75)
    first = ClassCrops(scale=(1, 1), most_of_one_class=1)
    shares = {
        name: np.mean([share_of_largest(labels, c.draw(40, 240, (40, 40), s, labels)) for s in range(20)])
        for name, c in (("kept", kept), ("first", first))
    }
    assert shares["kept"] < shares["first"] - 0.1


def test_seed_decides_the_crop() -> None:
    labels = labels_of(halves())
    first, again, other = (ClassCrops().draw(40, 60, (28, 28), seed, labels) for seed in (3, 3, 4))
    assert first == again != other


def test_bad_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the smaller number first"):
        ClassCrops(scale=(2.0, 0.5))
    with pytest.raises(ValueError, match="unknown base 'mask'"):
        ClassCrops(base="mask")
