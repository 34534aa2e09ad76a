"""The page, in a real browser if one is installed."""

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from depthany import load_model
from depthany.app import run
from depthany.commands.app_command import check, start
from depthany.config.entry import run_entry
from depthany.inference.demonstration import note_on_small_model, size_advice
from depthany.models.model import depth_anything, save_model
from depthany.models.output import Quantity

pytest.importorskip("gradio", reason="needs the extra app")
pytest.importorskip("trimesh", reason="needs the extra app")

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "app.yaml"


def settings(checkpoint: Path, **changes):
    cfg = OmegaConf.load(CONFIG)
    del cfg["defaults"], cfg["hydra"]
    return OmegaConf.merge(cfg, {"checkpoint": str(checkpoint), "precision": "fp32", "threads": 1, **changes})


@pytest.fixture(scope="module", autouse=True)
def micro_is_known(with_micro: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The tiny encoder is known in every test of this file."""
    with with_micro():
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a `relative` and a `metric` model of the tiny encoder."""
    folder = tmp_path_factory.mktemp("models")
    for name, max_depth in (("relative", None), ("metric", 20.0)):
        torch.manual_seed(0)
        save_model(depth_anything("micro", max_depth_m=max_depth, input_size=56), folder / name)
    return folder


@pytest.fixture(scope="module")
def asked_hosts() -> Iterator[set[str]]:
    """Host names that this process looked up."""
    hosts: set[str] = set()
    look_up = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *rest, **more: (hosts.add(str(host)), look_up(host, *rest, **more))[1],
        )
        yield hosts


@pytest.fixture(scope="module")
def address(checkpoints: Path, asked_hosts: set[str]) -> Iterator[str]:
    page = start(check(settings(checkpoints / "relative", max_upload_mb=1, max_megapixels=1)))
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((found for name in names if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is installed")
    with playwright.sync_playwright() as manager:
        browser = manager.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, address: str) -> Iterator:
    """The loaded page; `tab.foreign` lists its requests to other hosts."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(30_000)
    tab.foreign = []
    tab.on("request", lambda request: tab.foreign.append(request.url) if is_foreign(request.url) else None)
    tab.goto(address)
    tab.get_by_text("Colour map").wait_for()
    yield tab
    tab.close()


def is_foreign(url: str) -> bool:
    return not re.match(r"(https?://127\.0\.0\.1[:/]|data:|blob:|about:)", url)


def write_photo(path: Path, seed: int = 1) -> None:
    """Writes noise of 70 x 56 pixels."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (56, 70, 3), dtype=np.uint8)).save(path)


def drop(tab, path: Path) -> None:
    tab.locator("input[type=file]").first.set_input_files(str(path))


def wait_for_result(tab) -> None:
    tab.locator("button:has-text('16-bit PNG'):not([disabled])").wait_for()


def test_downloads_of_a_photo_hold_every_pixel(tab, tmp_path: Path) -> None:
    write_photo(tmp_path / "a photo.png")
    drop(tab, tmp_path / "a photo.png")
    wait_for_result(tab)
    assert tab.locator(".slider-wrap img, .image-container img, [data-testid='imageslider'] img").count() == 2
    with tab.expect_download() as download:
        tab.get_by_role("button", name="16-bit PNG").click()
    assert download.value.suggested_filename == "a photo_16bit.png"
    with Image.open(download.value.path()) as png:
        assert png.size == (70, 56)
        assert png.text["quantity"] == "disparity, of unknown scale and shift"
        stored = np.asarray(png)
    assert (stored.min(), stored.max()) == (0, 65535)

    tab.get_by_text("Point cloud", exact=True).click()
    tab.get_by_role("button", name="Make point cloud").click()
    tab.locator("button:has-text('PLY'):not([disabled])").wait_for()
    tab.locator("canvas").first.wait_for()  # of its view
    with tab.expect_download() as download:
        tab.get_by_role("button", name="PLY").click()
    header = Path(download.value.path()).read_bytes()[:400]
    assert header.startswith(b"ply\nformat binary_little_endian")
    assert f"element vertex {70 * 56}".encode() in header


def test_nothing_is_loaded_from_other_machines(tab, asked_hosts: set[str], tmp_path: Path) -> None:
    write_photo(tmp_path / "photo.png")
    drop(tab, tmp_path / "photo.png")
    wait_for_result(tab)
    assert not tab.foreign
    assert asked_hosts <= {"127.0.0.1", "localhost", "None", "b'127.0.0.1'"}


def test_cloud_range_is_labelled_as_assumed_and_checked(tab, tmp_path: Path) -> None:
    write_photo(tmp_path / "photo.png")
    drop(tab, tmp_path / "photo.png")
    wait_for_result(tab)
    tab.get_by_text("Point cloud", exact=True).click()
    tab.get_by_text("This model does not predict metres").wait_for()
    nearest = tab.get_by_label("Nearest (m), assumed")
    nearest.fill("30")
    nearest.press("Tab")
    tab.get_by_role("button", name="Make point cloud").click()
    tab.get_by_text("expected 0 < nearest < farthest").wait_for()


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("no photo.jpg", b"not a photo at all", "not a readable photo"),
        ("empty.png", b"", "not a readable photo"),
        ("vast.png", (2000, 1000), "more than 1 million pixels"),
        ("cut.png", "cut", "cannot read the image"),
        ("strip.png", (1, 9000), "pass a smaller input_size"),
    ],
)
def test_unusable_photo_leads_to_a_message(
    tab, tmp_path: Path, name: str, content: bytes | str | tuple[int, int], expected: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, tuple):
        Image.new("RGB", content).save(path)
    else:
        write_photo(path)
        path.write_bytes(path.read_bytes()[:-300])
    drop(tab, path)
    message = tab.locator("#message")
    message.get_by_text(expected).wait_for()
    assert name in message.inner_text()
    assert "Traceback" not in tab.content()
    write_photo(tmp_path / "good.png", seed=2)
    tab.get_by_label("Clear").or_(tab.get_by_label("Remove this file")).first.click()
    drop(tab, tmp_path / "good.png")
    wait_for_result(tab)
    message.get_by_text(expected).wait_for(state="hidden")


def test_a_file_beyond_the_upload_limit_is_refused(tab, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(1_500_000))
    drop(tab, tmp_path / "large.png")
    refusal = tab.get_by_text("exceed the maximum allowed size").first
    refusal.wait_for()
    assert refusal.is_visible()
    assert tab.get_by_role("button", name="16-bit PNG").is_disabled(), "nothing was predicted"


def test_metric_cloud_assumes_only_the_field_of_view(checkpoints: Path, tmp_path: Path) -> None:
    from depthany.inference.page import Page

    page = Page(load_model(checkpoints / "metric"), max_megapixels=1)
    write_photo(tmp_path / "photo.png")
    prediction, slider, *_ = page.predict(str(tmp_path / "photo.png"), 56, "gray")
    assert [side.shape for side in slider] == [(56, 70, 3)] * 2
    nearest = np.unravel_index(prediction.values.argmin(), prediction.values.shape)
    assert tuple(slider[1][nearest]) == (255, 255, 255), (
        "near is bright, though its number of metres is small"
    )
    download, view, message = page.cloud(prediction, None, None, 90)
    assert Path(view.value["path"]).read_bytes()[:4] == b"glTF"
    points = trimesh().load(download.value["path"]).vertices
    assert message == ""
    assert np.allclose(-points[:, 2], prediction.values.ravel(), rtol=1e-5)  # the view looks along -z
    left_edge = points[
        0
    ]  # at 90 degrees the left edge is as far to the left as it is away, less half a pixel
    assert left_edge[0] / -left_edge[2] == pytest.approx(-1 + 1 / 70, rel=1e-4)
    assert "expected 1 to 170 degrees" in page.cloud(prediction, None, None, 180)[-1]
    nowhere = replace(prediction, values=np.zeros_like(prediction.values))
    download, view, message = page.cloud(nowhere, None, None, 90)
    assert (download.value, view.value) == (None, None) and "no pixel has a depth" in message


def test_metres_are_read_under_the_pointer(browser, checkpoints: Path, tmp_path: Path) -> None:
    page = start(check(settings(checkpoints / "metric")))
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    pixels = np.random.default_rng(1).integers(0, 256, (56, 140, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    depth_m = load_model(checkpoints / "metric").infer(pixels, 56)
    try:
        tab.goto(page.local_url)
        tab.get_by_text("Colour map").wait_for()
        drop(tab, tmp_path / "a.png")
        wait_for_result(tab)
        for end in (depth_m.min(), depth_m.max()):  # of the colour bar
            tab.get_by_text(f"{end:.2f} m").first.wait_for()
        picture = tab.locator("#depth-slider img").first
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        scale = min(box["width"] / 140, box["height"] / 56)
        left, top = box["x"] + (box["width"] - scale * 140) / 2, box["y"] + (box["height"] - scale * 56) / 2
        for row, column in ((10, 20), (40, 130)):
            tab.mouse.move(left + (column + 0.5) * scale, top + (row + 0.5) * scale)
            tab.get_by_text(f"Under the pointer: {depth_m[row, column]:.2f} m").wait_for(timeout=5000)
    finally:
        tab.screenshot(path=tmp_path / "page.png")
        tab.close()
        page.close(verbose=False)


def test_unusable_size_keeps_the_picture(checkpoints: Path, tmp_path: Path) -> None:
    from depthany.inference.page import Page

    page = Page(load_model(checkpoints / "relative"), 4)
    write_photo(tmp_path / "photo.png")
    assert page.predict(str(tmp_path / "photo.png"), 56, "gray")[-1] == ""
    for size, words in ((None, "no number"), (3, "3"), (1000, "1000")):
        *kept, message = page.predict(str(tmp_path / "photo.png"), size, "gray")
        assert message.startswith(f"**Input size, {words}:** expected 56 to 112 pixels")
        assert kept == [{"__type__": "update"}] * 6, "nothing else changes"
    assert page.example is not None and page.read(page.example).shape[2] == 3


def test_advice_on_size_follows_from_training(checkpoints: Path) -> None:
    model = load_model(checkpoints / "relative")
    assert size_advice(model) == "This model was trained at 56 pixels; other sizes are mostly worse."
    model.input_size = 518
    assert size_advice(model) == "Larger is finer and slower."


def test_only_the_smallest_size_gets_a_note(checkpoints: Path) -> None:
    photo, own = "holiday/a.jpg", "data/sample/unlabeled/test/images/rooms/00000.jpg"
    model = load_model(checkpoints / "relative")
    assert note_on_small_model(model, [photo]) is None
    model.config["encoder"]["size"] = "vitt"
    assert "checkpoint=depth_anything_v2_vits.pth" in str(note_on_small_model(model, [own, photo]))
    assert note_on_small_model(model, [own]) is None
    assert "sample" not in str(note_on_small_model(model)), "the user may have trained it on other images"


def test_large_photo_is_shown_smaller(checkpoints: Path, monkeypatch) -> None:
    from depthany.inference import page as module
    from depthany.inference import page_cloud

    page = module.Page(load_model(checkpoints / "relative"), max_megapixels=10)
    monkeypatch.setattr(module, "SHOWN_PIXELS", 100)
    monkeypatch.setattr(page_cloud, "CLOUD_POINTS", 2_500)
    image = np.zeros((120, 300, 3), np.uint8)
    prediction = module.PredictedPhoto(
        image, np.linspace(0, 1, 36_000, dtype=np.float32).reshape(120, 300), "large"
    )
    assert [side.shape for side in page.show(prediction, "gray") or ()] == [(40, 100, 3)] * 2
    download, _view, message = page.cloud(prediction, 2, 10, 60)
    cloud = trimesh().load(download.value["path"]).vertices
    assert len(cloud) == 20 * 50
    assert "6th pixel" in message
    assert (cloud[0, 2], cloud[:, 2].max() <= -2) == (pytest.approx(-10), True)


def test_view_of_cloud_is_cut_where_depth_jumps(tmp_path: Path) -> None:
    from depthany.inference.output_settings import OutputSettings
    from depthany.inference.page_cloud import write_surface

    depth_m = np.full((3, 6), 2, np.float32)
    depth_m[:, 3:] = 4
    depth_m[0, 0] = 0  # unknown
    image = np.arange(54, dtype=np.uint8).reshape(3, 6, 3)
    write_surface(tmp_path / "a.glb", image, depth_m, OutputSettings(Quantity("depth_m", 10.0)))
    surface = trimesh().load(tmp_path / "a.glb", force="mesh")
    assert len(surface.faces) == 8 - 1 + 8  # two of each 2 x 2 pixels on one side, less one
    assert all(np.ptp(surface.vertices[face, 2]) == 0 for face in surface.faces)
    assert np.allclose(surface.face_normals, (0, 0, 1)), "seen from the camera"
    assert {tuple(colour) for colour in surface.visual.vertex_colors[:, :3]} == {
        tuple(pixel) for pixel in image.reshape(-1, 3)[1:]
    }


def trimesh():
    return pytest.importorskip("trimesh")


MISTAKES = {
    "checkpoint=no/such": "no/such",
    "checkpoint=???": "these settings need a value: checkpoint=...",
    "port=70000": "port=70000: expected 1 to 65535",
    "input_size=5": "input_size=5: expected a whole number of pixels, 14 or more",
    "max_upload_mb=0": "max_upload_mb=0.0: expected more than 0",
    "max_megapixel=5": "unknown setting 'max_megapixel'; did you mean max_megapixels?",
    "precision=int8": "unknown precision 'int8'",
}


@pytest.mark.parametrize("mistake, expected", MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_ends_in_one_line(
    checkpoints: Path, monkeypatch, capsys: pytest.CaptureFixture[str], mistake: str, expected: str
) -> None:
    arguments = [f"checkpoint={checkpoints / 'relative'}", "threads=1"]
    arguments = [each for each in arguments if not mistake.startswith("checkpoint=") or "threads" in each]
    monkeypatch.setattr("sys.argv", ["app", *arguments, mistake])
    assert run_entry("app", run) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert expected in error


def test_a_taken_port_ends_in_one_line(checkpoints: Path, monkeypatch, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["app", f"checkpoint={checkpoints / 'relative'}", f"port={port}"])
        assert run_entry("app", run) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and str(port) in error


def test_constant_map_is_said_on_the_page(tmp_path: Path) -> None:
    from depthany.inference.page import Page

    model = depth_anything("micro", input_size=56).eval()
    torch.nn.init.zeros_(model.head.conv3.weight)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    message = Page(model, max_megapixels=1).predict(str(tmp_path / "a.png"), 56, "gray")[-1]
    assert message.startswith("**Warning:** 1 of 1 maps are constant and say nothing about the image (a)")
