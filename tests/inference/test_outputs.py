"""The files of a prediction, read back by other libraries."""

import struct
import sys
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import trimesh
from media import pixels
from PIL import Image

from depthany.display.pictures import COLOUR_MAPS
from depthany.inference.outputs import FORMATS, OutputSettings, check_formats, legend_of, write
from depthany.inference.prediction_counts import PredictionCounts
from depthany.models.output import Quantity

DISPARITY = OutputSettings(Quantity("disparity"), range_m=(2.0, 10.0), fov_deg=90.0)
METRES = OutputSettings(Quantity("depth_m", 20.0))
VALUES = (3 + np.random.default_rng(0).random((5, 7)) * 4).astype(np.float32)
IMAGE = pixels(5, 7)


def written(
    tmp_path: Path, name: str, settings: OutputSettings = DISPARITY, values: np.ndarray = VALUES
) -> Path:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / f"ü 1{FORMATS[name][0]}"
    write({name: path}, IMAGE, values, settings)
    assert list(tmp_path.iterdir()) == [path]
    return path


def ends(path: Path, values: np.ndarray) -> tuple[list[int], list[int]]:
    """Returns the colours of the smallest and of the largest value."""
    shades = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return shades[values.argmin()].tolist(), shades[values.argmax()].tolist()


def test_near_is_red_for_disparity_and_depth(tmp_path: Path) -> None:
    blue, red = COLOUR_MAPS["spectral_r"][0].tolist(), COLOUR_MAPS["spectral_r"][-1].tolist()
    assert ends(written(tmp_path, "color", DISPARITY), VALUES) == (blue, red)
    assert ends(written(tmp_path, "color", METRES), VALUES) == (red, blue)


def test_a_colour_picture_says_which_map_it_uses(tmp_path: Path) -> None:
    file = Image.open(written(tmp_path, "color", OutputSettings(Quantity("disparity"), colour_map="magma")))
    assert (file.mode, file.size) == ("P", (7, 5))
    assert file.text["colormap"].startswith("magma") and "range" not in file.text
    of_metres = Image.open(written(tmp_path / "metres", "color", METRES))
    assert of_metres.text["range"].startswith(f"{VALUES.max():.3f} m to {VALUES.min():.3f} m")


def test_side_has_image_left_and_colours_right(tmp_path: Path) -> None:
    side = np.asarray(Image.open(written(tmp_path, "side")))
    assert np.array_equal(side[:, :7], IMAGE)
    (tmp_path / f"ü 1{FORMATS['side'][0]}").unlink()
    assert np.array_equal(side[:, 7:], np.asarray(Image.open(written(tmp_path, "color")).convert("RGB")))


def test_legend_has_near_far_and_unit(tmp_path: Path) -> None:
    values = np.linspace(1, 9, 120 * 240, dtype=np.float32).reshape(120, 240)
    image = pixels(120, 240)
    texts = dict[str, bytes]()
    for unit, quantity in (("metres", Quantity("depth_m", 20.0)), ("none", Quantity("disparity"))):
        paths = {name: tmp_path / f"{unit}_{name}.png" for name in ("color", "side")}
        write(paths, image, values, OutputSettings(quantity, legend=True))
        color, side = (Image.open(path) for path in paths.values())
        rows = color.height - 120
        assert rows > 10 and color.width == 240 and side.size == (480, 120 + rows)
        assert color.text["legend"].startswith(f"the last {rows} rows")
        write(paths, image, values, OutputSettings(quantity))
        plain = np.asarray(Image.open(paths["color"]))
        assert np.array_equal(np.asarray(color)[:120], plain), "pixels of the photo keep their places"
        bar = np.asarray(color)[120 + rows // 2].astype(int)
        assert {*range(60)} & {*bar} and (np.diff(bar[100:130]) >= 0).all(), "from far to near"
        texts[unit] = np.asarray(color)[120:].tobytes()
    assert texts["metres"] != texts["none"]
    assert legend_of(VALUES, OutputSettings(Quantity("disparity"), legend=True)) is None, "no room"


def test_png16_restores_disparity_by_scale_and_offset(tmp_path: Path) -> None:
    file = Image.open(written(tmp_path, "png16"))
    stored = np.asarray(file)
    assert stored.dtype == np.uint16
    assert (stored.min(), stored.max()) == (0, 65535)
    restored = float(file.text["offset"]) + float(file.text["scale"]) * stored
    assert np.abs(restored - VALUES).max() <= np.ptp(VALUES) / 65535
    assert file.text["quantity"].startswith("disparity")


def test_png16_holds_millimetres_up_to_65_m(tmp_path: Path) -> None:
    file = Image.open(written(tmp_path, "png16", METRES, np.float32([[1.2344, 0.0, 20.0]])))
    assert np.asarray(file).tolist() == [[1234, 0, 20000]]
    assert (file.text["quantity"], float(file.text["scale"])) == ("depth in metres", 0.001)
    assert file.text["unit"] == "millimetres; 65535 is 65.535 m or more"


@pytest.mark.parametrize("max_depth_m", [80.0, None])
def test_png16_of_far_depth_is_clipped_and_counted(
    tmp_path: Path, max_depth_m: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, values = OutputSettings(Quantity("depth_m", max_depth_m)), np.float32([[80.0, 65.53, 0.5]])
    stored = np.asarray(Image.open(written(tmp_path, "png16", settings, values)))
    assert stored.tolist() == [[65535, 65530, 500]]
    counts = PredictionCounts()
    counts.add_png16("a", values, settings)
    counts.add_png16("b", values[:, 1:], settings)
    counts.report(tmp_path)
    assert "warning: 1 pixels of 1 maps (a) are beyond 65.535 m" in capsys.readouterr().err


def test_png16_in_256ths_of_a_metre(tmp_path: Path) -> None:
    settings = OutputSettings(Quantity("depth_m", 80.0), per_metre=256)
    file = Image.open(written(tmp_path, "png16", settings, np.float32([[80.0, 0.5]])))
    assert np.asarray(file).tolist() == [[20480, 128]]
    assert (float(file.text["scale"]), settings.unit_of_16bit) == (1 / 256, "1/256 m")


def test_flat_disparity_is_written(tmp_path: Path) -> None:
    flat = np.full((5, 7), 2.5, np.float32)
    file = Image.open(written(tmp_path, "png16", values=flat))
    assert float(file.text["offset"]) + float(file.text["scale"]) * np.asarray(file).max() == 2.5
    for name in ("color", "ply"):
        write({name: tmp_path / name}, IMAGE, flat, DISPARITY)


def test_npy_is_float32_as_predicted(tmp_path: Path) -> None:
    loaded = np.load(written(tmp_path, "npy"))
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, VALUES)


@pytest.mark.parametrize("settings, channel", [(DISPARITY, "Y"), (METRES, "Z")])
def test_exr_holds_the_same_floats(tmp_path: Path, settings: OutputSettings, channel: str) -> None:
    with OpenEXR.File(str(written(tmp_path, "exr", settings))) as file:
        assert np.array_equal(file.channels()[channel].pixels, VALUES)


def test_pfm_holds_rows_from_last_to_first(tmp_path: Path) -> None:
    kind, size, scale, data = written(tmp_path, "pfm").read_bytes().split(b"\n", 3)
    assert (kind, size, float(scale)) == (b"Pf", b"7 5", -1.0)
    assert struct.unpack("<7f", data[: 7 * 4]) == tuple(VALUES[-1])
    assert np.array_equal(np.frombuffer(data, "<f4").reshape(5, 7)[::-1], VALUES)


def test_ply_has_a_coloured_point_per_pixel(tmp_path: Path) -> None:
    header, body = written(tmp_path, "ply").read_bytes().split(b"end_header\n", 1)
    assert b"format binary_little_endian 1.0" in header
    assert b"element vertex 35\n" in header
    names = [line.split()[1:] for line in header.decode().splitlines() if line.startswith("property")]
    kinds = {"float": "<f4", "uchar": "u1"}
    points = np.frombuffer(body, [(name, kinds[kind]) for kind, name in names])
    nearest = points[VALUES.argmax()]
    row, column = divmod(int(VALUES.argmax()), 7)
    assert nearest["z"] == pytest.approx(-2.0)
    assert nearest["x"] == pytest.approx(
        (column + 0.5 - 3.5) / 3.5 * 2.0
    )  # focal length 3.5 px for 90 degrees
    assert nearest["y"] == pytest.approx(-(row + 0.5 - 2.5) / 3.5 * 2.0)
    assert [nearest[name] for name in ("red", "green", "blue")] == IMAGE[row, column].tolist()


def test_clouds_have_y_up_and_z_backward(tmp_path: Path) -> None:
    path = written(tmp_path, "glb")
    assert path.read_bytes()[:4] == b"glTF"
    (cloud,) = trimesh.load(path, process=False).geometry.values()
    write({"ply": tmp_path / "a.ply"}, IMAGE, VALUES, DISPARITY)
    other = trimesh.load(tmp_path / "a.ply", process=False)
    assert np.allclose(cloud.vertices, other.vertices), "upright in viewers of both"
    assert np.array_equal(cloud.colors[:, :3], IMAGE.reshape(-1, 3))
    top, bottom = cloud.vertices[:7], cloud.vertices[-7:]  # first and last row of the photo
    assert (top[:, 1] > 0).all() and (bottom[:, 1] < 0).all() and (cloud.vertices[:, 2] < 0).all()
    assert (cloud.vertices[::7, 0] < 0).all(), "left is left"


def test_metric_cloud_leaves_out_points_beyond_its_range(tmp_path: Path) -> None:
    depth_m = np.float32([[0.5, 1, 2, 3, 4, 5, 6]] * 5)
    path = written(tmp_path, "ply", OutputSettings(Quantity("depth_m", 20.0), range_m=(1.0, 4.0)), depth_m)
    assert sorted(set(-trimesh.load(path).vertices[:, 2])) == [1, 2, 3, 4]


def test_clouds_without_a_point_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depth_m, counts = np.full((5, 7), 2, np.float32), PredictionCounts()
    counts.add_cloud("a", depth_m, OutputSettings(Quantity("depth_m", 20.0), range_m=(3.0, 9.0)))
    counts.add_cloud("b", depth_m, OutputSettings(Quantity("depth_m", 20.0), range_m=(1.0, 9.0)))
    counts.report(tmp_path)
    message = "1 point cloud(s) (a) are empty: no predicted depth is above 0 and within near_m and far_m"
    assert f"warning: {message}" in capsys.readouterr().err
    for name in ("ply", "glb"):
        settings = OutputSettings(Quantity("depth_m", 20.0), range_m=(3.0, 9.0))
        path = written(tmp_path / name, name, settings, depth_m)
        assert trimesh.load(path, process=False).is_empty


def test_focal_px_overrides_the_field_of_view(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "ply",
        OutputSettings(Quantity("depth_m", 20.0), focal_px=7.0, fov_deg=10.0),
        np.full((5, 7), 2, np.float32),
    )
    assert trimesh.load(path).vertices[:, 0].max() == pytest.approx(3 / 7 * 2)


@pytest.mark.parametrize("name", ["ply", "glb"])
def test_disparity_cloud_without_range_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"save={name}: .* near_m=1 far_m=20"):
        check_formats([name], OutputSettings(Quantity("disparity")))
    check_formats([name], METRES)


@pytest.mark.parametrize("name, package", [("exr", "OpenEXR"), ("ply", "trimesh"), ("glb", "trimesh")])
def test_missing_package_is_named_with_its_install_command(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs the package {package}: pip install {package}"):
        check_formats([name], METRES)
