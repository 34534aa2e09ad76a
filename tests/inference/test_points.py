"""Points in space: pinhole geometry by hand."""

import numpy as np
import pytest

from depthany.inference.points import depth_between, focal_px_of, points_m


def test_ends_of_a_disparity_get_the_given_depths() -> None:
    disparity = np.float32([[10, 20, 30]])
    # 1 / depth goes 1/10, 0.3, 1/2 in equal steps
    assert depth_between(disparity, 2.0, 10.0) == pytest.approx(np.array([[10, 1 / 0.3, 2]]))


def test_depth_ignores_scale_and_shift_of_disparity() -> None:
    disparity = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    other = depth_between(7 * disparity + 3, 1.0, 9.0)
    assert other == pytest.approx(depth_between(disparity, 1.0, 9.0), rel=1e-4)


def test_a_flat_disparity_is_far_and_not_infinite() -> None:
    assert depth_between(np.zeros((2, 2), np.float32), 1.0, 9.0) == pytest.approx(9)


def test_focal_length_at_90_degrees_is_half_width() -> None:
    assert focal_px_of(640, 90) == pytest.approx(320)


def test_points_by_hand() -> None:
    # 4 x 2 pixels, focal length 2: the middle of the first pixel is 1.5 left of and 0.5 above the axis
    points = points_m(np.full((2, 4), 8, np.float32), focal_px=2.0)
    assert points.shape == (2, 4, 3)
    assert points[0, 0].tolist() == [-6, -2, 8]
    assert points[1, 3].tolist() == [6, 2, 8]


def test_edges_of_a_wall_span_the_fov() -> None:
    points = points_m(np.full((1, 1000), 3, np.float32), focal_px_of(1000, 60))
    assert points[0, -1, 0] - points[0, 0, 0] == pytest.approx(2 * 3 * np.tan(np.pi / 6), rel=2e-3)
