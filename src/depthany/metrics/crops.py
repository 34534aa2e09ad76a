"""Crops of the protocols of NYUv2 and KITTI: which pixels count, and what is cut before the model."""

from collections.abc import Callable

Box = tuple[slice, slice]  # rows, columns


def whole(height: int, width: int) -> Box:
    """Returns the whole image."""
    return slice(0, height), slice(0, width)


def eigen_nyu(height: int, width: int) -> Box:
    """Returns rows 45 to 470 and columns 41 to 600, the crop of Eigen et al. 2014 as in BTS and ZoeDepth.

    Raises:
        ValueError: the map is not 480x640.
    """
    if (height, width) != (480, 640):
        raise ValueError(
            f"crop=eigen_nyu is defined for maps of 640x480, this one is {width}x{height}: use crop=none"
        )
    return slice(45, 471), slice(41, 601)


def eigen_nyu_any_size(height: int, width: int) -> Box:
    """Returns rows 45 to 470 and columns 41 to 600 of a map of any size, as ZoeDepth's code cuts them.

    A larger map keeps its upper left part, a smaller one what it has: the code's check of the size is
    commented out (zoedepth/utils/misc.py, compute_metrics).

    Raises:
        ValueError: nothing of the map is inside.
    """
    if height <= 45 or width <= 41:
        raise ValueError(
            f"crop=eigen_nyu_any_size begins at row 45 and column 41, the map is {width}x{height}: use "
            "crop=none"
        )
    return slice(45, min(471, height)), slice(41, min(601, width))


def garg_kitti(height: int, width: int) -> Box:
    """Returns the crop of Garg et al. 2016 (arXiv 1603.04992), in the fractions of all evaluation code."""
    return _fractions(height, width, (0.40810811, 0.99189189), (0.03594771, 0.96405229))


def eigen_kitti(height: int, width: int) -> Box:
    """Returns the crop of Eigen et al. 2014 (arXiv 1406.2283), in the fractions of Marigold and BTS."""
    return _fractions(height, width, (0.3324324, 0.91351351), (0.0359477, 0.96405229))


def kitti_kb(height: int, width: int) -> Box:
    """Returns the lowest 352 rows and middle 1216 columns, as in KITTI's benchmark (BTS, ZoeDepth, Marigold).

    Raises:
        ValueError: the image is smaller.
    """
    if height < 352 or width < 1216:
        raise ValueError(
            f"input_crop=kitti_kb cuts 1216x352, the image is {width}x{height}: use input_crop=none"
        )
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


def _fractions(height: int, width: int, rows: tuple[float, float], columns: tuple[float, float]) -> Box:
    """Returns a box from fractions of the sides, rounded down as in the published code."""
    top, bottom = (int(share * height) for share in rows)
    left, right = (int(share * width) for share in columns)
    return slice(top, bottom), slice(left, right)


CROPS: dict[str, Callable[[int, int], Box]] = {
    "none": whole,
    "eigen_nyu": eigen_nyu,
    "eigen_nyu_any_size": eigen_nyu_any_size,
    "garg_kitti": garg_kitti,
    "eigen_kitti": eigen_kitti,
}
INPUT_CROPS: dict[str, Callable[[int, int], Box]] = {"none": whole, "kitti_kb": kitti_kb}
