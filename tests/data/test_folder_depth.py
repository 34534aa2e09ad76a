"""A user's own pairs: what their numbers mean, where they lie, and their size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.sampler import Draw
from depthany.data.samples import UnknownUnit

MM = np.array([[500, 1000], [2000, 4000]], np.uint16)
M = MM / np.float32(1000)


def write(root: Path, stored: np.ndarray, stem: str = "a", size: tuple[int, int] | None = None) -> str:
    """A gray image, and `stored` as PNG, or as NPY where it is float."""
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size or (stored.shape[1], stored.shape[0])).save(root / f"images/{stem}.png")
    if stored.dtype.kind == "f":
        np.save(root / f"depth/{stem}.npy", stored)
    else:
        Image.fromarray(stored).save(root / f"depth/{stem}.png")
    return str(root)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_depth_is_in_metres(tmp_path: Path, dtype: type) -> None:
    root = write(tmp_path, M.astype(dtype))
    assert FolderDepth(root).labels(0).values.tolist() == M.tolist()
    assert FolderDepth(root, depth_scale=2).labels(0).values.tolist() == (M / 2).tolist()


def test_float_tiff_is_in_metres(tmp_path: Path) -> None:
    root = write(tmp_path, M)
    Image.fromarray(M).save(tmp_path / "depth/a.tif")
    (tmp_path / "depth/a.npy").unlink()
    assert FolderDepth(root).labels(0).values.tolist() == M.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_depth_must_say_its_unit(tmp_path: Path, dtype: type) -> None:
    root = write(tmp_path, (MM // 20).astype(dtype))
    with pytest.raises(UnknownUnit) as failure:
        FolderDepth(root).labels(0)
    text = str(failure.value)
    assert text.startswith(f"{root}/depth/a.png: depth is stored as {np.dtype(dtype)}")
    assert "1000 (millimetres), 100 (centimetres), 256 (KITTI), 5000 (TUM), 1 (metres)" in text
    assert "quantity=disparity" in text and "\n" not in text
    assert FolderDepth(root, depth_scale=50).labels(0).values.tolist() == M.tolist()


def test_unknown_unit_is_never_skipped(tmp_path: Path) -> None:
    dataset = TrainingSet([FolderDepth(write(tmp_path, MM))], [], 2, unreadable="skip")
    assert "set depth_scale=1000" in dataset[[Draw(True, 0, 0)]].message


def test_relative_disparity_grows_towards_the_camera(tmp_path: Path) -> None:
    gray = np.array([[0, 51], [102, 255]], np.uint8)
    for stored in (gray, gray.astype(np.uint16) * 257, gray / np.float32(255), np.stack([gray] * 3, 2)):
        root = write(tmp_path / f"{stored.dtype}{stored.ndim}", stored)
        labels = FolderDepth(root, quantity="disparity").labels(0)
        assert (labels.unit, labels.mask.tolist()) == ("disparity", [[False, True], [True, True]])
        batch = TrainingSet([FolderDepth(root, quantity="disparity")], [], 2)[[Draw(True, 0, 1)]]
        target, mask = batch.target[0].numpy(), batch.mask[0].numpy()
        np.testing.assert_allclose(np.sort(target[mask]), [0, 0.25, 1], atol=1e-6)


def test_disparity_0_can_be_sky(tmp_path: Path) -> None:
    root = write(tmp_path, np.array([[0, 51], [102, 255]], np.uint8))
    labels = FolderDepth(root, quantity="disparity", sky_value=0).labels(0)
    assert labels.mask.all() and labels.disparity.tolist() == [[0, 51], [102, 255]]


def test_alpha_is_dropped_unless_it_varies(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 4), 255, np.uint8)
    pixels[..., :3] = np.array([[1, 2], [3, 4]])[:, :, None]
    assert FolderDepth(write(tmp_path, pixels), quantity="disparity").labels(0).values.tolist() == [
        [1, 2],
        [3, 4],
    ]
    pixels[0, 0, 3] = 0
    with pytest.raises(ValueError, match="its alpha varies"):
        FolderDepth(write(tmp_path, pixels), quantity="disparity").labels(0)


def test_pictures_of_depth_are_refused(tmp_path: Path) -> None:
    equal, coloured = np.full((2, 2, 3), 7, np.uint8), np.zeros((2, 2, 3), np.uint8)
    coloured[..., 1] = 9
    with pytest.raises(ValueError, match=r"expected one channel of depth.*quantity=disparity takes three"):
        FolderDepth(write(tmp_path, equal), depth_scale=1000).labels(0)
    with pytest.raises(ValueError, match="these differ: a colour-mapped picture"):
        FolderDepth(write(tmp_path, coloured), quantity="disparity").labels(0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"quantity": "disparity", "depth_scale": 1000}, "depth_scale=1000 is for depth in metres"),
        ({"quantity": "depths"}, "unknown quantity 'depths'; choose from depth, disparity"),
        ({"resize_depth": "linear"}, "unknown resize_depth 'linear'; choose from nearest"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderDepth(write(tmp_path, MM), **settings)


@pytest.mark.parametrize("ending", ["_depth.png", "_depth", "_Depth.PNG"])
def test_one_folder_with_suffixes(tmp_path: Path, ending: str) -> None:
    for stem in ("x", "deep/y"):
        (tmp_path / stem).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / f"{stem}_rgb.png")
        Image.fromarray(MM).save(tmp_path / f"{stem}_depth.png")
    settings = {"images": ".", "depth": ".", "depth_scale": 1000, "depth_suffix": ending}
    dataset = FolderDepth(str(tmp_path), image_suffix="_rgb.png", **settings)
    assert [dataset.name(i) for i in range(2)] == ["deep/y", "x"]
    assert dataset.labels(0).values.tolist() == M.tolist()
    (tmp_path / "x_rgb.png").unlink()
    with pytest.raises(ValueError, match=r"1 file\(s\) without partner .*x_(?i:depth)"):
        FolderDepth(str(tmp_path), image_suffix="_rgb.png", **settings)


def test_suffix_of_depth_alone_in_one_folder(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    Image.fromarray(MM).save(tmp_path / "x_depth.png")
    dataset = FolderDepth(str(tmp_path), ".", ".", 1000, depth_suffix="_depth.png")
    assert (len(dataset), dataset.name(0), dataset.files(0)[0]) == (1, "x", str(tmp_path / "x.png"))


def test_arrays_are_chosen_by_their_keys(tmp_path: Path) -> None:
    root = write(tmp_path, M)
    (tmp_path / "depth/a.npy").unlink()
    np.savez(tmp_path / "depth/a.npz", near=M, far=2 * M)
    assert FolderDepth(root, npz_key="far").labels(0).values.tolist() == (2 * M).tolist()


def test_depth_is_resized_by_nearest_pixel(tmp_path: Path) -> None:
    root = write(tmp_path, np.array([[1000, 65535], [0, 4000]], np.uint16), size=(4, 4))
    with pytest.raises(ValueError, match="they must have the same size"):
        FolderDepth(root, depth_scale=1000).read(0)
    dataset = FolderDepth(root, depth_scale=1000, sky_value=65535, resize_depth="nearest")
    labels = dataset.read(0).labels
    assert labels.values[:, :2].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert labels.valid.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
    assert (
        labels.sky is not None and labels.sky.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2
    )
    assert dataset.decode(dataset.pairs[0]).resized_from == (2, 2)


def test_resized_depth_keeps_its_ratio(tmp_path: Path) -> None:
    root = write(tmp_path, np.full((30, 40), 1000, np.uint16), size=(640, 440))
    with pytest.raises(ValueError, match=r"depth is 40x30, its image .*640x440: .*the same ratio"):
        FolderDepth(root, depth_scale=1000, resize_depth="nearest").labels(0)
    write(tmp_path, np.full((30, 41), 1000, np.uint16), size=(649, 480))  # a rounded side
    assert FolderDepth(root, depth_scale=1000, resize_depth="nearest").labels(0).valid.shape == (480, 649)
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed as 480x640
    Image.new("RGB", (640, 480)).save(tmp_path / "images/a.png", exif=exif)
    write(tmp_path / "other", np.full((32, 24), 1000, np.uint16))
    (tmp_path / "other/depth/a.png").rename(tmp_path / "depth/a.png")
    assert FolderDepth(root, depth_scale=1000, resize_depth="nearest").read(0).image.shape == (640, 480, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("choice, hw", [(None, (40, 30)), ("ignore", (30, 40))])
def test_depth_fits_image_turned_by_exif(
    tmp_path: Path, suffix: str, choice: str | None, hw: tuple[int, int]
) -> None:
    root = write(tmp_path, np.ones((hw[0] // 2, hw[1] // 2), np.float32))
    (tmp_path / "images/a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / f"images/a.{suffix}", exif=exif)
    sample = FolderDepth(root, resize_depth="nearest", exif_orientation=choice).read(0)
    assert sample.image.shape[:2] == sample.labels.valid.shape == hw


def test_old_name_of_the_reader_works() -> None:
    from depthany.data import labeled

    assert labeled.FolderDepth is FolderDepth
    with pytest.raises(AttributeError, match="Folders"):
        _ = labeled.Folders
