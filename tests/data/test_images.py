"""JPEGs take a faster way than Pillow's: the same pixels, and the same files refused."""

import io
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from depthany.data import image_formats
from depthany.data.images import decode_image, decode_photo
from depthany.data.left_out import read_header
from depthany.data.transforms import Crop


def picture(height: int, width: int) -> Image.Image:
    """Smooth colours with noise, which fills the files with something."""
    draw = np.random.default_rng(height * width)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + draw.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8))


def jpeg(height: int, width: int, **options) -> bytes:
    file = io.BytesIO()
    picture(height, width).save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


def pillow(stored: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(stored)) as file:
        file.load()
        return np.asarray(ImageOps.exif_transpose(file))


KINDS = [
    {"subsampling": "4:2:0"},
    {"subsampling": "4:2:2"},
    {"subsampling": "4:4:4"},
    {"subsampling": "4:2:0", "progressive": True},
    {"keep_rgb": True},
    {"quality": 30, "optimize": True},
    {"restart_marker_rows": 1},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("height, width", [(1, 1), (7, 5), (17, 33), (120, 81)])
def test_pixels_equal_those_of_pillow(options: dict, height: int, width: int) -> None:
    stored = jpeg(height, width, **options)
    np.testing.assert_array_equal(decode_image(stored, "a"), pillow(stored))


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientations_are_turned_as_by_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = jpeg(40, 56, exif=exif)
    np.testing.assert_array_equal(decode_image(stored, "a"), pillow(stored))
    reduced = decode_photo(stored, "a", min_hw=(20, 20))
    assert (reduced.height, reduced.width) == pillow(stored).shape[:2]
    assert reduced.pixels.shape[:2] == (reduced.height // 2, reduced.width // 2)
    halved = Image.fromarray(pillow(stored)).resize(
        (reduced.width // 2, reduced.height // 2), Image.Resampling.BOX
    )
    assert np.abs(reduced.pixels.astype(int) - np.asarray(halved)).mean() < 6


@pytest.mark.parametrize("options", [KINDS[0], KINDS[3], KINDS[6]], ids=str)
@pytest.mark.parametrize("min_hw", [None, (20, 20)])
def test_jpeg_cut_anywhere_is_refused_by_name(options: dict, min_hw: tuple[int, int] | None) -> None:
    stored = jpeg(60, 80, **options)
    for length in [*range(0, len(stored) - 1, 41), *range(len(stored) - 20, len(stored) - 1)]:
        with pytest.raises(ValueError, match=r"^photo\.jpg: ") as failure:
            decode_photo(stored[:length], "photo.jpg", min_hw=min_hw)
        assert "\n" not in str(failure.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_jpegs_are_refused_as_by_pillow() -> None:
    """Flipped bits inside the scan: JPEG has no checksum, so that many give other pixels and no error."""
    dice, outcomes = random.Random(0), set()
    for options in KINDS:
        stored = jpeg(60, 80, **options)
        for _ in range(60):
            damaged = bytearray(stored)
            damaged[dice.randrange(2, len(stored))] ^= 1 << dice.randrange(8)
            try:
                expected = pillow(bytes(damaged))
            except Exception:
                with pytest.raises(ValueError):
                    decode_image(bytes(damaged), "a", convert=True)
                outcomes.add("refused")
            else:
                if expected.ndim == 3 and expected.shape[2] == 3:  # a damaged header may say gray
                    np.testing.assert_array_equal(decode_image(bytes(damaged), "a", convert=True), expected)
                    outcomes.add("read")
    assert outcomes == {"refused", "read"}


def test_jpeg_with_stray_bytes_is_read() -> None:
    stored = jpeg(40, 40)
    stray = stored[:-2] + b"stray" + stored[-2:]
    np.testing.assert_array_equal(decode_image(stray, "a"), pillow(stored))


@pytest.mark.parametrize(
    "height, width, min_hw, k",
    [
        (80, 120, None, 1),
        (80, 120, (41, 41), 1),
        (80, 120, (40, 40), 2),
        (120, 80, (20, 20), 4),
        (81, 123, (10, 10), 8),
        (800, 640, (10, 10), 8),
        (80, 120, (20, 60), 2),
        (80, 120, (10, 61), 1),
    ],
)
def test_reduced_image_keeps_the_smallest_size(
    height: int, width: int, min_hw: tuple[int, int] | None, k: int
) -> None:
    photo = decode_photo(jpeg(height, width), "a", min_hw=min_hw)
    assert (photo.height, photo.width) == (height, width)
    assert photo.pixels.shape == (-(-height // k), -(-width // k), 3)  # odd sides are rounded up


def test_smallest_size_is_that_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 x 120, upright 120 x 40
    stored = jpeg(40, 120, exif=exif)
    assert decode_photo(stored, "a", min_hw=(60, 20)).reduction == 2
    assert decode_photo(stored, "a", min_hw=(20, 60)).reduction == 1


def test_first_picture_of_an_mpo_is_read(tmp_path: Path) -> None:
    picture(40, 60).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture(40, 50)])
    stored = (tmp_path / "a.jpg").read_bytes()
    with Image.open(io.BytesIO(stored)) as file:
        assert file.format == "MPO"
    np.testing.assert_array_equal(decode_image(stored, "a"), pillow(stored))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}], ids=str)
def test_tiff_may_stay_as_it_is_stored(orientation: int, options: dict) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    picture(40, 56).save(file, "TIFF", exif=exif, **options)
    np.testing.assert_array_equal(decode_image(file.getvalue(), "a", upright=False), picture(40, 56))
    np.testing.assert_array_equal(decode_image(file.getvalue(), "a"), pillow(file.getvalue()))


@pytest.mark.parametrize("name", ["HEIF", "AVIF"])
def test_heic_and_avif_are_read_upright(name: str) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image_formats._register_heic()
    picture(40, 56).save(file, name, quality=95, exif=exif.tobytes())
    expected = np.rot90(np.asarray(picture(40, 56)), -1).astype(int)
    pixels = decode_image(file.getvalue(), "a")
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 12
    assert read_header(file.getvalue()).side == 40


def test_heic_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    image_formats._register_heic()
    picture(40, 56).save(file, "HEIF")
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)
    with pytest.raises(ValueError, match=r"^a\.jpg: HEIC needs .*: pip install 'depthany\[heic\]'$"):
        decode_image(file.getvalue(), "a.jpg")
    assert read_header(file.getvalue()).fault(1, convert=True) == "HEIC without its decoder"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_image_is_not_shifted_when_turned(orientation: int) -> None:
    """The sides are 1 and 7 pixels more than a multiple of 8."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    coarse.resize((39 * 8 + 7, 30 * 8 + 1), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=97, exif=exif
    )
    exact = decode_image(file.getvalue(), "a")
    reduced = decode_photo(file.getvalue(), "a", min_hw=(30, 30))
    height, width = exact.shape[0] // 4, exact.shape[1] // 4
    small = cv2.resize(exact, (width, height), interpolation=cv2.INTER_AREA)
    crop = Crop((height, width), 0, 0, height, width, flip=False)
    assert reduced.reduction == 8
    assert np.abs(crop.of_image(reduced).astype(int) - small).max() < 14


@pytest.mark.parametrize("mode, message", [("L", "gray"), ("CMYK", "CMYK")])
def test_gray_and_cmyk_jpegs_are_refused_or_converted(mode: str, message: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (64, 64)).save(file, "JPEG")
    with pytest.raises(ValueError, match=f"got {message}: .*convert_images=true"):
        decode_photo(file.getvalue(), "a", min_hw=(16, 16))
    assert decode_photo(file.getvalue(), "a", convert=True, min_hw=(16, 16)).pixels.shape == (64, 64, 3)
