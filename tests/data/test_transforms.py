"""Resize, crop and flip keep image and label together, for square and other crops."""

import cv2
import numpy as np
import pytest

from depthany.data.images import Photo
from depthany.data.transforms import TooLong, covering_size, crop_shape, draw_crop


def random_crop(
    image: np.ndarray, crop_hw: tuple[int, int], seed: int, maps: tuple[np.ndarray, ...] = ()
) -> tuple[np.ndarray, ...]:
    """The crops of an image and its maps."""
    crop = draw_crop(image.shape[0], image.shape[1], crop_hw, seed)
    return crop.of_image(Photo(image, *image.shape[:2])), *(crop.of_map(values) for values in maps)


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image whose red is the row and green the column of each pixel; and both as maps."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    return image, rows.astype(np.float32), columns.astype(np.float32)


@pytest.mark.parametrize(
    "height, width, crop_hw",
    [
        (126, 168, (28, 28)),
        (168, 126, (56, 56)),
        (100, 101, (70, 70)),
        (42, 56, (42, 42)),
        (126, 168, (28, 56)),
        (168, 126, (28, 42)),
        (100, 200, (42, 28)),
    ],
)
def test_image_and_label_are_cropped_alike(height: int, width: int, crop_hw: tuple[int, int]) -> None:
    image, rows, columns = coordinates(height, width)
    pixel = min(height / crop_hw[0], width / crop_hw[1])  # of the crop, in pixels of the image
    for seed in range(8):
        cropped, row, column = random_crop(image, crop_hw, seed, (rows, columns))
        assert cropped.shape == (*crop_hw, 3)
        for channel, label in ((0, row), (1, column)):
            error = cropped[2:-2, 2:-2, channel] - label[2:-2, 2:-2]  # the border extrapolates
            assert np.abs(error).max() <= pixel / 2 + 1  # the nearest pixel, and uint8's rounding
            assert abs(error.mean()) <= 0.51, "the label is shifted against the image"


def test_crops_reach_both_ends_and_half_are_flipped() -> None:
    image, _, columns = coordinates(42, 84)
    crops = [random_crop(image, (42, 42), seed, (columns,))[1] for seed in range(300)]
    flipped = [crop[0, 0] > crop[0, -1] for crop in crops]
    assert 100 < sum(flipped) < 200
    assert {int(crop.min()) for crop in crops} >= {0, 42}
    assert all(np.abs(np.diff(crop[0])).max() == 1 for crop in crops)


def test_tall_crops_of_wide_images_move_sideways() -> None:
    image, rows, columns = coordinates(28, 56)
    crops = [random_crop(image, (28, 14), seed, (rows, columns))[1:] for seed in range(300)]
    assert all(row.min() == 0 and row.max() == 27 for row, _ in crops)
    assert {int(column.min()) for _, column in crops} == set(range(56 - 14 + 1))


def test_seed_decides_the_crop() -> None:
    image = coordinates(60, 90)[0]
    np.testing.assert_array_equal(*(random_crop(image, (28, 28), seed=4)[0] for _ in range(2)))
    assert len({random_crop(image, (28, 28), seed)[0].tobytes() for seed in range(20)}) > 10


@pytest.mark.parametrize(
    "height, width, crop_hw, expected",
    [
        (480, 640, (126, 126), (126, 168)),
        (640, 480, (126, 126), (168, 126)),
        (333, 500, (518, 518), (518, 778)),
        (3, 4, (14, 14), (14, 19)),
        (480, 640, (240, 480), (360, 480)),  # the width decides
        (480, 640, (240, 280), (240, 320)),  # the height decides
        (375, 1242, (364, 1204), (364, 1206)),  # 1242 * 364 / 375 = 1205.6
    ],
)
def test_resized_image_just_covers_the_crop(
    height: int, width: int, crop_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert covering_size(height, width, crop_hw) == expected


def test_strip_of_too_many_pixels_is_refused() -> None:
    assert covering_size(100, 2900, (518, 518)) == (518, 15022)
    with pytest.raises(TooLong, match=r"\(100, 3100\) and would be \(518, 16058\).*more than 7\.8 million"):
        covering_size(100, 3100, (518, 518))
    assert covering_size(100, 1600, (2072, 2072)) == (2072, 33152)  # of a large crop up to 16 to 1


@pytest.mark.parametrize("height, width", [(5, 7), (31, 20), (1, 9), (300, 1000)])
@pytest.mark.parametrize("crop_hw", [(28, 28), (14, 42), (42, 14)])
def test_label_crops_have_no_new_values(height: int, width: int, crop_hw: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    disparity = draw.permutation(height * width).reshape(height, width).astype(np.float32)
    mask = draw.random((height, width)) < 0.5
    for seed in range(3):
        cropped, label, valid = random_crop(image, crop_hw, seed, (disparity, mask))
        assert cropped.shape[:2] == label.shape == valid.shape == crop_hw
        assert valid.dtype == np.bool_
        assert set(label.ravel()) <= set(disparity.ravel())
        np.testing.assert_array_equal(np.isin(label, disparity[mask]), valid)


SHAPES = [
    (100, 150),
    (150, 100),
    (101, 153),
    (28, 28),
    (28, 29),
    (29, 28),
    (5, 7),
    (1, 9),
    (30, 200),
    (64, 64),
]


@pytest.mark.parametrize("height, width", SHAPES)
@pytest.mark.parametrize("crop_hw", [(28, 28), (70, 70), (28, 70), (70, 42)])
def test_crop_equals_resize_then_slice_then_flip(height: int, width: int, crop_hw: tuple[int, int]) -> None:
    draw = np.random.default_rng(height * width)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    disparity, mask = draw.random((height, width), dtype=np.float32), draw.random((height, width)) < 0.5
    for seed in range(6):
        crop = draw_crop(height, width, crop_hw, seed)

        def whole(values: np.ndarray, interpolation: int, crop=crop) -> np.ndarray:
            values = cv2.resize(values, crop.resized_hw[::-1], interpolation=interpolation)
            values = values[crop.top : crop.top + crop_hw[0], crop.left : crop.left + crop_hw[1]]
            return values[:, ::-1] if crop.flip else values

        photo, nearest = Photo(image, height, width), cv2.INTER_NEAREST_EXACT
        np.testing.assert_array_equal(crop.of_image(photo), whole(image, cv2.INTER_CUBIC))
        np.testing.assert_array_equal(crop.of_map(disparity), whole(disparity, nearest))
        np.testing.assert_array_equal(crop.of_map(mask), whole(mask.astype(np.uint8), nearest).astype(bool))
        np.testing.assert_array_equal(crop.of_smooth_map(disparity), whole(disparity, cv2.INTER_LINEAR))


def test_draws_of_a_seed_have_not_changed() -> None:
    # NumPy's default_rng(seed): integers(1), integers(260), integers(2); another order changes every run
    crops = [draw_crop(1000, 1500, (518, 518), seed) for seed in range(3)]
    expected = [(0, 221, True), (0, 123, True), (0, 217, False)]
    assert [(crop.top, crop.left, crop.flip) for crop in crops] == expected


def test_crop_size_is_one_number_or_two() -> None:
    assert crop_shape(28) == (28, 28)
    assert crop_shape([28, 42]) == (28, 42)


@pytest.mark.parametrize("wrong", [0, [28], [28, 0], [1, 2, 3], [28, 4.5], "28", ["a", "b"]])
def test_other_crop_sizes_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^crop_size=.*: expected one number of pixels, such as 518, or \["):
        crop_shape(wrong)
