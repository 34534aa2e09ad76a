"""The bundled world: the files in git are what the script renders, and the masks are whole."""

import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data/sample"
LABELED = ("labeled/train", "labeled/val", "unlabeled/val", "unlabeled/test")
SKY_MM = 65535


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("render_sample")


def render(script, out: Path, split: int, index: int) -> tuple[list[Path], list[Path]]:
    """Runs the job of an image; returns its files and those in git."""
    jobs = [script.Job(script.SPLITS[split], index, root, 0, 6) for root in (out, SAMPLE)]
    for kind in jobs[0].split.kinds:
        jobs[0].path(kind).parent.mkdir(parents=True, exist_ok=True)
    script.run(jobs[0])
    ours, in_git = ([job.path(kind) for kind in job.split.kinds] for job in jobs)
    return ours, in_git


@pytest.mark.parametrize("split, index", [(0, 0), (3, 1)], ids=["room", "street"])
def test_script_renders_the_files_in_git(script, tmp_path: Path, split: int, index: int) -> None:
    mitsuba = pytest.importorskip("mitsuba")
    if (mitsuba.__version__, cv2.__version__) != ("3.9.1", "5.0.0"):
        pytest.skip("the bundled files were made with Mitsuba 3.9.1 and OpenCV 5.0.0")
    (depth, mask, image), (depth_in_git, mask_in_git, image_in_git) = render(script, tmp_path, split, index)
    assert depth.read_bytes() == depth_in_git.read_bytes()
    assert image.read_bytes() == image_in_git.read_bytes()
    np.testing.assert_array_equal(np.array(Image.open(mask)), np.array(Image.open(mask_in_git)))
    rendered = image.stat().st_mtime_ns
    mask.unlink()
    render(script, tmp_path, split, index)
    assert mask.exists() and image.stat().st_mtime_ns == rendered  # the mask alone is added
    mask.unlink()
    cv2.imwrite(str(depth), np.full_like(cv2.imread(str(depth), cv2.IMREAD_UNCHANGED), 1000))
    with pytest.raises(ValueError, match="shows another scene"):
        render(script, tmp_path, split, index)


@pytest.mark.parametrize("split", LABELED)
def test_masks_agree_with_images_and_sky(script, split: str) -> None:
    from sample_world.classes import CLASSES

    sky, seen = CLASSES.names.index("sky"), np.zeros(256, bool)
    images = sorted(path.relative_to(SAMPLE / split / "images") for path in (SAMPLE / split).rglob("*.jpg"))
    masks = sorted(
        path.relative_to(SAMPLE / split / "masks") for path in (SAMPLE / split / "masks").rglob("*.*")
    )
    assert [path.with_suffix("") for path in masks] == [path.with_suffix("") for path in images]
    for path in masks:
        with Image.open(SAMPLE / split / "masks" / path) as image:
            assert image.mode == "P"
            palette, classes = image.getpalette(), np.array(image)
        assert palette is not None and palette[: CLASSES.rgb.size] == CLASSES.rgb.ravel().tolist()
        seen[np.unique(classes)] = True
        depth_mm = cv2.imread(str(SAMPLE / split / "depth" / path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(classes == sky, depth_mm == SKY_MM, str(path))
        with Image.open(SAMPLE / split / "images" / path.with_suffix(".jpg")) as image:
            assert image.size == (classes.shape[1], classes.shape[0])
    assert np.flatnonzero(seen).tolist() == list(range(len(CLASSES.names)))  # all of them, and no others


def test_classes_have_distinct_names_and_colours(script) -> None:
    from sample_world.classes import CLASSES

    assert len(set(CLASSES.names)) == len(CLASSES.names) == len(np.unique(CLASSES.rgb, axis=0))
