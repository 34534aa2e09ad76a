"""Image and depth files: what is read, and that whatever is wrong with one names it in one line."""

import os
import random
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import OpenEXR
import pytest
import scipy.io
from PIL import Image

from depthany.data import depth_files, pairs
from depthany.data.depth_files import (
    DEPTH_SUFFIXES,
    ArrayKeys,
    read_depth,
    read_depth_16,
    read_dpt,
    read_exr,
    read_mat,
    read_pfm,
    read_stored,
)
from depthany.data.float_files import read_raw_float
from depthany.data.folders import list_files
from depthany.data.image_formats import IMAGE_SUFFIXES
from depthany.data.images import read_image

DEPTH = np.array([[0, 1, 255, 256], [1000, 40000, 65534, 65535]], np.uint16)


FLOATS = np.array([[0.5, 1, 2], [1e5, np.inf, 3]], np.float32)
PFM_ROWS = FLOATS[::-1]  # the last row comes first


def write_exr(path: Path, **channels: np.ndarray) -> None:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))


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


def test_text_named_as_image_is_refused(photo: Path) -> None:
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
def test_png_of_other_modes_is_refused_or_converted(tmp_path: Path, mode: str, name: str) -> None:
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


def test_16_bit_gray_converts_to_its_high_byte(tmp_path: Path) -> None:
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


def test_16_bit_values_survive_every_format(tmp_path: Path) -> None:
    Image.fromarray(DEPTH).save(tmp_path / "a.png")
    Image.fromarray(DEPTH).save(tmp_path / "a.tif")
    np.save(tmp_path / "a.npy", DEPTH)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["range/depth"] = DEPTH[:, :, None]
    for name in ("a.png", "a.tif", "a.npy"):
        np.testing.assert_array_equal(read_depth(tmp_path / name), DEPTH.astype(np.float32))
    np.testing.assert_array_equal(read_depth(tmp_path / "a.h5", "range/depth"), DEPTH.astype(np.float32))


def test_wrong_hdf5_key_lists_the_keys(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["disp"], file["rgb"] = DEPTH, DEPTH
    assert "no dataset 'depth'; the file has disp, rgb: set h5_key" in refused(read_depth, tmp_path / "a.h5")


def test_pickle_inside_npy_is_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "allow_pickle" in refused(read_depth, tmp_path / "a.npy")


@pytest.mark.parametrize("scale, order", [("-1.0", "<f4"), ("1", ">f4"), ("-0.0078125", "<f4")])
def test_pfm_is_upright_in_both_byte_orders(tmp_path: Path, scale: str, order: str) -> None:
    (tmp_path / "a.pfm").write_bytes(f"Pf\n3 2\n{scale}\n".encode() + PFM_ROWS.astype(order).tobytes())
    stored = read_pfm(tmp_path / "a.pfm")
    assert stored.tolist() == FLOATS.tolist()
    assert stored.dtype == np.float32 and stored.dtype.isnative


def test_pfm_data_may_begin_with_white_space(tmp_path: Path) -> None:
    value = np.frombuffer(b"\x20\x0a\x0d\x41", "<f4")
    (tmp_path / "a.pfm").write_bytes(b"Pf 1 1 -1.0\n" + value.tobytes())
    assert read_pfm(tmp_path / "a.pfm")[0, 0] == value[0]


@pytest.mark.parametrize(
    "header, message",
    [
        (b"PF\n3 2\n-1.0\n", "a PFM of three"),
        (b"P5\n3 2\n-1.0\n", "got b'P5'"),
        (b"Pf\n3 2\n0\n", "expected a scale"),
        (b"Pf\n3 3\n-1\n", "expected 36 bytes for 3x3 float32 numbers, got 24"),
        (b"Pf\n-3 -2\n-1\n", "expected a size of 1x1 or more"),
        (b"Pf\n3", "incomplete"),
        (b"", "incomplete"),
    ],
)
def test_pfm_with_a_wrong_header_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    (tmp_path / "a.pfm").write_bytes(header + (PFM_ROWS.astype("<f4").tobytes() if len(header) > 9 else b""))
    assert message in refused(read_pfm, tmp_path / "a.pfm")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exr_channel_is_the_only_or_named_one(tmp_path: Path, dtype: type) -> None:
    depth = np.array([[0.5, 1, 2], [4, np.inf, 3]], dtype)
    write_exr(tmp_path / "one.exr", G=depth)
    assert read_exr(tmp_path / "one.exr").tolist() == depth.tolist()
    assert read_exr(tmp_path / "one.exr").dtype == np.float32
    write_exr(tmp_path / "two.exr", G=depth, Z=depth + 1)
    assert read_exr(tmp_path / "two.exr", "Z").tolist() == (depth + 1).tolist()
    assert read_exr(tmp_path / "two.exr", "G").tolist() == depth.tolist()
    assert "expected the channel exr_channel=R, the file has G, Z" in refused(
        read_exr, tmp_path / "two.exr", "R"
    )


def test_exr_takes_z_depth_or_equal_channels(tmp_path: Path) -> None:
    depth, other = np.array([[0.5, np.nan]], np.float32), np.array([[3, 4]], np.float32)
    path = tmp_path / "a.exr"
    for channels in (
        {"Z": depth, "R": other},
        {"ViewLayer.Depth.Z": depth, "ViewLayer.Combined.R": other},
        {"depth": depth, "A": other},
        {"R": depth, "G": depth, "B": depth, "A": other},
    ):
        write_exr(path, **channels)
        np.testing.assert_array_equal(read_exr(path), depth)
    write_exr(path, R=depth, G=other)
    assert "the file has G, R, which differ: set exr_channel" in refused(read_exr, path)
    write_exr(path, Z=depth, depth=other)
    assert "the file has Z, depth, which differ: set exr_channel" in refused(read_exr, path)


def test_npz_takes_only_or_named_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, anything=DEPTH)
    assert read_stored(path).dtype == np.uint16
    np.testing.assert_array_equal(read_depth(path), DEPTH.astype(np.float32))
    np.savez(path, rgb=DEPTH, Depth=DEPTH + 1)
    np.testing.assert_array_equal(read_stored(path), DEPTH + 1)
    np.testing.assert_array_equal(read_stored(path, ArrayKeys(npz_key="rgb")), DEPTH)
    np.savez(path, near=DEPTH, far=DEPTH)
    assert "expected one array; the file has near, far: set npz_key" in refused(read_stored, path)
    keys = ArrayKeys(npz_key="mid")
    assert "no array npz_key=mid; the file has near, far" in refused(read_stored, path, keys)
    path.write_bytes(path.read_bytes()[:-40])
    refused(read_stored, path)


def test_colour_pictures_keep_16_bits(tmp_path: Path) -> None:
    colours = np.stack([DEPTH, DEPTH, DEPTH], 2)
    for name in ("a.png", "a.tif"):
        assert cv2.imwrite(str(tmp_path / name), colours)
        np.testing.assert_array_equal(read_stored(tmp_path / name), colours)


def test_palette_is_read_as_colours(tmp_path: Path) -> None:
    file = Image.new("P", (2, 1))
    file.putpalette([10, 20, 30, 40, 50, 60])
    file.putdata([1, 0])
    file.save(tmp_path / "a.png")
    assert read_stored(tmp_path / "a.png").tolist() == [[[40, 50, 60], [10, 20, 30]]]


def test_8_bits_are_no_official_depth(tmp_path: Path) -> None:
    Image.new("L", (5, 4), 9).save(tmp_path / "a.png")
    assert "expected the 16-bit depth of the data set, got uint8" in refused(
        read_depth_16, tmp_path / "a.png"
    )
    Image.fromarray(DEPTH).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_depth_16(tmp_path / "a.png"), DEPTH)


def test_truncated_exr_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    write_exr(path, Z=np.random.default_rng(0).random((48, 64)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:-2000])
    assert "damaged or truncated" in refused(read_exr, path)


def test_missing_package_is_named_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ValueError, match=r"needs the package OpenEXR: pip install OpenEXR$"):
        depth_files.read_exr(tmp_path / "a.exr")


def test_sintel_dpt_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "frame_0001.dpt"
    path.write_bytes(b"PIEH" + np.array([3, 2], "<i4").tobytes() + FLOATS.astype("<f4").tobytes())
    assert read_dpt(path).tolist() == FLOATS.tolist()  # "PIEH" is 202021.25
    path.write_bytes(path.read_bytes()[:-1])
    assert "expected 24 bytes for 3x2 float32 numbers, got 23" in refused(read_dpt, path)
    path.write_bytes(b"HEIP" + bytes(20))
    assert "expected the tag 202021.25" in refused(read_dpt, path)
    path.write_bytes(b"PIEH")
    assert "expected a header of 12 bytes, got 4" in refused(read_dpt, path)


def test_raw_floats_must_fit_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "DSC_0286.JPG"  # ETH3D names its raw depth as the photos
    path.write_bytes(FLOATS.astype("<f4").tobytes())
    assert read_raw_float(path, 2, 3).tolist() == FLOATS.tolist()
    assert "expected 20 bytes for 5x1 float32 numbers, got 24" in refused(read_raw_float, path, 1, 5)


def test_matlab_axes_agree_between_versions(tmp_path: Path) -> None:
    stored = np.arange(24.0).reshape(2, 3, 4)
    scipy.io.savemat(tmp_path / "v5.mat", {"depths": stored})
    with h5py.File(tmp_path / "v73.mat", "w", userblock_size=512) as file:
        file["depths"] = stored.T  # what MATLAB does: rows run fastest
    for name in ("v5.mat", "v73.mat"):
        np.testing.assert_array_equal(read_mat(tmp_path / name, "depths"), stored)
        assert "'testNdxs'" in refused(read_mat, tmp_path / name, "testNdxs")
    (tmp_path / "v5.mat").write_bytes((tmp_path / "v5.mat").read_bytes()[:150])
    refused(read_mat, tmp_path / "v5.mat", "depths")
    assert "No such file" in refused(read_mat, tmp_path / "none.mat", "depths")


@pytest.mark.parametrize("shape", [(4, 5, 3), (4,), (4, 5, 4)])
def test_depth_must_have_one_channel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape, np.uint8))
    assert refused(read_depth, tmp_path / "a.npy").endswith(f"got uint8 of shape {shape}")


def test_colour_png_is_no_depth_map(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    assert "expected one channel of numbers" in refused(read_depth, tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on what it finds in damaged TIFF files
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_damaged_image_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    path, dice = tmp_path / f"a{suffix}", random.Random(0)
    Image.effect_noise((32, 24), 60).convert("RGB").save(path)
    assert _refusals(path, dice, lambda: read_image(path, True)) > 20


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".h5", ".pfm", ".exr", ".dpt"])
def test_damaged_depth_map_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    path, dice = tmp_path / f"a{suffix}", random.Random(0)
    depth = np.random.default_rng(0).integers(1, 60000, (24, 32), dtype=np.uint16)
    if suffix == ".npy":
        np.save(path, depth)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("depth", data=depth, compression="gzip")
    elif suffix == ".pfm":
        path.write_bytes(b"Pf\n32 24\n-1.0\n" + depth.astype("<f4").tobytes())
    elif suffix == ".dpt":
        path.write_bytes(b"PIEH" + np.array([32, 24], "<i4").tobytes() + depth.astype("<f4").tobytes())
    elif suffix == ".exr":
        write_exr(path, Z=depth.astype(np.float32))
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


def test_files_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/c/2.JPG", "a.b.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(list_files(tmp_path, IMAGE_SUFFIXES)) == ["a.b", "b/c/2"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "other_disk").mkdir()
    (tmp_path / "set/a/1.jpg").touch()
    (tmp_path / "other_disk/2.jpg").touch()
    (tmp_path / "set/b").symlink_to(tmp_path / "other_disk")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    assert list(list_files(tmp_path / "set", IMAGE_SUFFIXES)) == ["a/1", "b/2"]
    assert [folder for folder, _ in pairs.walk(tmp_path / "set")] == ["", "a", "b"]


def test_missing_folders_and_equal_stems_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path / 'gone'}: no such folder"):
        list_files(tmp_path / "gone", IMAGE_SUFFIXES)
    with pytest.raises(ValueError, match=r"no file with suffix \.png, \.tif"):
        list_files(tmp_path, DEPTH_SUFFIXES)
    for name in ("7.jpg", "7.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"7\.png and 7\.jpg have the same stem"):
        list_files(tmp_path, IMAGE_SUFFIXES)
