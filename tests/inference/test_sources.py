"""What `images` may name, and the names of the results."""

from collections import Counter
from pathlib import Path

import pytest

from depthany.data import image_formats
from depthany.data.image_formats import describe_passed_over
from depthany.inference.sources import find_sources


@pytest.fixture
def trip(tmp_path: Path) -> Path:
    for name in (
        "b.JPG",
        "day 1/a.png",
        "day 1/deep/ü (1).webp",
        "day 1/clip.mp4",
        "notes.txt",
        "x.raw",
        "._b.jpg",
    ):
        path = tmp_path / "trip" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "trip"


def names(images: object, out: Path = Path("/elsewhere")) -> list[str]:
    return [source.name for source in find_sources(str(images), out)]


def test_names_follow_the_folders(trip: Path) -> None:
    assert names(trip) == ["b", "day 1/a", "day 1/clip", "day 1/deep/ü (1)"]


def test_pattern_names_begin_after_its_last_plain_folder(trip: Path) -> None:
    assert names(trip / "day 1" / "**" / "*") == ["a", "clip", "deep/ü (1)"]
    assert names(trip / "*" / "*.png") == ["day 1/a"]


def test_existing_file_with_brackets_is_no_pattern(trip: Path) -> None:
    (trip / "a[1].jpg").touch()
    assert names(trip / "a[1].jpg") == ["a[1]"]


def test_list_names_begin_at_the_common_folder(trip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trip)
    (trip / "list.txt").write_text("day 1/a.png\n\n  b.JPG  \nday 1/../b.JPG\nday 1/missing.jpg\n", "utf-8")
    assert names("list.txt") == ["day 1/a", "b", "day 1/missing"]


def test_named_file_may_have_any_suffix(trip: Path) -> None:
    assert names(trip / "x.raw") == ["x"]


def test_files_that_differ_in_suffix_keep_it(trip: Path) -> None:
    for name in ("B.png", "day 1/a.jpg"):
        (trip / name).touch()
    assert names(trip) == ["B.png", "b.JPG", "day 1/a.jpg", "day 1/a.png", "day 1/clip", "day 1/deep/ü (1)"]


def test_files_with_the_same_results_are_refused(trip: Path) -> None:
    for name in ("b.png", "b.png.jpg"):
        (trip / name).touch()
    with pytest.raises(ValueError, match=r"b\.png\.jpg and .*b\.png would have the same results"):
        names(trip)


def test_earlier_results_are_not_predicted(trip: Path) -> None:
    (trip / "out/day 1").mkdir(parents=True)
    (trip / "out/day 1/a_color.png").touch()
    assert names(trip, trip / "out") == names(trip / "**", trip / "out") == names(trip)[:4]
    with pytest.raises(ValueError, match="is the folder of the images"):
        names(trip, trip)


def test_results_may_lie_above_the_images(trip: Path) -> None:
    assert names(trip / "day 1", trip) == ["a", "clip", "deep/ü (1)"]


def test_linked_folders_are_searched_without_loops(trip: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/more").mkdir(parents=True)
    (tmp_path / "disk/more/c.png").touch()
    (trip / "linked").symlink_to(tmp_path / "disk")
    (trip / "day 1/loop").symlink_to(trip)
    expected = ["b", "day 1/a", "day 1/clip", "day 1/deep/ü (1)", "linked/more/c"]
    assert names(trip) == names(trip / "**") == expected


def test_linked_results_are_not_predicted(trip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b_color.png").touch()
    before = names(trip)
    (trip / "results").symlink_to(tmp_path / "out")
    assert names(trip, tmp_path / "out") == names(trip / "**", tmp_path / "out") == before
    assert "results/b_color" in names(trip)


@pytest.mark.parametrize(
    "images, expected",
    [
        ("nothing.jpg", "no such file or folder"),
        ("*.nothing", "no image or video there"),
        ("empty", "no image or video there"),
        ("empty.txt", "the list is empty"),
        ("binary.txt", "expected UTF-8 text"),
    ],
)
def test_no_image_is_an_error(tmp_path: Path, images: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=expected):
        names(tmp_path / images)


def test_media_that_are_not_predicted_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)
    for name in (
        "a.jpg",
        "b.mpo",
        "c.AVIF",
        "d.HEIC",
        "sub/e.heic",
        "f.gif",
        "g.zip",
        "._h.gif",
        "i.txt",
        "j.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    passed_over = Counter()
    found = find_sources(str(tmp_path), Path("/elsewhere"), passed_over)
    assert [source.path.name for source in found] == ["a.jpg", "b.mpo", "c.AVIF"]
    text = "4 passed over: 2 .heic (install depthany[heic]), 1 .gif, 1 .zip"
    assert describe_passed_over(passed_over) == text
    with pytest.raises(ValueError, match=r"no image or video there .*; 1 passed over: 1 \.heic \(install"):
        find_sources(str(tmp_path / "sub/*"), Path("/elsewhere"))
    monkeypatch.setattr(image_formats, "has_heic", lambda: True)
    assert len(find_sources(str(tmp_path), Path("/elsewhere"))) == 5
