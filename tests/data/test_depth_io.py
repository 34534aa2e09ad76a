"""Image and depth files: what is read, and that whatever is wrong with one names it in one line."""

import os
import random
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from depthany.data.depth_io import DEPTH_SUFFIXES, read_depth
from depthany.data.files import list_files
from depthany.data.images import IMAGE_SUFFIXES, read_image

DEPTH = np.array([[0, 1, 255, 256], [1000, 40000, 65534, 65535]], np.uint16)


def refused(call, path: Path, *arguments) -> str:
    """What a call on a bad file says after the file's name."""
    with pytest.raises(ValueError) as failure:
        call(path, *arguments)
    text = str(failure.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((50, 40), 60).convert("RGB").save(path)
    return path


def test_truncated_jpeg_is_refused(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:-300])
    assert "truncated" in refused(read_image, photo)


def test_zero_byte_file_is_said_to_be_empty(photo: Path) -> None:
    photo.write_bytes(b"")
    assert refused(read_image, photo) == "the file is empty (0 bytes)"


def test_text_with_the_suffix_of_an_image_is_refused(photo: Path) -> None:
    photo.write_text("<html>404 not found</html>")
    assert "not an image" in refused(read_image, photo)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_read_permission_is_refused(photo: Path) -> None:
    photo.chmod(0)
    assert "Permission denied" in refused(read_image, photo)


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "Is a directory" in refused(read_image, tmp_path)
    assert "Is a directory" in refused(read_depth, tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.npy", "a.h5"):
        assert "No such file" in refused(read_depth, tmp_path / name)


@pytest.mark.parametrize(
    "mode, name",
    [("L", "gray"), ("LA", "gray with alpha"), ("RGBA", "RGBA"), ("P", "a palette"), ("1", "1-bit")],
)
def test_png_that_is_not_rgb_is_refused_by_its_mode_and_converted_on_request(
    tmp_path: Path, mode: str, name: str
) -> None:
    path, gray = tmp_path / "a.png", Image.linear_gradient("L").resize((8, 8))
    gray.convert(mode).save(path)
    assert refused(read_image, path).startswith(f"expected an 8-bit RGB image, got {name}: ")
    converted = read_image(path, True)
    assert converted.shape == (8, 8, 3)
    assert converted.dtype == np.uint8
    if mode not in ("1", "P"):
        np.testing.assert_array_equal(converted[:, :, 1], np.asarray(gray))


def test_cmyk_jpeg_is_refused_and_converted_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(path)  # full cyan: red 0, green and blue full
    assert "got CMYK" in refused(read_image, path)
    np.testing.assert_allclose(read_image(path, True)[4, 4], (0, 255, 255), atol=2)


def test_16_bit_gray_image_loses_its_low_byte_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(DEPTH).save(path)
    assert "got 16-bit gray" in refused(read_image, path)
    assert read_image(path, True)[:, :, 2].tolist() == [[0, 0, 0, 1], [3, 156, 255, 255]]


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation_turns_the_image_upright(
    tmp_path: Path, orientation: int, corner: tuple[int, int]
) -> None:
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:4, :4] = 255  # where the stored top left corner goes: 6 = turn right by 90 degrees
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.shape[:2] == ((30, 20) if orientation in (6, 8) else (20, 30))
    assert upright[corner].tolist() == [255, 255, 255]
    assert int((upright == 255).sum()) == 4 * 4 * 3


def test_every_16_bit_value_survives_png_tiff_npy_and_hdf5(tmp_path: Path) -> None:
    Image.fromarray(DEPTH).save(tmp_path / "a.png")
    Image.fromarray(DEPTH).save(tmp_path / "a.tif")
    np.save(tmp_path / "a.npy", DEPTH)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["range/depth"] = DEPTH[:, :, None]
    for name in ("a.png", "a.tif", "a.npy"):
        np.testing.assert_array_equal(read_depth(tmp_path / name), DEPTH.astype(np.float32))
    np.testing.assert_array_equal(read_depth(tmp_path / "a.h5", "range/depth"), DEPTH.astype(np.float32))


def test_wrong_hdf5_key_lists_the_keys_that_are_there(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["disp"], file["rgb"] = DEPTH, DEPTH
    assert "no dataset 'depth'; the file has disp, rgb: set h5_key" in refused(read_depth, tmp_path / "a.h5")


def test_pickle_inside_npy_is_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "allow_pickle" in refused(read_depth, tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(4, 5, 3), (4,), (4, 5, 4)])
def test_depth_of_more_or_less_than_one_channel_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape, np.uint8))
    assert refused(read_depth, tmp_path / "a.npy").endswith(f"got uint8 of shape {shape}")


def test_colour_png_is_no_depth_map(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    assert "expected one channel of numbers" in refused(read_depth, tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on what it finds in damaged TIFF files
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_an_image_damaged_anywhere_is_read_or_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    path, dice = tmp_path / f"a{suffix}", random.Random(0)
    Image.effect_noise((32, 24), 60).convert("RGB").save(path)
    assert _refusals(path, dice, lambda: read_image(path, True)) > 20


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".h5"])
def test_a_depth_map_damaged_anywhere_is_read_or_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    path, dice = tmp_path / f"a{suffix}", random.Random(0)
    depth = np.random.default_rng(0).integers(1, 60000, (24, 32), dtype=np.uint16)
    if suffix == ".npy":
        np.save(path, depth)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("depth", data=depth, compression="gzip")
    else:
        Image.fromarray(depth).save(path)
    assert _refusals(path, dice, lambda: read_depth(path)) > 20


def _refusals(path: Path, dice: random.Random, read) -> int:
    """How many of 150 damaged copies are refused; each refusal is one line that names the file."""
    whole, failures = path.read_bytes(), list[str]()
    for trial in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            damaged[dice.randrange(min(len(whole), 400))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.randrange(len(whole))] if trial % 5 == 0 else damaged)
        try:
            read()
        except ValueError as error:
            failures.append(str(error))
    for text in failures:
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
    return len(failures)


def test_files_are_found_however_deep_and_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for name in ("b/c/2.JPG", "a.b.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(list_files(tmp_path, IMAGE_SUFFIXES)) == ["a.b", "b/c/2"]


def test_missing_folder_empty_folder_and_equal_stems_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path / 'gone'}: no such folder"):
        list_files(tmp_path / "gone", IMAGE_SUFFIXES)
    with pytest.raises(ValueError, match=r"no file with suffix \.png, \.tif"):
        list_files(tmp_path, DEPTH_SUFFIXES)
    for name in ("7.jpg", "7.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"7\.png and 7\.jpg have the same stem"):
        list_files(tmp_path, IMAGE_SUFFIXES)
