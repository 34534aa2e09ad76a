"""What every benchmark reader does with a wrong folder, half a set, and a bad list."""

from collections.abc import Callable
from pathlib import Path

import pytest

import benchmark_trees as trees
from depthany.data.benchmarks import (
    DdadProjected,
    Diode,
    Eth3d,
    Ibims,
    OrdinalPairs,
    ScannetMarigold,
    Sintel,
    SunRgbd,
)
from depthany.data.benchmarks.benchmark import require_files

# Writer of a tiny tree, reader, and the files below it that no image may lack
READERS = {
    "diode": (trees.write_diode, Diode, "val/**/*.npy"),
    "eth3d": (trees.write_eth3d, Eth3d, "*/ground_truth_depth/**/*.JPG"),
    "sintel": (trees.write_sintel, Sintel, "training/depth/*/*.dpt"),
    "ddad": (trees.write_ddad, DdadProjected, "*/*_depth.*"),
    "ibims": (trees.write_ibims, Ibims, "*/depth/*.png */mask_*/*.png"),
    "sunrgbd": (trees.write_sun_rgbd, SunRgbd, "depth/*.png"),
    "scannet": (trees.write_scannet, ScannetMarigold, "*/depth/*.png"),
    "da2k": (trees.write_da2k, OrdinalPairs, "indoor/*.jpg underwater/*.png"),
}
each_reader = pytest.mark.parametrize("write, reader, needed", READERS.values(), ids=READERS)


@each_reader
def test_wrong_folder_names_the_expected_layout(
    tmp_path: Path, write: Callable, reader: Callable, needed: str
) -> None:
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="; expected ") as failure:
            reader(str(root))
        assert str(root) in str(failure.value)
        assert "\n" not in str(failure.value)


@each_reader
def test_every_missing_file_is_named(tmp_path: Path, write: Callable, reader: Callable, needed: str) -> None:
    write(tmp_path)
    paths = sorted({path for pattern in needed.split() for path in tmp_path.glob(pattern)} - {tmp_path})
    assert paths
    for path in paths:
        stored = path.read_bytes()
        path.unlink()
        named = f"({path.stem}|{path.stem.replace('depth', 'rgb')})"  # it, or the image that it leaves alone
        with pytest.raises(
            ValueError, match=rf" 1 (of .* missing|file.* without partner).*{named}.*; expected"
        ):
            reader(str(tmp_path))
        path.write_bytes(stored)
    assert len(reader(str(tmp_path))) >= 1


def test_missing_files_are_counted_and_ten_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as failure:
        require_files(tmp_path, [tmp_path / f"{i:02d}.png" for i in range(12)])
    assert "12 of 12 files are missing" in str(failure.value)
    assert "00.png" in str(failure.value)
    assert "09.png" in str(failure.value)
    assert "10.png" not in str(failure.value)


def test_image_listed_twice_is_refused(tmp_path: Path) -> None:
    trees.write_scannet(tmp_path)
    twice = tmp_path / "twice.txt"
    twice.write_text((tmp_path / "list.txt").read_text() * 2)
    with pytest.raises(ValueError, match="scene0378_01/color/000300 comes twice"):
        ScannetMarigold(str(tmp_path), str(twice))
