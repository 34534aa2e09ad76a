"""Which part of an image counts, and which part a model is shown, in the protocols of NYUv2 and KITTI."""

from collections.abc import Callable

Box = tuple[slice, slice]  # rows, columns


def whole(height: int, width: int) -> Box:
    """Everything."""
    return slice(0, height), slice(0, width)


def eigen_nyu(height: int, width: int) -> Box:
    """Rows 45 to 470, columns 41 to 600 of 480x640: the crop of Eigen et al. 2014 as in BTS and ZoeDepth."""
    if (height, width) != (480, 640):
        raise ValueError(
            f"the crop eigen_nyu is of 640x480 maps, this one is {width}x{height}: use crop=none"
        )
    return slice(45, 471), slice(41, 601)


def garg_kitti(height: int, width: int) -> Box:
    """The crop of Garg et al. 2016 (arXiv 1603.04992), in the fractions that all evaluation code uses."""
    return _fractions(height, width, (0.40810811, 0.99189189), (0.03594771, 0.96405229))


def eigen_kitti(height: int, width: int) -> Box:
    """The crop of Eigen et al. 2014 (arXiv 1406.2283), fractions as in Marigold and BTS."""
    return _fractions(height, width, (0.3324324, 0.91351351), (0.0359477, 0.96405229))


def kitti_kb(height: int, width: int) -> Box:
    """352x1216 as in KITTI's depth benchmark: lowest rows, middle columns (BTS, ZoeDepth, Marigold)."""
    if height < 352 or width < 1216:
        raise ValueError(f"input_crop=kitti_kb cuts 1216x352, the image is {width}x{height}: use none")
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


def _fractions(height: int, width: int, rows: tuple[float, float], columns: tuple[float, float]) -> Box:
    """Both ends rounded down, as int() does in the code they come from."""
    top, bottom = (int(share * height) for share in rows)
    left, right = (int(share * width) for share in columns)
    return slice(top, bottom), slice(left, right)


CROPS: dict[str, Callable[[int, int], Box]] = {
    "none": whole,
    "eigen_nyu": eigen_nyu,
    "garg_kitti": garg_kitti,
    "eigen_kitti": eigen_kitti,
}
INPUT_CROPS: dict[str, Callable[[int, int], Box]] = {"none": whole, "kitti_kb": kitti_kb}
