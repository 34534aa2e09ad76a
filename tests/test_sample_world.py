"""The bundled world: the files in git are what the script renders, and the masks are whole."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

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


def files(script, out: Path, split: int, index: int) -> tuple[Any, list[Path]]:
    """Returns the job that renders an image, and its depth, mask and image."""
    job = script.Job(script.SPLITS[split], index, out, 0, 6)
    paths = [job.path(kind) for kind in job.split.kinds]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    return job, paths


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("split, index", [(0, 0), (3, 1)], ids=["room", "street"])
def test_script_renders_the_files_in_git(script, tmp_path: Path, split: int, index: int) -> None:
    mitsuba = pytest.importorskip("mitsuba")
    if (mitsuba.__version__, cv2.__version__) != ("3.9.1", "5.0.0"):
        pytest.skip("the bundled files were made with Mitsuba 3.9.1 and OpenCV 5.0.0")
    job, (depth, mask, image) = files(script, tmp_path, split, index)
    _, (depth_in_git, mask_in_git, image_in_git) = files(script, SAMPLE, split, index)
    script.run(job)
    assert depth.read_bytes() == depth_in_git.read_bytes()
    assert image.read_bytes() == image_in_git.read_bytes()
    np.testing.assert_array_equal(pixels(mask), pixels(mask_in_git))


def test_missing_mask_is_added_alone(script, tmp_path: Path) -> None:
    pytest.importorskip("mitsuba")
    job, (depth, mask, image) = files(script, tmp_path, 1, 2)
    _, (depth_in_git, mask_in_git, image_in_git) = files(script, SAMPLE, 1, 2)
    shutil.copy(depth_in_git, depth)
    image.write_bytes(b"an image")
    assert job.missing() == ("masks",)
    script.run(job)
    assert image.read_bytes() == b"an image" and depth.read_bytes() == depth_in_git.read_bytes()
    assert np.mean(pixels(mask) != pixels(mask_in_git)) < 0.001
    mask.unlink()
    shutil.copy(image_in_git.parents[2] / "depth/rooms/00004.png", depth)
    with pytest.raises(ValueError, match=r"00002.png shows another scene.*pass the --seed"):
        script.run(job)
    assert not mask.exists()


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
            assert image.mode == "P" and image.tile[0][3] == "P"  # 8 bits a pixel
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


def test_point_pairs_follow_the_true_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    made = importlib.import_module("sample_pairs").annotate(SAMPLE / "labeled/val", seed=0)
    stored = json.loads((SAMPLE / "labeled/val/annotations.json").read_text())
    assert made == stored
    assert {name.split("/")[1] for name in stored} == {"rooms", "streets"}
    ratios = list[float]()
    for name, pairs in stored.items():
        path = SAMPLE / "labeled/val" / name.replace("images", "depth").replace(".jpg", ".png")
        depth_mm = pixels(path).astype(float)
        for pair in pairs:
            one, other = (depth_mm[tuple(pair[f"point{k}"])] for k in (1, 2))
            assert pair["closer_point"] == ("point1" if one < other else "point2")
            ratios.append(max(one, other) / min(one, other))
    assert min(ratios) >= 1.1
    assert 0.4 < np.mean(np.less(ratios, 1.3)) < 0.6
