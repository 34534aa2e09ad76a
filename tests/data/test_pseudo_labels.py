"""Pseudo-labels in their store: what a label loses, what a shard holds, and what damage is noticed."""

import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from depthany.data.images import Photo
from depthany.data.indexed.index_file import Index
from depthany.data.pseudo_labels.codec import STEPS, decode_label, encode_label
from depthany.data.pseudo_labels.shards import NewLabel
from depthany.data.pseudo_labels.store import (
    PseudoLabels,
    ShardRange,
    StoreSettings,
    begin_store,
    finish_store,
    read_manifest,
    read_record,
    write_shard,
)
from depthany.data.pseudo_labels.verify import verify_shards
from depthany.data.transforms import Crop
from depthany.data.unlabeled import FolderImages, IndexedImages

HEADER = StoreSettings(
    {"weights_sha256": "ab"}, {"input_size": 28}, 3, {"web": {"images": 8, "identity": "cd"}}
)


def map_of(index: int, height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(index).random((height, width), np.float32) * (index + 1) + index


def write_store(store: Path, missing: tuple[int, ...] = (4,)) -> Path:
    """Eight images in shards of three, of two sizes, one of them without label."""
    begin_store(store, HEADER)
    for shard in HEADER.shards():
        found = [i for i in range(shard.first, shard.last) if i not in missing]
        labels = [NewLabel(i, (10, 14), encode_label(map_of(i, width=7 + i % 2))) for i in found]
        left_out = [(i, "damaged", f"{i}.jpg: bad") for i in range(shard.first, shard.last) if i in missing]
        write_shard(store, shard, labels[::-1], left_out)
    assert finish_store(store)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def problems(store: Path) -> list[str]:
    return [problem for checked in verify_shards(store) for problem in checked.problems]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (37, 53)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "far from zero"])
def test_decoded_label_is_within_half_a_step(shape: tuple[int, int], kind: str) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    disparity = np.sin(y / 9) + x / 50
    if kind == "noise":
        disparity = np.random.default_rng(0).random(shape, np.float32)
    if kind == "far from zero":
        disparity = disparity + 20
    disparity = disparity.astype(np.float32)
    found = decode_label(encode_label(disparity))
    range_ = float(np.ptp(disparity))
    rounding = np.spacing(np.abs(disparity).max())  # of float32 itself
    assert found.dtype == np.float32
    assert np.abs(found - disparity).max() <= 0.51 * range_ / STEPS + rounding


def test_constant_map_survives_exactly() -> None:
    assert (decode_label(encode_label(np.full((4, 6), 2.5, np.float32))) == 2.5).all()


def test_jumps_of_the_whole_range_survive() -> None:
    disparity = np.indices((16, 16)).sum(0) % 2 * np.float32(3)  # a chessboard: residuals beyond 16 bits
    assert np.allclose(decode_label(encode_label(disparity)), disparity, atol=3 / STEPS)


def test_plain_hdf5_can_read_the_codes(store: Path) -> None:
    with h5py.File(store / "shards/web-0000000000.h5") as file:
        assert file["codes/5x7"].compression == "gzip" and file["codes/5x7"].shuffle
        slot = int(np.flatnonzero(file["index"][:] == 2)[0])
        residual = file["codes/5x7"][file["slot"][slot]].astype(np.int64)
        codes = np.cumsum(np.cumsum(residual - 128, 0), 1) % 2**16
        found = file["offset"][slot] + file["step"][slot] * codes
    assert np.allclose(found, map_of(2), atol=3 / STEPS)


def test_labels_are_found_also_after_pickling(store: Path) -> None:
    labels = pickle.loads(pickle.dumps(PseudoLabels(store, ["web"])))
    for index in (7, 0, 3, 5, 1, 2, 6):  # over three shards, there and back
        found = labels.of_image(0, index, (10, 14))
        assert np.allclose(found, map_of(index, width=7 + index % 2), atol=9 / STEPS)
    assert labels.of_image(0, 4, (10, 14)) is None


def test_label_of_a_resized_image_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="image 1 of web has 20x10 pixels, but had 14x10 when"):
        PseudoLabels(store, ["web"]).of_image(0, 1, (10, 20))


def test_shard_bytes_do_not_depend_on_order(tmp_path: Path) -> None:
    labels = [NewLabel(i, (10, 14), encode_label(map_of(i, width=7 + i % 2))) for i in range(3)]
    for name, order in (("a", labels), ("b", labels[::-1])):
        write_shard(tmp_path / name, ShardRange("web", 0, 3), order, [])
    a, b = (tmp_path / name / "shards/web-0000000000.h5" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_complete_store_counts_labels_and_lists_unreadable(store: Path) -> None:
    _, manifest = read_manifest(store)
    assert (manifest["complete"], manifest["labels"], manifest["unreadable"]) == (True, 7, 1)
    assert manifest["bytes"] == sum(path.stat().st_size for path in store.glob("shards/*.h5"))
    assert (store / "unreadable.txt").read_text() == "web\t4\tdamaged\t4.jpg: bad\n"
    assert problems(store) == []


def test_store_without_a_shard_is_not_complete(tmp_path: Path) -> None:
    begin_store(tmp_path, HEADER)
    assert finish_store(tmp_path) is None
    assert read_manifest(tmp_path)[1]["complete"] is False
    assert [problem.split(": ")[1] for problem in problems(tmp_path)] == ["not labeled yet"] * 3


@pytest.mark.parametrize("what", ["cut", "flip", "gone", "note", "duplicate", "hole", "swapped"])
def test_verify_names_the_damage(store: Path, what: str) -> None:
    path = store / "shards/web-0000000003.h5"
    content = bytearray(path.read_bytes())
    expected = {
        "cut": f"{len(content) - 100} bytes, expected {len(content)}",
        "flip": "checksum ",
        "gone": "No such file",
        "note": "damaged",
        "duplicate": "1 image more than once: 4",
        "hole": "1 image neither labeled nor listed as unreadable: 4",
        "swapped": "3 images of another shard: 0, 1, 2",
    }[what]
    note = read_record(store, HEADER.shards()[1])
    assert note is not None
    three = [NewLabel(i, (10, 14), encode_label(map_of(i))) for i in (3, 5)]
    if what == "cut":
        path.write_bytes(content[:-100])
    elif what == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif what == "gone":
        path.unlink()
    elif what == "note":
        path.with_suffix(".json").write_text('{"labels": 3')
    elif what == "duplicate":
        four = NewLabel(4, (10, 14), encode_label(map_of(4)))
        write_shard(store, HEADER.shards()[1], [*three, four], note.unreadable)
    elif what == "hole":
        write_shard(store, HEADER.shards()[1], three, [])
    else:
        for end in (".h5", ".json"):
            shutil.copy(store / f"shards/web-0000000000{end}", path.with_suffix(end))
    found = problems(store)
    assert any(expected in problem for problem in found), found


def test_flipped_bytes_of_a_shard_are_noticed(store: Path) -> None:
    path = store / "shards/web-0000000006.h5"
    content = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(content), 20):
        damaged = bytearray(content)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        assert problems(store), f"byte {at}"
    path.write_bytes(content)
    assert problems(store) == []


def test_store_of_other_settings_is_not_continued(store: Path) -> None:
    other = StoreSettings({"weights_sha256": "ee"}, {"input_size": 42}, 3, HEADER.sets)
    with pytest.raises(ValueError, match="input_size: began with 28, now 42; teacher"):
        begin_store(store, other)


@pytest.mark.parametrize("flip", [False, True])
def test_label_is_cropped_and_flipped_as_its_image(flip: bool) -> None:
    y, x = np.mgrid[:60, :80].astype(np.float32)
    image = np.stack([2 * x, 3 * y, x * 0], 2).astype(np.uint8)
    label = 2 * (np.mgrid[:30, :40][1].astype(np.float32) * 2 + 0.5)  # the red of the image, at half its size
    view = Crop((45, 60), 7, 11, 28, 28, flip)
    red = view.of_image(Photo(image, 60, 80))[..., 0]
    assert np.abs(view.of_smooth_map(label) - red).max() < 1


def test_folder_identity_depends_on_names_not_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    first, second = (FolderImages(str(tmp_path / name)).identity() for name in "ab")
    assert first == second
    (tmp_path / "b/1.png").rename(tmp_path / "b/2.png")
    assert FolderImages(str(tmp_path / "b")).identity() != first


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_index_identity_survives_a_move(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "plain" / name / "1.png")
    (tmp_path / "set").mkdir()
    if kind == "tar":
        shutil.make_archive(str(tmp_path / "set/0"), "tar", tmp_path / "plain")
    else:
        shutil.copytree(tmp_path / "plain", tmp_path / "set", dirs_exist_ok=True)
    before = IndexedImages(str(tmp_path / "set"), kind, build_workers=1).identity()
    shutil.copytree(tmp_path / "set", tmp_path / "moved")
    assert IndexedImages(str(tmp_path / "moved"), kind, build_workers=1).identity() == before
    Image.new("RGB", (4, 4)).save(tmp_path / "plain/b/2.png")
    shutil.copytree(tmp_path / "plain", tmp_path / "more")
    if kind == "tar":
        shutil.rmtree(tmp_path / "more")
        (tmp_path / "more").mkdir()
        shutil.make_archive(str(tmp_path / "more/0"), "tar", tmp_path / "plain")
    more = IndexedImages(str(tmp_path / "more"), kind, build_workers=1)
    assert isinstance(more.index, Index) and more.identity() != before
