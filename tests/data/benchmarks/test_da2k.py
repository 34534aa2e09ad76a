"""DA-2K: pairs of points, nearer one first."""

import json
from pathlib import Path

import pytest

from benchmark_trees import IMAGE, write_da2k
from depthany.data.benchmarks import OrdinalPairs


def test_points_are_row_column_with_nearer_first(tmp_path: Path) -> None:
    write_da2k(tmp_path)
    images = OrdinalPairs(str(tmp_path))
    assert [(images.name(i), images.scene(i)) for i in range(len(images))] == [
        ("indoor/room.jpg", "indoor"),
        ("underwater/fish.png", "underwater"),
    ]
    sample = images.read(1)
    assert sample.pairs == [((1, 7), (5, 0)), ((4, 6), (2, 3))]
    assert (sample.name, sample.scene) == ("underwater/fish.png", "underwater")
    assert sample.image.shape == (*IMAGE, 3)  # from RGBA
    assert sample.image[0, 0].tolist() == [9, 8, 7]


def test_points_outside_of_the_image_are_refused(tmp_path: Path) -> None:
    write_da2k(tmp_path)
    _annotate(tmp_path, {"point1": [7, 1], "point2": [0, 5], "closer_point": "point1"})
    with pytest.raises(ValueError, match=r"room\.jpg: point \(row 7, column 1\) is outside .* is 8x6"):
        OrdinalPairs(str(tmp_path)).read(0)


@pytest.mark.parametrize(
    "pair",
    [
        {"point1": [0, 0], "point2": [1, 1], "closer_point": "point3"},
        {"point1": [0, 0], "closer_point": "point1"},
        {"point1": [0], "point2": [1, 1], "closer_point": "point1"},
        ["point1"],
    ],
)
def test_annotations_of_another_form_name_the_image(tmp_path: Path, pair: object) -> None:
    write_da2k(tmp_path)
    _annotate(tmp_path, pair)
    with pytest.raises(
        ValueError, match=r"annotations\.json: indoor/room\.jpg: expected point1, point2 and clos"
    ):
        OrdinalPairs(str(tmp_path))


def _annotate(root: Path, pair: object) -> None:
    (root / "annotations.json").write_text(json.dumps({"indoor/room.jpg": [pair]}))


def test_folder_named_images_is_no_scene_type(tmp_path: Path) -> None:
    write_da2k(tmp_path / "images")
    stored = json.loads((tmp_path / "images/annotations.json").read_text())
    moved = {f"images/{path}": pairs for path, pairs in stored.items()}
    (tmp_path / "annotations.json").write_text(json.dumps(moved))
    images = OrdinalPairs(str(tmp_path))
    assert [images.scene(i) for i in range(2)] == ["indoor", "underwater"]


@pytest.mark.parametrize("stored", ["", "[]", "{}", "{"])
def test_annotations_that_are_no_object_are_refused(tmp_path: Path, stored: str) -> None:
    (tmp_path / "annotations.json").write_text(stored)
    with pytest.raises(ValueError, match=r"annotations\.json: (cannot read|expected an object)"):
        OrdinalPairs(str(tmp_path))
