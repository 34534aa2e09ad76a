"""A file is whole or not there."""

import os
from pathlib import Path

import pytest

from depthany.system.files import require_own_results, write_atomically, write_shared


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=rf"cannot write {path}: No space left on device; .* are complete"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_replaces_file_and_makes_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    for text in ("first", "second"):
        write_atomically(path, lambda partial, text=text: partial.write_text(text))
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_unfinished_file_is_not_visible(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.txt", []

    def write(partial: Path) -> None:
        partial.write_text("half")
        seen.append(path.exists())

    write_atomically(path, write)
    assert seen == [False]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"cannot write {tmp_path / 'file' / 'a'}"):
        write_atomically(tmp_path / "file" / "a", lambda partial: partial.touch())


def test_written_file_has_the_umasks_permissions(
    tmp_path: Path,
) -> None:
    def private(path: Path) -> None:
        path.unlink()
        path.touch(0o600)

    write_atomically(tmp_path / "a", private)
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


FOREIGN = {
    "results.json": '{"step": 6, "scores": {}}',  # of a training run
    "results.json ": "not JSON",
    "per_image.csv": "mine",
}


@pytest.mark.parametrize("name, text", FOREIGN.items(), ids=FOREIGN)
def test_results_of_others_are_not_replaced(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name.strip()).write_text(text)
    with pytest.raises(ValueError, match=rf"holds {name.strip()}, which no earlier call .* another out="):
        require_own_results(tmp_path, "results.json", "protocols", ("per_image.csv",))


def test_own_results_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    require_own_results(tmp_path, "results.json", "protocols", ("per_image.csv",))
    (tmp_path / "results.json").write_text('{"protocols": {}}')
    (tmp_path / "per_image.csv").write_text("ours")
    require_own_results(tmp_path, "results.json", "protocols", ("per_image.csv",))
    contents = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert contents == {"notes.txt": "mine", "results.json": '{"protocols": {}}', "per_image.csv": "ours"}
    with pytest.raises(ValueError, match=r"holds results\.json, per_image\.csv, which no earlier call"):
        require_own_results(tmp_path, "results.json", "sets", ("per_image.csv",))


def test_first_of_several_writers_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    for name, link in (("a", os.link), ("b", refuse)):  # b: a file system without links
        monkeypatch.setattr("os.link", link)
        path = tmp_path / name / "note.json"
        assert write_shared(path, "first", replace=False)
        assert not write_shared(path, "second", replace=False)
        assert path.read_text() == "first"
        assert write_shared(path, "third", replace=True)
        assert path.read_text() == "third"
        assert list(path.parent.iterdir()) == [path]
