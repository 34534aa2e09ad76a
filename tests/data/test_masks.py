"""Masks of classes on tiny files: palettes, shifts, ids, and what must be refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthany.data.class_counts import class_notes
from depthany.data.class_list import ClassList, find_class, read_class_list, same_classes, voc_colours
from depthany.data.class_lists import ADE20K, CITYSCAPES, CITYSCAPES_RAW, VOC
from depthany.data.folder_masks import FolderMasks
from depthany.data.masks import read_mask
from depthany.data.samples import NoValidPixel
from depthany.data.sets.ade20k import Ade20k
from depthany.data.sets.cityscapes import Cityscapes
from depthany.data.sets.voc import Voc

SAMPLE = Path(__file__).resolve().parents[2] / "data/sample"


def write_rgb(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (9, 8, 7)).save(path)


def write_numbers(path: Path, numbers: list[list[int]], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(numbers, np.uint8))
    if palette:
        picture.putpalette([200, 10, 10] * 256)
    picture.save(path)


def folder(root: Path, numbers: list[list[int]], names: list[str] | None = None) -> FolderMasks:
    write_rgb(root / "images/a.png")
    write_numbers(root / "masks/a.png", numbers)
    return FolderMasks(str(root), names=names or ["wall", "sky"])


def test_palette_gives_numbers_not_colours(tmp_path: Path) -> None:
    write_numbers(tmp_path / "m.png", [[0, 15], [255, 3]], palette=True)
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 15], [255, 3]]


def test_colours_are_refused_and_gray_rgb_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (128, 64, 128)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png: .* a picture of mode RGB: colours have no numbers"):
        read_mask(tmp_path / "m.png")
    Image.new("RGB", (2, 2), (3, 3, 3)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[3, 3], [3, 3]]


def test_value_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the value 2 belongs to no class .1 such pixels.; names has 2"):
        folder(tmp_path, [[0, 1], [255, 2]]).labels(0)


def test_mask_of_255_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoValidPixel, match=r"no valid pixel .all of them are 255 or ignored.: remove the p"):
        folder(tmp_path, [[255, 255], [255, 255]]).labels(0)


def test_ignored_pixels_are_not_valid(tmp_path: Path) -> None:
    labels = folder(tmp_path, [[0, 1], [255, 1]]).labels(0)
    assert labels.unit == "class"
    assert labels.valid.tolist() == [[True, True], [False, True]]
    assert labels.values[labels.valid].tolist() == [0, 1, 1]


def test_ade20k_counts_from_1(tmp_path: Path) -> None:
    write_rgb(tmp_path / "images/training/a.jpg")
    write_numbers(tmp_path / "annotations/training/a.png", [[3, 1], [0, 150]])
    labels = Ade20k(str(tmp_path)).labels(0)
    assert labels.values[0].tolist() == [2, 0], "3 in the file is sky, class 2"
    assert labels.valid.tolist() == [[True, True], [False, True]]
    assert labels.values[1, 1] == 149
    assert (ADE20K.find("sky"), len(ADE20K.names)) == (2, 150)


def test_ade20k_read_as_numbered_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ADE20K count from 1, and 0 is everything else"):
        folder(tmp_path, [[3, 150], [0, 1]], list(ADE20K.names)).labels(0)


def write_city(root: Path, ending: str, numbers: list[list[int]]) -> None:
    write_rgb(root / "leftImg8bit/train/aachen/aachen_0_leftImg8bit.png")
    write_numbers(root / f"gtFine/train/aachen/aachen_0_gtFine_{ending}.png", numbers)


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path) -> None:
    write_city(tmp_path, "labelIds", [[7, 23], [0, 33]])
    labels = Cityscapes(str(tmp_path)).labels(0)
    assert labels.values[labels.valid].tolist() == [0, 10, 18]
    assert labels.valid.tolist() == [[True, True], [False, True]]
    assert CITYSCAPES.find("sky") == CITYSCAPES_RAW.find("sky") == 10


def test_label_ids_read_as_train_ids_are_named(tmp_path: Path) -> None:
    write_city(tmp_path, "labelTrainIds", [[7, 23], [0, 33]])
    with pytest.raises(ValueError, match=r"the value 33 .* look like the label ids of Cityscapes"):
        Cityscapes(str(tmp_path), labels="train").labels(0)


def test_voc_split_and_masks(tmp_path: Path) -> None:
    for stem in ("2007_1", "2007_2"):
        write_rgb(tmp_path / f"JPEGImages/{stem}.jpg")
        write_numbers(tmp_path / f"SegmentationClass/{stem}.png", [[0, 20], [255, 1]], palette=True)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_2\n")
    data = Voc(str(tmp_path), split="val")
    assert [data.name(i) for i in range(len(data))] == ["JPEGImages/2007_2.jpg"]
    assert data.labels(0).values[data.labels(0).valid].tolist() == [0, 20, 1]
    assert VOC.find("sky") is None
    with pytest.raises(ValueError, match=r"train.txt: no such list for split; choose from val"):
        Voc(str(tmp_path))


def test_classes_file_maps_stored_values(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text(
        "classes:\n  - {name: road, rgb: [1, 2, 3], ids: [7, 9]}\n  - {name: sky, ids: [23]}\nignore: [0]\n"
    )
    write_rgb(tmp_path / "images/a.png")
    write_numbers(tmp_path / "masks/a.png", [[7, 9], [0, 23]])
    data = FolderMasks(str(tmp_path))  # finds classes.yaml in its root
    assert data.classes.colours == ((1, 2, 3), voc_colours(2)[1])
    assert data.labels(0).values[data.labels(0).valid].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: 3", "expected `classes:` with a list"),
        ("classes: [{name: a, color: [1, 2, 3]}]", "unknown key 'color' of class 0"),
        ("classes: [a, a]", "2 classes; expected 1 to 255 with different names"),
        ("classes: [{name: a, ids: [1]}, {name: b, ids: [1]}]", "the stored value 1 has two meanings"),
        ("classes: [{name: a, rgb: [1, 2, 300]}]", "is not in 0..255"),
        ("klasses: [a]", "expected `classes:` with a list"),
        ("classes: [{name: no}]", "name=False of class 0 is no text: write it in quotes"),
        ("classes: [{name: a, ids: '23'}]", "ids='23' is no whole number or list of them"),
        ("classes: [{name: a, ids: [1.7]}]", r"ids=\[1.7\] is no whole number"),
        ("classes: [{name: a, ids: [true]}]", r"ids=\[True\] is no whole number"),
        ("classes: [a]\nignore: '7'", "ignore='7' is no whole number"),
    ],
)
def test_bad_classes_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_class_list(tmp_path / "c.yaml")
    assert str(tmp_path / "c.yaml") in str(error.value)


def test_value_zero_is_a_stored_value(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("classes: [{name: a, ids: 7}, {name: sky, ids: 0}]\nignore: 3")
    found = read_class_list(tmp_path / "c.yaml")
    assert (found.ids, found.ignored) == (((7,), (0,)), (3,))
    (tmp_path / "c.yaml").write_text("classes: [{name: a, ids: 1}]\nignore: 0")
    assert read_class_list(tmp_path / "c.yaml").lookup()[:3].tolist() == [255, 0, -1]


@pytest.mark.parametrize("wrong", [[[0, 255]] * 2, [[7, 255]] * 2])
def test_foreground_stored_as_255_is_refused(tmp_path: Path, wrong: list[list[int]]) -> None:
    names = [f"class_{i}" for i in range(8)]
    with pytest.raises(ValueError, match=r"data.labeled.mine: the mask that .*only . and 255.* ids: \[255\]"):
        class_notes({"data.labeled.mine": folder(tmp_path, wrong, names)})


def test_masks_that_may_lack_classes_are_kept(tmp_path: Path) -> None:
    assert "1 class not seen" in class_notes({"a": folder(tmp_path / "a", [[0, 0]] * 2)})[0]
    assert class_notes({"b": folder(tmp_path / "b", [[0, 255]] * 2, ["sky"])})
    assert class_notes({"c": folder(tmp_path / "c", [[0, 1, 255]] * 2)})
    (tmp_path / "c/classes.yaml").write_text("classes: [a, {name: b, ids: 255}]")
    write_numbers(tmp_path / "c/masks/a.png", [[0, 255, 255]] * 2)
    assert "b 66.7%" in class_notes({"c": FolderMasks(str(tmp_path / "c"))})[0]


def test_sets_with_other_classes_are_refused(tmp_path: Path) -> None:
    first, other = folder(tmp_path / "a", [[0, 1]] * 2), folder(tmp_path / "b", [[0, 1]] * 2, ["wall", "sea"])
    with pytest.raises(ValueError, match=r"b has other classes than a .'sea' for 'sky'."):
        same_classes({"a": first, "b": other})


def test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classes_file=None names=None: name the classes of the masks"):
        FolderMasks(str(tmp_path))


def test_class_is_found_by_one_of_its_names() -> None:
    assert find_class(["wall", "Sky", "sea"], "sky") == 1
    assert find_class(["wall", "air, sky"], "sky") == 1
    assert find_class(["skyscraper"], "sky") is None
    assert ClassList.numbered(["a", "b"]).lookup()[[0, 1, 2, 255]].tolist() == [0, 1, -1, 255]


def test_bundled_masks_are_read_by_the_same_reader() -> None:
    data = FolderMasks(str(SAMPLE / "labeled/val"), classes_file=str(SAMPLE / "classes.yaml"))
    sample = data.read(len(data) - 1)
    assert len(data) == 100
    assert sample.labels.valid.all()
    assert sample.image.shape[:2] == sample.labels.values.shape
    assert data.classes.names[13] == "sky"
    assert (sample.labels.values == 13).any(), "a street"
