"""`python -m depthany.predict` from the command line to the files."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from media import pixels
from PIL import Image

from depthany.data import image_formats
from depthany.data.folder_depth import FolderDepth
from depthany.inference.prediction_note import NOTE
from depthany.inference.predictor import Predictor
from depthany.models.model import DenseModel, save_model
from depthany.models.trained_on import TrainedOn

ROOT = Path(__file__).resolve().parents[2]


def save(path: Path, image: np.ndarray | Image.Image, **options) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)
    return np.asarray(picture)


def results(out: Path) -> list[str]:
    files = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(name for name in files if name != NOTE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos of three shapes in two folders."""
    for i, size in enumerate([(40, 50), (50, 40), (40, 50), (28, 28), (50, 40), (40, 50)]):
        save(tmp_path / "photos" / ("day 1" if i % 2 else ".") / f"{i}.png", pixels(*size, seed=i))
    return tmp_path / "photos"


def test_maps_of_a_folder_equal_infer(predict, photos: Path, model: DenseModel, tmp_path: Path) -> None:
    ended = predict(f"images={photos}", "save=npy", "batch_size=2")
    assert (ended.code, ended.err) == (0, "")
    assert "6 predicted" in ended.out
    names = ["0", "2", "4", "day 1/1", "day 1/3", "day 1/5"]
    assert results(tmp_path / "out") == [f"{name}.npy" for name in names]
    for name in names:
        expected = model.infer(np.asarray(Image.open(photos / f"{name}.png")))
        assert np.allclose(np.load(tmp_path / "out" / f"{name}.npy"), expected, rtol=1e-6)


def test_formats_are_written_as_asked_for(predict, photos: Path, tmp_path: Path) -> None:
    ended = predict(
        f"images={photos / '0.png'}",
        "save=[color,side,png16,npy,exr,pfm,ply,glb]",
        "near_m=1",
        "far_m=9",
    )
    assert ended.code == 0, ended.err
    ends = ["_16bit.png", "_color.png", "_side.png", ".exr", ".glb", ".npy", ".pfm", ".ply"]
    assert results(tmp_path / "out") == sorted(f"0{end}" for end in ends)


def test_existing_results_are_left_alone(predict, photos: Path, tmp_path: Path) -> None:
    predict(f"images={photos}")
    kept = tmp_path / "out" / "0_color.png"
    kept.write_bytes(b"mine")
    (tmp_path / "out" / "2_color.png").unlink()
    ended = predict(f"images={photos}")
    assert "1 predicted, 5 there already (overwrite=true predicts them again)" in ended.out
    assert kept.read_bytes() == b"mine"
    assert "6 predicted" in predict(f"images={photos}", "save=color,npy").out, "npy was not there"
    assert kept.read_bytes() == b"mine"
    assert "6 predicted" in predict(f"images={photos}", "overwrite=true").out
    assert kept.read_bytes() != b"mine"


def test_unreadable_files_are_named_at_the_end(predict, photos: Path, tmp_path: Path) -> None:
    data = (photos / "0.png").read_bytes()
    (photos / "0 cut.png").write_bytes(data[: len(data) // 2])
    (photos / "empty ü.jpg").touch()
    (photos / "text.jpg").write_text("no image")
    ended = predict(f"images={photos}")
    assert ended.code == 1
    assert "6 predicted, 3 unreadable" in ended.out
    cut, empty, text = ended.err.splitlines()
    assert cut.startswith(f"error: {photos / '0 cut.png'}: cannot read the image: ")
    assert empty == f"error: {photos / 'empty ü.jpg'}: the file is empty (0 bytes)"
    assert text == f"error: {photos / 'text.jpg'}: not an image, or damaged beyond its header"
    assert len(results(tmp_path / "out")) == 6


def test_files_passed_over_are_in_the_summary(predict, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_formats._register_heic()
    save(photos / "phone.heic", pixels(40, 50), format="HEIF")
    (photos / "list.txt").touch()
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)
    ended = predict(f"images={photos}")
    assert (ended.code, ended.err) == (0, "")
    assert "6 predicted, 1 passed over: 1 .heic (install depthany[heic])\n" in ended.out
    ended = predict(f"images={photos / 'phone.heic'}")
    assert ended.code == 1
    assert ended.err == (
        f"error: {photos / 'phone.heic'}: HEIC needs the package pillow-heif: pip install 'depthany[heic]'\n"
    )


def gray_16bit(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257)


KINDS = {
    "jpg": ("a.jpg", lambda rgb: Image.fromarray(rgb), {"quality": 95}),
    "webp": ("a.webp", lambda rgb: Image.fromarray(rgb), {"lossless": True}),
    "mpo": ("a.mpo", lambda rgb: Image.fromarray(rgb), {"quality": 95, "save_all": True}),
    "avif": ("a.avif", lambda rgb: Image.fromarray(rgb), {"quality": 95}),
    "heic": ("a.heic", lambda rgb: Image.fromarray(rgb), {"quality": 95, "format": "HEIF"}),
    "tiff": ("a.tiff", lambda rgb: Image.fromarray(rgb), {}),
    "bmp": ("a.bmp", lambda rgb: Image.fromarray(rgb), {}),
    "gray": ("a.png", lambda rgb: Image.fromarray(rgb[:, :, 0]), {}),
    "16-bit png": ("a.png", gray_16bit, {}),
    "16-bit tiff": ("a.tif", gray_16bit, {}),
    "rgba": ("a.png", lambda rgb: Image.fromarray(np.dstack([rgb, rgb[:, :, 0]])), {}),
    "palette": ("a.png", lambda rgb: Image.fromarray(rgb).quantize(), {}),
    "cmyk": ("a.jpg", lambda rgb: Image.fromarray(rgb).convert("CMYK"), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_photo_becomes_8_bit_rgb(
    kind: str, predict, model: DenseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, convert, options = KINDS[kind]
    image_formats._register_heic()
    rgb = np.asarray(Image.fromarray(pixels(4, 5)).resize((50, 40), Image.Resampling.BICUBIC))
    save(tmp_path / name, convert(rgb), **options)
    seen = []
    prepare = Predictor.prepare
    monkeypatch.setattr(
        Predictor, "prepare", lambda self, image, name: seen.append(image) or prepare(self, image, name)
    )
    assert predict(f"images={tmp_path / name}").code == 0
    expected = np.repeat(rgb[:, :, :1], 3, axis=2) if kind.startswith(("gray", "16")) else rgb
    near = {"jpg": 12, "mpo": 12, "avif": 16, "heic": 24, "cmyk": 40, "palette": 40}.get(kind, 0)
    assert np.abs(seen[0].astype(int) - expected).max() <= near


def test_exif_orientation_turns_a_photo_upright(predict, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    save(tmp_path / "a.jpg", pixels(30, 50), exif=exif)
    assert predict(f"images={tmp_path / 'a.jpg'}", "save=npy").code == 0
    assert np.load(tmp_path / "out" / "a.npy").shape == (50, 30)


def test_photo_of_one_pixel_is_predicted(predict, tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(1, 1))
    ended = predict(f"images={tmp_path / 'a.png'}", "save=color,side,npy,png16")
    assert ended.code == 0, ended.err
    assert np.load(tmp_path / "out" / "a.npy").shape == (1, 1)
    assert Image.open(tmp_path / "out" / "a_side.png").size == (2, 1)


def test_panorama_of_12000_pixels_is_predicted(predict, tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.tile(pixels(60, 100), (1, 120, 1)), compress_level=1)
    ended = predict(f"images={tmp_path / 'a.png'}")
    assert ended.code == 0, ended.err
    assert Image.open(tmp_path / "out" / "a_color.png").size == (12_000, 60)


def test_too_long_strip_is_named_with_remedies(predict, photos: Path) -> None:
    save(photos / "strip.png", pixels(1, 12_000))
    ended = predict(f"images={photos}", "input_size=280")
    assert ended.code == 1
    assert "6 predicted, 1 unreadable" in ended.out
    assert ended.err.startswith(f"error: {photos / 'strip.png'}: image is (1, 12000)")
    assert "pass a smaller input_size, or crop the image" in ended.err


def test_names_may_have_spaces_brackets_and_any_letters(predict, tmp_path: Path) -> None:
    name = "日本 [1] (a=b), it's {ü}"
    save(tmp_path / "фото" / f"{name}.png", pixels(28, 28))
    ended = predict(
        f"images={tmp_path / 'фото' / name}.png", f"out={tmp_path / 'выход, 1'}", "save=npy,exr,side"
    )
    assert ended.code == 0, ended.err
    assert results(tmp_path / "выход, 1") == sorted(f"{name}{end}" for end in (".exr", ".npy", "_side.png"))


def test_settings_of_the_model_reach_it(predict, photos: Path, tmp_path: Path, model: DenseModel) -> None:
    image = np.asarray(Image.open(photos / "0.png"))

    def written(*words: str) -> np.ndarray:
        assert predict(f"images={photos / '0.png'}", "save=npy", "overwrite=true", *words).code == 0
        return np.load(tmp_path / "out" / "0.npy")

    plain = written()
    assert np.allclose(written("input_size=50"), model.infer(image, 50), rtol=1e-6)
    assert np.allclose(written("scales=[1.5]"), model.infer(image, 42), rtol=1e-6)
    mirrored = model.infer(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
    assert not np.array_equal(mirrored, plain)
    assert not np.array_equal(written("flip=true"), plain)
    assert not np.array_equal(written("precision=bf16"), plain)
    assert np.allclose(written("batch_size=1", "workers=1"), plain, rtol=1e-6)


def test_a_metric_model_writes_metres(predict, metric_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    ended = predict(f"checkpoint={metric_checkpoint}", f"images={photos / '0.png'}", "save=npy,png16,ply")
    assert ended.code == 0, ended.err
    depth_m = np.load(tmp_path / "out" / "0.npy")
    assert depth_m.min() > 0 and depth_m.max() < 80
    stored = np.asarray(Image.open(tmp_path / "out" / "0_16bit.png"))
    assert np.abs(stored / 1000 - depth_m).max() <= 0.5 / 1000 + 1e-5
    assert "png16 in millimetres, npy, ply in metres" in ended.out


def test_millimetres_are_read_as_a_data_set(
    predict, metric_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    ended = predict(f"images={photos / '0.png'}", f"checkpoint={metric_checkpoint}", "save=png16,npy")
    assert ended.code == 0, ended.err
    for name, source in (("images", photos / "0.png"), ("depth", tmp_path / "out" / "0_16bit.png")):
        (tmp_path / "set" / name).mkdir(parents=True)
        shutil.copy(source, tmp_path / "set" / name / "0.png")
    labels = FolderDepth(str(tmp_path / "set"), depth_scale=1000).read(0).labels
    predicted_m = np.load(tmp_path / "out" / "0.npy")
    assert labels.unit == "m" and labels.valid.all()
    assert np.abs(labels.values - predicted_m).max() <= 0.0005 + 1e-5


def test_colour_map_is_named_in_log_and_file(predict, photos: Path, tmp_path: Path) -> None:
    assert "colours of magma" in predict(f"images={photos / '0.png'}", "colormap=magma").out
    assert Image.open(tmp_path / "out" / "0_color.png").text["colormap"].startswith("magma")


def test_interrupted_run_leaves_only_whole_files(predict, ctrl_c_at_batch, tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "photos" / f"{i}.png", pixels(40, 50, seed=i))
    with ctrl_c_at_batch(5):
        ended = predict(f"images={tmp_path / 'photos'}", "batch_size=1", "save=npy")
    assert ended.code == 130
    names = results(tmp_path / "out")
    assert 1 <= len(names) <= 4
    assert f"{len(names)} predicted" in ended.out
    assert all(np.load(tmp_path / "out" / name).shape == (40, 50) for name in names), "no half files"
    ended = predict(f"images={tmp_path / 'photos'}", "save=npy")
    assert f"{12 - len(names)} predicted, {len(names)} there already" in ended.out


def test_unwritable_output_is_refused_before_loading(predict, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        ended = predict(f"images={photos}", f"out={out}", "checkpoint=/no/such")
        assert ended.code == 2
        assert re.fullmatch(rf"error: cannot write into out={out}: .*; pass another out=\.\.\.\n", ended.err)


def test_unwritable_file_stops_the_run(predict, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "0_color.png").mkdir(parents=True)
    ended = predict(f"images={photos}", "overwrite=true")
    assert ended.code == 2
    assert f"error: cannot write {tmp_path / 'out' / '0_color.png'}: " in ended.err
    assert not list((tmp_path / "out").rglob("*.partial"))


MISTAKES = {
    "checkpoint=/no/such": "/no/such does not exist",
    "checkpoint=???": "these settings need a value: checkpoint=...",
    "images=/no/such.jpg": "images=/no/such.jpg: no such file or folder",
    "images=/no/such*.jpg": "no image or video there",
    "images=": "images= names nothing",
    "images=???": "these settings need a value: images=...",
    "imagez=a": "unknown setting 'imagez'; did you mean images?",
    "+foo=1": "unknown setting 'foo'",
    "save=color,jpg": "unknown save 'jpg'; choose from color, side, overlay, png16, npy, exr, pfm, ply, glb",
    "save=[]": "save=[]: expected one or more values",
    "save=3": "unknown save '3'",
    "save=ply": "near_m=1 far_m=20",
    "colormap=jet": "unknown colormap 'jet'; choose from inferno, magma, viridis, turbo, spectral_r, gray",
    "video_scale=second": "unknown video_scale 'second'; choose from auto, frame, clip",
    "input_size=0": "input_size=0: expected a whole number of pixels, 14 or more",
    "input_size=big": "input_size: Value 'big'",
    "scales=[]": "scales=[]: expected factors on input_size",
    "scales=[1.0,-1.0]": "scales=[1.0, -1.0]: expected more than 0",
    "flip=sideways": "flip: Value 'sideways'",
    "near_m=1": "give both or neither",
    "taps=v2": "is a model with taps=v1, not v2",
    "max_depth=20": "is a model with max_depth=None, not 20",
    "batch_size=0": "batch_size=0: expected 1 or more",
    "workers=0": "workers=0: expected 1 or more",
    "threads=0": "threads=0: expected 1 or more",
    "focal_px=0": "focal_px=0.0: expected more than 0",
    "fov_deg=180": "fov_deg=180.0: expected more than 0 and less than 180",
    "precision=fp8": "choose from auto, bf16, fp16, fp32",
    "device=abacus": "device=abacus cannot be used",
    "cuda_graphs=true": "cuda_graphs=true needs a CUDA GPU, but the device is cpu",
    "overwrite=maybe": "overwrite: Value 'maybe'",
}


@pytest.mark.parametrize("mistake, expected", MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_ends_in_one_line(predict, photos: Path, mistake: str, expected: str) -> None:
    given = [] if mistake.startswith("images=") else [f"images={photos / '0.png'}"]
    ended = predict(*given, mistake)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert expected in ended.err


def test_reversed_range_is_refused(predict, photos: Path) -> None:
    ended = predict(f"images={photos}", "near_m=5", "far_m=2")
    assert ended.err == "error: near_m=5.0 far_m=2.0: expected near_m < far_m\n"


def test_an_empty_folder_is_an_error(predict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = predict(f"images={tmp_path / 'empty'}")
    assert ended.code == 2
    assert "no image or video there (.jpg" in ended.err


def test_help_shows_commands_and_settings_and_loads_nothing(nursery, tmp_path: Path) -> None:
    done = nursery.start("predict", ["--help"], "import depthany.predict", tmp_path).result()
    assert (done.code, done.err) == (0, "")
    for part in (
        "python -m depthany.predict checkpoint=",
        "video_scale: auto",
        "color side overlay png16 npy exr",
    ):
        assert part in done.out
    assert not list(tmp_path.iterdir())


def test_canonical_metres_are_scaled_to_the_camera(
    predict, metric_model: DenseModel, photos: Path, tmp_path: Path
) -> None:
    metric_model.trained_on = TrainedOn(("rooms",), 200.0, 28, canonical=True)
    save_model(metric_model, tmp_path / "canonical")
    words = [f"checkpoint={tmp_path / 'canonical'}", f"images={photos / '2.png'}", "save=npy,png16"]
    maps = []
    for name, camera in (("plain", []), ("own", ["focal_px=100"])):
        ended = predict(*words, *camera, f"out={tmp_path / name}")
        assert ended.code == 0, ended.err
        assert ("scaled from its camera to focal_px=100" in ended.out) == bool(camera)
        maps.append(np.load(tmp_path / name / "2.npy"))
        said = Image.open(tmp_path / name / "2_16bit.png").text["quantity"]
        one_camera = "depth in metres of a camera of focal length 200 px at a width of 28"
        assert said == ("depth in metres" if camera else one_camera)
    input_width = metric_model.preprocessing.input_shape(40, 50, 28)[1]
    np.testing.assert_allclose(maps[1], maps[0] * (100 * input_width / 50) / 200, rtol=1e-5)
    assert predict(*words, "focal_px=150", f"out={tmp_path / 'own'}").code == 2, "made for another camera"
