"""`python -m depthany.index`, the mixtures that it indexes, and training on what it made."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from depthany.config.entry import config_dir, plain, run_entry
from depthany.index import main, run

EIGHT = {  # arXiv 2401.10891, Table 1
    "sa_1b": 11.1e6,
    "open_images": 7.8e6,
    "bdd100k": 8.2e6,
    "places365": 6.5e6,
    "imagenet_21k": 13.1e6,
    "lsun": 9.8e6,
    "objects365": 1.7e6,
    "google_landmarks": 4.1e6,
}


def index(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["index", *arguments])
    return run_entry("index", run)


def large_set(root: Path) -> list[str]:
    """Settings that replace the plain folder of `data=folder` by an indexed set."""
    mine = "data.unlabeled.mine"
    return [f"dataset@{mine}=indexed_images", f"{mine}.root={root}", f"{mine}.kind=tar"]


@pytest.fixture
def tar_set(tiny_world, tmp_path: Path) -> Path:
    (tmp_path / "tars").mkdir()
    for k in range(3):
        shutil.make_archive(str(tmp_path / f"tars/{k}"), "tar", tiny_world.root / "unlabeled")
    return tmp_path / "tars"


def test_command_builds_and_updates_an_index(
    tar_set: Path, tiny_world, start, teacher_run, tmp_path, monkeypatch, capsys
) -> None:
    assert index(monkeypatch, "data=folder", *large_set(tar_set), "workers=1") == 0
    assert "mine: 18 images, index " in capsys.readouterr().out
    (tar_set / "2.tar").unlink()
    more = ("steps=2", f"stage.teacher={teacher_run}", "data.order=shards", "data.window=1")
    settings = tiny_world.settings("student", tmp_path / "run", *more)
    settings = [each for each in settings if not each.startswith("data.unlabeled")] + large_set(tar_set)
    ended = start(settings)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "data.unlabeled.mine: " in ended.err and "python -m depthany.index" in ended.err
    assert index(monkeypatch, "data=folder", *large_set(tar_set)) == 0
    assert "mine: 12 images" in capsys.readouterr().out
    ended = start(settings)
    assert ended.code == 0, ended.err
    assert "+ 12 unlabeled" in ended.out


def test_command_names_broken_tars_and_other_media(tar_set: Path, monkeypatch, capsys) -> None:
    os.truncate(tar_set / "1.tar", 5000)
    (tar_set / "more.zip").touch()
    assert index(monkeypatch, "data=folder", *large_set(tar_set), "workers=1") == 0
    out = capsys.readouterr().out
    assert ", 1 passed over: 1 .zip, index " in out
    assert f"warning: mine: {tar_set / '1.tar'} ends early, at byte " in out


def test_mixture_without_large_sets_is_an_error(monkeypatch, capsys) -> None:
    assert index(monkeypatch, "data=sample") == 2
    assert "none of the sets in data.unlabeled has a root and an index" in capsys.readouterr().err


def eight_sets(unlabeled_root: str) -> dict[str, dict]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        block = ["+unlabeled@data.unlabeled=depth_anything", f"+data.unlabeled_root={unlabeled_root}"]
        return plain(compose(overrides=block))["data"]["unlabeled"]


def test_unlabeled_sets_have_the_counts_of_the_paper() -> None:
    sets = eight_sets("/data")
    assert {name: entry["expected"] for name, entry in sets.items()} == EIGHT
    assert round(sum(entry["expected"] for entry in sets.values()) / 1e6) == 62
    assert {name: entry["kind"] for name, entry in sets.items() if entry["kind"] != "folder"} == {
        "sa_1b": "tar",
        "imagenet_21k": "tar",
        "google_landmarks": "tar",
        "lsun": "lmdb",
    }


def test_one_root_finds_all_eight_sets() -> None:
    roots = {entry["root"] for entry in eight_sets("/data").values()}
    assert len(roots) == 8
    assert all(root.startswith("/data/") for root in roots)
    assert {entry["root"] for entry in eight_sets("null").values()} == {None}


def test_help_of_the_entry_needs_no_data(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["index", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "Index the large unlabeled sets" in capsys.readouterr().out
