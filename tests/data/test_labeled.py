"""Pairs of image and depth in folders: units, what is valid, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthany.data.batch import BadFile, Batch
from depthany.data.counts import set_notes
from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.images import decode_image
from depthany.data.sampler import Draw
from depthany.data.unlabeled import FolderImages


def write(root: Path, stem: str, stored: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """A gray image and `stored` as depth, .npy where it is float."""
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    height, width = stored.shape
    Image.new("RGB", size or (width, height), (90, 90, 90)).save(root / "images" / f"{stem}.png")
    if stored.dtype == np.uint16:
        Image.fromarray(stored).save(root / "depth" / f"{stem}.png")
    else:
        np.save(root / "depth" / f"{stem}.npy", stored)


def test_scale_range_and_sky_by_hand(tmp_path: Path) -> None:
    # KITTI's unit, 1/256 m: none, 2 m, 40 m, 80 m, 80.1 m, sky
    write(tmp_path, "a", np.array([[0, 512, 10240], [20480, 20506, 65535]], np.uint16))
    sample = FolderDepth(str(tmp_path), depth_scale=256, sky_value=65535, max_depth=80).read(0)
    assert sample.labels.mask.tolist() == [[False, True, True], [True, False, True]]
    np.testing.assert_allclose(sample.labels.disparity, [[0, 0.5, 0.025], [0.0125, 0, 0]], rtol=1e-6)


def test_sky_value_is_too_far_if_not_set(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[1000, 65535]], np.uint16))
    assert FolderDepth(str(tmp_path), depth_scale=1000, max_depth=60).labels(0).mask.tolist() == [
        [True, False]
    ]


def test_nan_infinity_zero_and_negative_depth_are_invalid(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[np.nan, np.inf, -np.inf], [0, -3, 4]], np.float32))
    sample = FolderDepth(str(tmp_path), depth_scale=1).read(0)
    assert sample.labels.mask.tolist() == [[False] * 3, [False, False, True]]
    assert sample.labels.disparity.tolist() == [[0, 0, 0], [0, 0, 0.25]]


def test_differing_sizes_name_both_files(tmp_path: Path) -> None:
    write(tmp_path, "a", np.ones((4, 6), np.uint16), size=(6, 5))
    with pytest.raises(ValueError) as failure:
        FolderDepth(str(tmp_path), depth_scale=1000).read(0)
    text = str(failure.value)
    assert str(tmp_path / "images/a.png") in text
    assert str(tmp_path / "depth/a.png") in text
    assert "6x4" in text
    assert "6x5" in text


def turn(root: Path, stem: str, orientation: int) -> np.ndarray:
    """Saves an image again with random colours, lossless, and an EXIF orientation; returns what is stored."""
    path, exif = root / f"images/{stem}.png", Image.Exif()
    exif[0x0112] = orientation
    size = Image.open(path).size
    colours = np.random.default_rng(orientation).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(colours).save(path.with_suffix(".webp"), lossless=True, exif=exif)
    path.unlink()
    return colours


@pytest.mark.parametrize("orientation, quarter_turns", [(3, 2), (6, 3)])
def test_labels_belong_to_the_image_as_displayed(
    tmp_path: Path, orientation: int, quarter_turns: int
) -> None:
    shape = (4, 6) if orientation == 3 else (6, 4)
    write(tmp_path, "a", np.full(shape, 2000, np.uint16), size=(6, 4))
    stored = turn(tmp_path, "a", orientation)
    sample = FolderDepth(str(tmp_path), depth_scale=1000).read(0)
    np.testing.assert_array_equal(sample.image, np.rot90(stored, quarter_turns))


def test_setting_leaves_images_as_they_are_stored(tmp_path: Path) -> None:
    write(tmp_path, "a", np.arange(2000, 2024, dtype=np.uint16).reshape(4, 6))
    stored = turn(tmp_path, "a", 6)
    hint = r"6x4, its image \S+ is 4x6: .*; the image is stored as 6x4 and turned .*exif_orientation=ignore"
    for read in (lambda data: data.read(0), lambda data: raise_if_bad(data)):
        with pytest.raises(ValueError, match=hint):
            read(FolderDepth(str(tmp_path), depth_scale=1000))
    dataset = FolderDepth(str(tmp_path), depth_scale=1000, exif_orientation="ignore")
    np.testing.assert_array_equal(dataset.read(0).image, stored)
    assert raise_if_bad(dataset).labeled_image.shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="unknown exif_orientation 'no'; choose from apply, ignore"):
        FolderDepth(str(tmp_path), exif_orientation="no")


def raise_if_bad(dataset: FolderDepth) -> Batch:
    """The batch of image 0."""
    batch = TrainingSet([dataset], [], 4)[[Draw(True, 0, 0)]]
    if isinstance(batch, BadFile):
        raise ValueError(batch.message)
    return batch


def test_turned_images_of_equal_size_are_a_warning(tmp_path: Path) -> None:
    for stem, orientation in (("half", 3), ("quarter", 6), ("upright", 1)):
        write(tmp_path, stem, np.full((4, 6)[:: -1 if orientation == 6 else 1], 2000, np.uint16), size=(6, 4))
        turn(tmp_path, stem, orientation)
    (line,) = set_notes({"mine": FolderDepth(str(tmp_path))})
    assert line.startswith("warning: mine: 1 of 3 images looked at are turned by EXIF, such as ")
    assert "half.webp: turned by its EXIF orientation 3" in line
    for choice in ("apply", "ignore"):
        assert set_notes({"mine": FolderDepth(str(tmp_path), exif_orientation=choice)}) == []


def test_map_without_valid_pixel_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a", np.full((4, 6), 5, np.uint16))
    with pytest.raises(ValueError, match=r"depth/a\.png: no valid pixel .*depth_scale=1\)"):
        FolderDepth(str(tmp_path), depth_scale=1, max_depth=4).read(0)


def test_files_without_partner_are_counted_and_named(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        write(tmp_path, stem, np.ones((4, 6), np.uint16))
    (tmp_path / "images/a.png").unlink()
    (tmp_path / "depth/c.png").unlink()
    with pytest.raises(ValueError, match=r"2 file\(s\) without partner .*: depth/a, images/c"):
        FolderDepth(str(tmp_path), depth_scale=1000)


def test_pairs_match_by_stem_across_suffixes(tmp_path: Path) -> None:
    write(tmp_path, "x", np.full((4, 6), 2, np.float32))
    write(tmp_path / "deep", "1", np.full((4, 6), 4, np.float32))
    (tmp_path / "images/s").mkdir()
    (tmp_path / "depth/s").mkdir()
    (tmp_path / "deep/images/1.png").rename(tmp_path / "images/s/1.png")
    (tmp_path / "deep/depth/1.npy").rename(tmp_path / "depth/s/1.npy")
    pairs = FolderDepth(str(tmp_path), depth_scale=1)
    assert [float(pairs.labels(i).disparity[0, 0]) for i in range(len(pairs))] == [0.25, 0.5]


@pytest.mark.parametrize("wrong", [{"min_depth": 0}, {"min_depth": 5, "max_depth": 4}, {"depth_scale": 0}])
def test_impossible_ranges_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FolderDepth(str(tmp_path), **wrong)


def test_plain_images_are_found_in_fixed_order(tmp_path: Path) -> None:
    for i, name in enumerate(("b.png", "a/z.png", "c/d/e.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (i, 0, 0)).save(tmp_path / name)
    images = FolderImages(str(tmp_path))
    assert [
        int(decode_image(images.stored_image(i), images.name(i))[0, 0, 0]) for i in range(len(images))
    ] == [1, 0, 2]
