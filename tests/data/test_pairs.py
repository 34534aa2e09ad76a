"""Pairs of files: those that a list names, those that a layout gives, and masks of sky beside them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthany.data.folder_depth import FolderDepth
from depthany.data.layouts import Layout
from depthany.data.pairs import Pair, Pairs, missing, read_list, walk
from depthany.data.samples import NoValidPixel
from depthany.data.unlabeled import FolderImages, IndexedImages
from depthany.inference.sources import find_sources


def write(root: Path, stem: str, depth_mm: object) -> None:
    stored = np.asarray(depth_mm, np.uint16)
    for name in ("images", "depth"):
        (root / name / stem).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", stored.shape[::-1]).save(root / "images" / f"{stem}.png")
    Image.fromarray(stored).save(root / "depth" / f"{stem}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(3):
        write(tmp_path, f"s/{i}", [[1000 * (i + 1), 0, 500]])
    return tmp_path


def test_list_chooses_pairs_and_their_order(root: Path) -> None:
    (root / "list.txt").write_text(
        "# two of three\nimages/s/2.png depth/s/2.png 721.5\n\nimages/s/0.png\tdepth/s/0.png\n"
    )
    dataset = FolderDepth(str(root), depth_scale=1000, list_file=str(root / "list.txt"))
    assert [float(dataset.labels(i).disparity[0, 0]) for i in range(len(dataset))] == [
        pytest.approx(1 / 3),
        1.0,
    ]


def test_missing_listed_files_are_counted_and_ten_named(root: Path) -> None:
    lines = [f"images/s/{i}.png depth/s/{i}.png" for i in range(3)]
    lines += [f"images/s/{i}.png depth/gone/{i}.png" for i in range(3, 12)]
    (root / "list.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError) as failure:
        FolderDepth(str(root), depth_scale=1000, list_file=str(root / "list.txt"), allow_incomplete=True)
    assert "18 file(s) of 24 do not exist" in str(failure.value)
    assert str(failure.value).count(".png") == 10
    assert str(failure.value).endswith(", ...")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the list names no pair"),
        ("images/0.png\n", "line 1: expected an image and its depth file, got 'images/0.png'"),
        ("a b\nonly\tone tab\nc\n", "line 3: expected an image and its depth file"),
    ],
)
def test_list_without_pairs_or_columns_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / "list.txt")
    with pytest.raises(ValueError, match=r"none\.txt: cannot read the list of pairs: No such file"):
        read_list(tmp_path / "none.txt")


def test_paths_may_hold_blanks_between_tabs(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("my images/a b.png\tmy depth/a b.png\n")
    assert read_list(tmp_path / "list.txt") == [("my images/a b.png", "my depth/a b.png")]


def masks(root: Path, *stems: str, shape: tuple[int, int] = (1, 3)) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[0, 1:] = 1
    for stem in stems:
        (root / "sky" / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / "sky" / f"{stem}.png")


def test_nonzero_sky_mask_has_disparity_zero(root: Path) -> None:
    masks(root, "s/0", "s/1", "s/2")
    labels = FolderDepth(str(root), depth_scale=1000, sky_masks="sky").labels(0)
    assert labels.mask.tolist() == [[True, True, True]]
    assert labels.disparity.tolist() == [[1, 0, 0]]  # over the hole, and over a measured number
    assert FolderDepth(str(root), depth_scale=1000).labels(0).mask.tolist() == [[True, False, True]]


def test_pair_without_sky_mask_is_unpaired(root: Path) -> None:
    masks(root, "s/0", "s/2")
    with pytest.raises(ValueError, match=r"1 file\(s\) without partner .*s/1 \(no sky mask\)"):
        FolderDepth(str(root), depth_scale=1000, sky_masks="sky")
    dataset = FolderDepth(str(root), depth_scale=1000, sky_masks=str(root / "sky"), allow_incomplete=True)
    assert [pair.name for pair in dataset.pairs] == ["s/0", "s/2"]


def masks_of_sky_command(out: Path, images: Path) -> None:
    """White masks under the names that `depthany.sky images= out=` gives them."""
    for source in find_sources(str(images), out):
        (out / source.name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[0, 0, 1]], bool)).save(out / f"{source.name}.png")


def test_masks_fit_images_with_a_suffix(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    np.save(root / "a_depth.npy", np.ones((1, 3), np.float32))
    Image.new("RGB", (3, 1)).save(root / "a_rgb.png")
    Image.new("RGB", (3, 1)).save(root / "a_rgb.jpg")  # so that depthany.sky keeps the suffix
    masks_of_sky_command(tmp_path / "sky", root)
    ends = {"image_suffix": "_rgb.png", "depth_suffix": "_depth.npy"}
    found = FolderDepth(str(root), ".", ".", sky_masks=str(tmp_path / "sky"), **ends)
    assert found.labels(0).sky.tolist() == [[False, False, True]]
    (root / "a_rgb.jpg").unlink()
    (tmp_path / "sky/a_rgb.png.png").rename(tmp_path / "sky/a_rgb.png")
    assert FolderDepth(str(root), ".", ".", sky_masks=str(tmp_path / "sky"), **ends).labels(0).sky.any()


def test_masks_fit_images_of_a_list(root: Path) -> None:
    masks_of_sky_command(root / "sky", root / "images")
    image = next((root / "images/s").glob("1.*"))
    depth = next((root / "depth/s").glob("1.*"))
    (root / "list.txt").write_text(f"images/s/{image.name} depth/s/{depth.name}\n")
    listed = FolderDepth(str(root), depth_scale=1000, sky_masks="sky", list_file=str(root / "list.txt"))
    assert listed.labels(0).sky.tolist() == [[False, False, True]]


def test_photo_of_sky_alone_names_its_mask(root: Path) -> None:
    masks(root, "s/0", "s/1", "s/2")
    Image.fromarray(np.ones((1, 3), np.uint8)).save(root / "sky/s/0.png")
    with pytest.raises(NoValidPixel, match=r"outside the sky of sky_masks, .*sky/s/0\.png: remove"):
        FolderDepth(str(root), depth_scale=1000, sky_masks="sky").labels(0)


def test_sky_mask_of_another_size_is_refused(root: Path) -> None:
    masks(root, "s/0", "s/1", "s/2", shape=(2, 3))
    with pytest.raises(
        ValueError, match=r"sky/s/0\.png: sky mask is 3x2, its depth map .*depth/s/0\.png is 3x1"
    ):
        FolderDepth(str(root), depth_scale=1000, sky_masks="sky").labels(0)


def test_compact_pairs_equal_their_rows(tmp_path: Path) -> None:
    rows = [
        ("ä/1", "images/ä/1.png", "/elsewhere/1.h5"),
        ("", "i", "d"),
        ("2", "images/2.png", "depth/2.png"),
    ]
    pairs = Pairs(tmp_path, rows)
    expected = [Pair(name, tmp_path / image, tmp_path / depth) for name, image, depth in rows]
    assert list(pairs) == expected
    assert [pairs[-1], pairs[-3]] == [expected[2], expected[0]]
    assert pairs[1:] == expected[1:]
    with pytest.raises(IndexError):
        pairs[3]


def test_only_files_whose_groups_agree_are_partners(tmp_path: Path) -> None:
    layout = Layout(r"(?:(.*)/)?rgb", r"(\d+)\.jpg", r"(?:(.*)/)?depth", r"d(\d+)\.png", skip="other")
    names = "a/rgb/1.jpg a/depth/d2.png b/rgb/2.jpg b/depth/d2.png a/other/rgb/9.jpg rgb/3.jpg depth/d3.png"
    for name in [*names.split(), "b/rgb/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pairs, unpaired = layout.find(tmp_path)
    assert pairs == [("b/rgb/2.jpg", "b/depth/d2.png"), ("rgb/3.jpg", "depth/d3.png")]
    assert unpaired == ["a/depth/d2.png", "a/rgb/1.jpg"]


def test_walk_enters_linked_but_not_hidden_folders(tmp_path: Path) -> None:
    for name in ("disk/x/1.png", "set/.trash/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "disk/x", tmp_path / "set/x")
    assert dict(walk(tmp_path / "set")) == {"": [], "x": ["1.png"]}
    assert missing(tmp_path, ["set/x/1.png", "set/x/2.png", "gone/1.png"]) == ["set/x/2.png", "gone/1.png"]


def kept(root: Path, text: str, encoding: str = "utf-8") -> list[str]:
    (root / "bad.txt").write_text(text, encoding)
    return [pair.name for pair in FolderDepth(str(root), exclude_file="bad.txt").pairs]


def test_hidden_folders_are_not_listed(root: Path) -> None:
    for folder in (".Trash-1000/files", "s/.thumbnails"):
        write(root, f"{folder}/1", [[1000]])
    dataset = FolderDepth(str(root))
    assert [pair.name for pair in dataset.pairs] == ["s/0", "s/1", "s/2"]
    (root / "images").rename(root / ".photos")  # the folder itself may be hidden
    assert len(FolderImages(str(root / ".photos"))) == 3
    index = IndexedImages(str(root / ".photos"), index_dir=str(root / "index"))
    assert len(index) == 3


@pytest.mark.parametrize("line", ["s/1", "s/1.png", "images/s/1", "images/s/1.png", "./images/s/1.png"])
def test_excluded_image_is_named_in_any_way(root: Path, line: str) -> None:
    assert kept(root, line) == ["s/0", "s/2"]
    assert kept(root, f"{line}\ns/2\n", "utf-8-sig") == ["s/0"]  # Windows editors begin with a mark


def test_exclusion_without_slash_names_folders_only(root: Path) -> None:
    write(root, "0", [[1000]])
    write(root, "t/0", [[1000]])
    assert kept(root, "0") == ["s/0", "s/1", "s/2", "t/0"]
    assert kept(root, "s") == ["0", "t/0"]


def test_excluded_line_may_name_unpaired_image(root: Path) -> None:
    (root / "depth/s/1.png").unlink()
    assert kept(root, "s/1\ns/2.png") == ["s/0"]
    with pytest.raises(ValueError, match="without partner"):
        kept(root, "s/2")
