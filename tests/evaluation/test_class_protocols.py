"""The protocols of classes: complete, sourced, and read by their readers on tiny trees."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from depthany.config.entry import config_dir
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.protocol_files import choose

KEYS = {"name", "dataset", "count", "task", "input_size", "eval_size", "window", "stride", "flip", "metrics"}
COUNTS = {"voc_val": 1449, "ade20k_val": 2000, "cityscapes_val": 500}
FILES = {  # image, mask
    "voc_val": ("JPEGImages/a.jpg", "SegmentationClass/a.png"),
    "ade20k_val": ("images/validation/a.jpg", "annotations/validation/a.png"),
    "cityscapes_val": ("leftImg8bit/val/b/b_leftImg8bit.png", "gtFine/val/b/b_gtFine_labelIds.png"),
}


def of_classes() -> list[str]:
    paths = sorted((config_dir() / "protocol").glob("*.yaml"))
    return [path.stem for path in paths if OmegaConf.load(path).get("task") == "classes"]


@pytest.mark.parametrize("stem", of_classes())
def test_protocol_of_classes_is_complete(stem: str) -> None:
    protocol = OmegaConf.load(config_dir() / "protocol" / f"{stem}.yaml")
    assert set(protocol) == KEYS | {"sources", "published"}
    assert list(protocol.metrics) == ["miou", "pixel_accuracy", "class_accuracy"]
    assert protocol.count == COUNTS.get(stem, 100 if stem.startswith("sample") else None)
    assert all(0 < figures["miou"] < 1 for figures in protocol.published.values())


@pytest.mark.parametrize("stem", FILES)
def test_reader_of_protocol_reads_its_layout(stem: str, tmp_path: Path) -> None:
    image, mask = (tmp_path / name for name in FILES[stem])
    for path in (image, mask):
        path.parent.mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(image)
    Image.fromarray(np.array([[7, 7, 7], [11, 11, 11]], np.uint8)).save(mask)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    roots = OmegaConf.create({stem.removesuffix("_val"): str(tmp_path)})
    ((chosen,), _) = choose([stem], roots, OmegaConf.create({"count": 1}))
    dataset = chosen.open()
    assert len(dataset) == 1
    assert dataset.read(0).labels.valid.all()
    with pytest.raises(ValueError, match=f"has {COUNTS[stem]} images, but"):
        choose([stem], roots, OmegaConf.create({}))[0][0].open()


@pytest.mark.parametrize("stem", FILES)
def test_protocol_turns_images_as_training_does(stem: str) -> None:
    of_training = OmegaConf.load(config_dir() / f"dataset/{stem.removesuffix('_val')}.yaml").exif_orientation
    of_protocol = OmegaConf.load(config_dir() / f"protocol/{stem}.yaml").dataset.get("exif_orientation")
    assert of_protocol == of_training


def test_windows_are_for_classes() -> None:
    with pytest.raises(ValueError, match="window=28 is for task=classes"):
        Protocol("p", window=28)
    with pytest.raises(ValueError, match="stride=30 window=28: expected stride <= window"):
        Protocol("p", task="classes", window=28, stride=30)
