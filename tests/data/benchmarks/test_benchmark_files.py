"""Units, masks and layouts of the benchmarks whose readers are a few lines each."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_trees import (
    IMAGE,
    write_ddad,
    write_diode,
    write_eth3d,
    write_ibims,
    write_npy,
    write_rgb,
    write_scannet,
    write_sintel,
    write_sun_rgbd,
)
from depthany.data.benchmarks import (
    DdadProjected,
    Diode,
    Eth3d,
    Ibims,
    ScannetMarigold,
    Sintel,
    SunRgbd,
)


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def test_diode_is_valid_on_its_mask(tmp_path: Path) -> None:
    write_diode(tmp_path)
    sample = Diode(str(tmp_path)).read(0)
    assert not sample.labels.mask[0, 0]  # 300 m by the depth file
    assert sample.labels.mask.sum() == IMAGE[0] * IMAGE[1] - 1
    assert (sample.labels.disparity[sample.labels.mask] == 0.5).all()


def test_diode_without_mask_counts_every_depth(tmp_path: Path) -> None:
    write_diode(tmp_path)
    labels = Diode(str(tmp_path), "outdoor", use_mask=False).labels(0)
    assert labels.mask.all() and labels.values[0, 0] == 300


def test_sun_rgbd_rotates_three_bits_or_divides(tmp_path: Path) -> None:
    write_sun_rgbd(tmp_path, (48, 60))
    by_unit = {unit: SunRgbd(str(tmp_path), unit).labels(0) for unit in ("rotated", "tenths_of_mm")}
    assert by_unit["rotated"].values[46, 49:51].tolist() == [2, 9]
    assert by_unit["tenths_of_mm"].values[46, 49:51].tolist() == [np.float32(1.6), np.float32(0.6465)]
    assert all(np.argwhere(~labels.mask).tolist() == [[47, 50]] for labels in by_unit.values())


def test_diode_parts_are_chosen_by_folder(tmp_path: Path) -> None:
    write_diode(tmp_path)
    indoors = names(Diode(str(tmp_path), "indoors"))
    assert indoors == ["indoors/scene_00019/scan_00183/00019_00183_indoors_000_010"]
    assert names(Diode(str(tmp_path / "val"), "all")) == indoors + names(Diode(str(tmp_path), "outdoor"))
    with pytest.raises(ValueError, match="unknown part of DIODE 'indoor'; choose from indoors, outdoor, all"):
        Diode(str(tmp_path), "indoor")


def test_mask_of_another_size_is_named(tmp_path: Path) -> None:
    write_diode(tmp_path)
    (path,) = tmp_path.rglob("*indoors*_mask.npy")
    write_npy(path, np.ones((3, 3), np.float32))
    with pytest.raises(
        ValueError, match=r"_depth_mask\.npy: mask is 3x3, its depth map .*_depth\.npy is 8x6"
    ):
        Diode(str(tmp_path), "indoors").read(0)


@pytest.mark.parametrize("marigold", [False, True])
def test_eth3d_depth_is_raw_floats(tmp_path: Path, marigold: bool) -> None:
    write_eth3d(tmp_path, marigold)
    images = Eth3d(str(tmp_path))
    assert names(images) == ["office/images/dslr_images/DSC_0219"]  # the undistorted one is left alone
    sample = images.read(0)
    assert not sample.labels.mask[0].any()
    assert sample.labels.mask[1:].all()
    assert sample.labels.disparity[1, 1:4].tolist() == [0.25, 0.125, 0.25]


def test_eth3d_images_ignore_exif_orientation(tmp_path: Path) -> None:
    write_eth3d(tmp_path)
    path = tmp_path / "office/images/dslr_images/DSC_0219.JPG"
    with Image.open(path) as file:
        exif = file.getexif()
        exif[0x0112] = 6  # orientation: to be turned by 90 degrees
        file.save(path, exif=exif)
    sample = Eth3d(str(tmp_path)).read(0)
    assert sample.image.shape == (*IMAGE, 3)
    assert sample.labels.disparity[1, 1:4].tolist() == [0.25, 0.125, 0.25]


def test_damaged_eth3d_image_is_named(tmp_path: Path) -> None:
    write_eth3d(tmp_path)
    path = tmp_path / "office/images/dslr_images/DSC_0219.JPG"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"dslr_images/DSC_0219\.JPG: cannot read the image"):
        Eth3d(str(tmp_path)).read(0)


def test_eth3d_depth_of_another_size_is_refused(tmp_path: Path) -> None:
    write_eth3d(tmp_path)
    write_rgb(tmp_path / "office/images/dslr_images/DSC_0219.JPG", size=(5, 9))  # as an undistorted one
    with pytest.raises(ValueError, match=r"ground_truth_depth.*expected 180 bytes for 9x5 .* got 192"):
        Eth3d(str(tmp_path)).read(0)


def test_sintel_sky_is_valid_and_far(tmp_path: Path) -> None:
    write_sintel(tmp_path)
    images = Sintel(str(tmp_path))
    assert names(images) == ["alley_1/frame_0001", "alley_1/frame_0002"]
    sample = images.read(1)
    assert sample.labels.mask.all()
    np.testing.assert_allclose(1 / sample.labels.disparity[0].astype(float), 1e5, rtol=1e-7)
    assert sample.labels.disparity[1, 1:4].tolist() == [np.float32(0.2), np.float32(0.1), np.float32(0.2)]


def test_sintel_renderings_share_depth(tmp_path: Path) -> None:
    write_sintel(tmp_path)
    final, clean = (Sintel(str(tmp_path / "training"), render).read(0) for render in ("final", "clean"))
    assert (final.image[0, 0, 0], clean.image[0, 0, 0]) == (0, 1)
    assert (final.labels.disparity == clean.labels.disparity).all()
    with pytest.raises(ValueError, match="unknown render of Sintel 'albedo'; choose from final, clean"):
        Sintel(str(tmp_path), "albedo")


def test_ddad_metres_and_256ths_of_a_metre_agree(tmp_path: Path) -> None:
    write_ddad(tmp_path)
    images = DdadProjected(str(tmp_path))
    assert names(images) == ["000150/a", "000151/b"]
    for i in range(2):
        sample = images.read(i)
        assert sample.labels.mask.sum() == 1
        assert sample.labels.disparity[0, 0] == np.float32(1 / 12.5)


def test_linked_scenes_of_ddad_are_read(tmp_path: Path) -> None:
    write_ddad(tmp_path / "disk")
    (tmp_path / "ddad").mkdir()
    (tmp_path / "ddad/val").symlink_to(tmp_path / "disk")
    assert names(DdadProjected(str(tmp_path / "ddad"))) == ["val/000150/a", "val/000151/b"]


def test_ibims_scale_and_both_masks(tmp_path: Path) -> None:
    write_ibims(tmp_path)
    sample = Ibims(str(tmp_path)).read(0)
    assert sample.labels.mask.all(1).tolist() == [True, False, False, False, True, True]
    assert sample.labels.mask.any(1).tolist() == [True, False, False, False, True, True]
    np.testing.assert_allclose(1 / sample.labels.disparity[0, :2], [50, 6554 * 50 / 65535], rtol=1e-6)


def test_ibims_masks_of_one_bit_count_the_same(tmp_path: Path) -> None:
    write_ibims(tmp_path)
    before = Ibims(str(tmp_path)).labels(0).mask
    for path in tmp_path.rglob("mask_*/*.png"):
        Image.open(path).convert("1").save(path)
    assert (Ibims(str(tmp_path)).labels(0).mask == before).all()


def test_scannet_list_chooses_frames(tmp_path: Path) -> None:
    write_scannet(tmp_path)
    assert names(ScannetMarigold(str(tmp_path))) == ["scene0064_00/color/000800", "scene0378_01/color/000300"]
    listed = ScannetMarigold(str(tmp_path), str(tmp_path / "list.txt"))
    assert names(listed) == ["scene0378_01/color/000300"]
    sample = listed.read(0)
    assert sample.labels.mask.sum() == 1
    assert sample.labels.disparity[0, 0] == np.float32(0.4)


def test_scannet_colour_at_full_size_is_refused(tmp_path: Path) -> None:
    write_scannet(tmp_path)
    write_rgb(tmp_path / "scene0064_00/color/000800.jpg", size=(12, 16))
    with pytest.raises(ValueError, match=r"depth is 8x6, its image .* is 16x12"):
        ScannetMarigold(str(tmp_path)).read(0)


def test_disparity_keeps_float32_precision(tmp_path: Path) -> None:
    depth_m = np.geomspace(1e-2, 1e5, 48, dtype=np.float32).reshape(IMAGE)
    write_rgb(tmp_path / "a_rgb.png")
    write_npy(tmp_path / "a_depth.npy", depth_m)
    labels = DdadProjected(str(tmp_path)).labels(0)
    assert labels.mask.all()
    np.testing.assert_allclose(1 / labels.disparity.astype(np.float64), depth_m, rtol=1.2e-7)
