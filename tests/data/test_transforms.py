"""Resize, crop and flip keep image and label together."""

import cv2
import numpy as np
import pytest

from depthany.data.images import Photo
from depthany.data.transforms import draw_view, shorter_side_to


def random_view(
    image: np.ndarray, size: int, seed: int, maps: tuple[np.ndarray, ...] = ()
) -> tuple[np.ndarray, ...]:
    """The views of an image and its maps."""
    view = draw_view(image.shape[0], image.shape[1], size, seed)
    return view.of_image(Photo(image, *image.shape[:2])), *(view.of_map(values) for values in maps)


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image whose red is the row and green the column of each pixel; and both as maps."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    return image, rows.astype(np.float32), columns.astype(np.float32)


@pytest.mark.parametrize(
    "height, width, size", [(126, 168, 28), (168, 126, 56), (100, 101, 70), (42, 56, 42)]
)
def test_crop_and_flip_hit_image_and_label_alike(height: int, width: int, size: int) -> None:
    image, rows, columns = coordinates(height, width)
    pixel = min(height, width) / size  # of the view, in pixels of the source
    for seed in range(8):
        view, row, column = random_view(image, size, seed, (rows, columns))
        assert view.shape == (size, size, 3)
        for channel, label in ((0, row), (1, column)):
            error = view[2:-2, 2:-2, channel] - label[2:-2, 2:-2]  # the border extrapolates
            assert np.abs(error).max() <= pixel / 2 + 1  # the nearest pixel, and uint8's rounding
            assert abs(error.mean()) <= 0.51, "the label is shifted against the image"


def test_some_views_are_flipped_and_some_are_not_and_crops_reach_both_ends() -> None:
    image, _, columns = coordinates(42, 84)
    views = [random_view(image, 42, seed, (columns,))[1] for seed in range(300)]
    flipped = [view[0, 0] > view[0, -1] for view in views]
    assert 100 < sum(flipped) < 200
    assert {int(view.min()) for view in views} >= {0, 42}
    assert all(np.abs(np.diff(view[0])).max() == 1 for view in views)


def test_a_view_follows_from_its_seed() -> None:
    image = coordinates(60, 90)[0]
    np.testing.assert_array_equal(*(random_view(image, 28, seed=4)[0] for _ in range(2)))
    assert len({random_view(image, 28, seed)[0].tobytes() for seed in range(20)}) > 10


@pytest.mark.parametrize(
    "height, width, size, expected",
    [
        (480, 640, 126, (126, 168)),
        (640, 480, 126, (168, 126)),
        (333, 500, 518, (518, 778)),
        (3, 4, 14, (14, 19)),
    ],
)
def test_the_shorter_side_is_exactly_the_size(
    height: int, width: int, size: int, expected: tuple[int, int]
) -> None:
    assert shorter_side_to(height, width, size) == expected


@pytest.mark.parametrize("height, width", [(5, 7), (31, 20), (1, 9), (300, 1000)])
def test_labels_get_no_new_values_and_any_size_is_brought_to_the_crop(height: int, width: int) -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    disparity = draw.permutation(height * width).reshape(height, width).astype(np.float32)
    mask = draw.random((height, width)) < 0.5
    for seed in range(3):
        view, label, valid = random_view(image, 28, seed, (disparity, mask))
        assert view.shape[:2] == label.shape == valid.shape == (28, 28)
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
@pytest.mark.parametrize("size", [28, 70])
def test_a_view_is_bit_for_bit_what_resize_then_crop_then_flip_gives(
    height: int, width: int, size: int
) -> None:
    draw = np.random.default_rng(height * width)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    disparity, mask = draw.random((height, width), dtype=np.float32), draw.random((height, width)) < 0.5
    for seed in range(6):
        view = draw_view(height, width, size, seed)

        def whole(values: np.ndarray, interpolation: int, view=view) -> np.ndarray:
            values = cv2.resize(values, (view.width, view.height), interpolation=interpolation)
            values = values[view.top : view.top + size, view.left : view.left + size]
            return values[:, ::-1] if view.flip else values

        np.testing.assert_array_equal(
            view.of_image(Photo(image, height, width)), whole(image, cv2.INTER_CUBIC)
        )
        nearest = cv2.INTER_NEAREST_EXACT
        np.testing.assert_array_equal(view.of_map(disparity), whole(disparity, nearest))
        np.testing.assert_array_equal(view.of_map(mask), whole(mask.astype(np.uint8), nearest).astype(bool))


def test_the_draws_of_a_seed_are_what_they_have_always_been() -> None:
    # NumPy's default_rng(seed): integers(1), integers(260), integers(2); another order changes every run
    views = [draw_view(1000, 1500, 518, seed) for seed in range(3)]
    expected = [(0, 221, True), (0, 123, True), (0, 217, False)]
    assert [(view.top, view.left, view.flip) for view in views] == expected
