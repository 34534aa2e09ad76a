"""Which settings may change when a run continues, and whether a set that moved is the same."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import pytest

from depthany.config.entry import config_dir, flat, plain
from depthany.data.class_list import ClassList
from depthany.data.identity import identity
from depthany.data.labeled import FolderDepth
from depthany.data.unlabeled import FolderImages
from depthany.training.changes import (
    FREE,
    LENGTH,
    MAY_CHANGE,
    MOVED,
    PLACE,
    REFUSED,
    defaults_of,
    find_changes,
    kind_of,
    listed,
    summarised,
)


def test_every_row_names_a_setting() -> None:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        words = ["stage=student", "experiment=none", "data=depth_anything_v1", "data.unlabeled_root=/u"]
        keys = flat(plain(hydra.compose("train", words)))
    assert {kind_of(key) for key in keys} == {PLACE, FREE, LENGTH, MOVED, REFUSED}
    for row in MAY_CHANGE:
        suffix = row.rpartition("*")[2]
        assert any(key.startswith(f"{row}.") or key.endswith(suffix) for key in keys), row


KINDS = {
    "seed": REFUSED,
    "batch_size": REFUSED,
    "data.labeled.mine.depth_scale": REFUSED,
    "data.labeled.mine.sky_masks": REFUSED,
    "data.labeled.mine.root": MOVED,
    "data.unlabeled.mine.root": MOVED,
    "data.val.mine.root": FREE,
    "data.valid": REFUSED,
    "workers": FREE,
    "workers_of_a_plugin": REFUSED,
    "stage.temperature": REFUSED,
    "device": FREE,
    "passes": LENGTH,
}


@pytest.mark.parametrize("key, kind", KINDS.items(), ids=KINDS)
def test_kind_of_a_change(key: str, kind: str) -> None:
    assert kind_of(key) == kind


def settings(**more: Any) -> dict[str, Any]:
    labeled = {"a": {"root": "/old/a"}, "b": {"root": "/old/b"}}
    begun = {"seed": 0, "optimizer": {"betas": (0.9, 0.999)}, "data": {"labeled": labeled, "unlabeled": {}}}
    return begun | more


def test_equal_settings_have_no_changes() -> None:
    written = settings(optimizer={"betas": [0.9, 0.999]})  # as YAML gives a tuple back
    assert find_changes(written, settings(), {}).all == ()


def test_changes_are_listed_in_words() -> None:
    changes = find_changes(settings(steps=6, compile=False), settings(seed=1, steps=None, compile=True), {})
    assert listed(changes.of(REFUSED)) == "seed: 0 -> 1"
    assert listed(changes.of(FREE, LENGTH)) == "compile: false -> true; steps: 6 -> null"


def test_other_order_of_sets_is_refused() -> None:
    other = {"labeled": {"b": {"root": "/old/b"}, "a": {"root": "/old/a"}}, "unlabeled": {}}
    assert (
        listed(find_changes(settings(), settings(data=other), {}).of(REFUSED)) == "data.labeled: a, b -> b, a"
    )


def test_set_that_gets_a_root_is_refused() -> None:
    before, now = ({"labeled": {"a": {"root": root}}, "unlabeled": {}} for root in (None, "/new"))
    changes = find_changes(settings(data=before), settings(data=now), {})
    assert listed(changes.of(REFUSED)) == "data.labeled.a.root: null -> /new"


def test_moved_set_with_other_names_is_refused() -> None:
    now = {"labeled": {"a": {"root": "/new/a"}, "b": {"root": "/old/b"}}, "unlabeled": {}}
    found = {"labeled": {"a": "1f", "b": "2f"}, "unlabeled": {}}
    same = find_changes(settings(files_found=found), settings(data=now, files_found=found), {})
    assert (listed(same.of(MOVED)), same.of(REFUSED), same.names_known) == (
        "data.labeled.a.root: /old/a -> /new/a",
        [],
        True,
    )
    others = found | {"labeled": {"a": "3f", "b": "2f"}}
    changed = find_changes(settings(files_found=found), settings(data=now, files_found=others), {})
    assert listed(changed.of(REFUSED)) == "data.labeled.a: other file names"
    assert not find_changes(settings(), settings(data=now, files_found=found), {}).names_known


BEGAN = (("road", (0, 7)), ("car", (1,)), ("sky", (2,)))
OTHER_CLASSES = {
    "order": (BEGAN[::-1], (), "class 0: road (stored as 0, 7) -> sky (stored as 2), and 1 more"),
    "name": (
        (("street", (0, 7)), *BEGAN[1:]),
        (),
        "class 0: road (stored as 0, 7) -> street (stored as 0, 7)",
    ),
    "ids": ((("road", (0, 8)), *BEGAN[1:]), (), "class 0: road (stored as 0, 7) -> road (stored as 0, 8)"),
    "fewer": (BEGAN[:2], (), "class 2: sky (stored as 2) -> none"),
    "ignored": (BEGAN, (9, 5), "ignored values: [] -> [5, 9]"),
    "same": ((("road", (7, 0)), *BEGAN[1:]), (), ""),
}


def class_list(
    rows: tuple[tuple[str, tuple[int, ...]], ...], ignored: tuple[int, ...] = ()
) -> dict[str, Any]:
    names, ids = zip(*rows)
    return {"a": ClassList(names, ((0, 0, 0),) * len(names), ids, ignored).stored_as()}


@pytest.mark.parametrize("rows, ignored, words", OTHER_CLASSES.values(), ids=OTHER_CLASSES)
def test_other_meaning_of_masks_is_refused(rows: Any, ignored: Any, words: str) -> None:
    began = settings(classes_found=class_list(BEGAN))
    changes = find_changes(began, settings(classes_found=class_list(rows, ignored)), {})
    assert listed(changes.of(REFUSED)) == (f"the classes of data.labeled.a: {words}" if words else "")
    assert not find_changes(settings(), began, {}).all, "a run of an older version"


def test_other_weights_of_one_name_are_refused() -> None:
    def of(source: Any, sha256: str) -> dict[str, Any]:
        return settings(model={"init": source}, weights_found={"model.init": sha256})

    line = "model.init=a.pth: the weights there have changed since the run began"
    for source in ("a.pth", {"source": "a.pth", "taps": "v2"}):
        assert listed(list(find_changes(of(source, "1f"), of(source, "2f"), {}).all)) == line
    assert not find_changes(of("a.pth", "1f"), of("a.pth", "1f"), {}).all
    renamed = find_changes(of("a.pth", "1f"), of("b.pth", "2f"), {})
    assert listed(renamed.of(REFUSED)) == "model.init: a.pth -> b.pth", "said once"
    older = find_changes(settings(model={"init": "a.pth"}), of("a.pth", "1f"), {})
    assert (older.all, older.weights_unknown) == ((), ("model.init",))


def test_sets_that_are_not_drawn_do_not_count() -> None:
    before = settings(images_found={"labeled": 4, "unlabeled": 6})
    now = settings(data={"labeled": {}, "unlabeled": {}}, images_found={"labeled": 0, "unlabeled": 6})
    assert find_changes(before, now, {}).all == ()


def test_added_validation_set_is_a_change() -> None:
    before, now = (settings(data={"labeled": {}, "val": val}) for val in ({}, {"a": {"root": "/a"}}))
    changes = find_changes(before, now, {})
    assert changes.validation
    assert not changes.of(REFUSED)
    assert not find_changes(settings(), settings(deterministic=True), {}).all, "a setting newer than the run"


@dataclass
class Inner:
    power: float = 1.0


@dataclass
class Outer:
    seed: int
    ema: float | None = None
    inner: Inner = field(default_factory=Inner)


def test_older_run_did_what_newer_defaults_do() -> None:
    older = defaults_of(Outer(seed=3))
    assert older == {"ema": None, "inner.power": 1.0}
    began = {"seed": 3}
    assert find_changes(began, {"seed": 3, "ema": None, "inner": {"power": 1.0}}, older).all == ()
    assert listed(list(find_changes(began, {"seed": 3, "ema": 0.9}, older).all)) == "ema: null -> 0.9"


@pytest.mark.parametrize("kind", ["labeled", "unlabeled"])
def test_identity_follows_names_not_the_root(own_world, tmp_path: Path, kind: str) -> None:
    def of(root: Path) -> str:
        return identity(FolderDepth(str(root)) if kind == "labeled" else FolderImages(str(root)))

    root = own_world.root / kind
    shutil.copytree(root, tmp_path / "moved")
    assert of(tmp_path / "moved") == of(root)
    for path in sorted((tmp_path / "moved").rglob("*_0.*")):
        path.rename(path.with_name(f"z{path.suffix}"))
    assert of(tmp_path / "moved") != of(root), "the order of the images would be another one"


def test_many_changes_name_whole_sets_and_are_few() -> None:
    options = {f"key_{i}": i for i in range(30)}
    began = {"data": {"labeled": {"sample": options}, "val": {"rooms": options}}, "seed": 0}
    now = {"data": {"labeled": {"mine": options}, "val": {"rooms": options}}, "seed": 1}
    found = find_changes(began, now, {})
    assert len(found.all) == 61
    sets = "data.labeled.mine: added; data.labeled.sample: left out"
    assert summarised(found.of(REFUSED)) == f"{sets}; seed: 0 -> 1"
    options_now = {key: value + 1 for key, value in options.items()}
    changed = find_changes({"stage": options}, {"stage": options_now}, {})
    assert summarised(changed.of(REFUSED)).endswith("stage.key_12: 12 -> 13; and 25 more")
