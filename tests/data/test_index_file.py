"""The index of large sets: what it lists, how it is built, and what happens when the data has changed."""

import os
import pickle
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from image_sets import contents, folder_of, write_tar

from depthany.data.counts import passed_over_line
from depthany.data.image_formats import IMAGE_SUFFIXES
from depthany.data.indexed.build_index import build_index
from depthany.data.indexed.index_file import ENTRY, WHOLE_FILE, Index, ShardRow, write_index
from depthany.data.indexed.scan import Scan, scan
from depthany.data.unlabeled import IndexedImages, index_path

TAR_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def test_folder_index_lists_visible_images_at_any_depth(tmp_path: Path) -> None:
    names = ["b.jpg", "a.PNG", "one/c.jpg", "one/two/d.webp", "notes.txt", "._b.jpg", ".cache/e.jpg"]
    root = folder_of(tmp_path / "set", [*names, "empty/readme.md"])
    images = IndexedImages(str(root))
    wanted = ["a.PNG", "b.jpg", "one/c.jpg", "one/two/d.webp"]
    assert contents(images) == {name: name.encode() for name in wanted}
    assert images.shard_sizes().tolist() == [2, 0, 1, 1], "root, empty, one, one/two"


def test_links_are_followed_unless_they_lead_up(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", ["a/b.jpg"])
    folder_of(tmp_path / "elsewhere", ["c.jpg"])
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a/up").symlink_to(root)
    assert set(contents(IndexedImages(str(root)))) == {"a/b.jpg", "linked/c.jpg"}


@pytest.mark.parametrize("form", TAR_FORMATS)
def test_tar_members_are_read_by_their_offset(tmp_path: Path, form: str) -> None:
    long = f"{'d' * 90}/{'n' * 90}.jpg" if form == "ustar" else f"{'d' * 300}/{'n' * 200}.jpg"
    foreign = "plain.jpg" if form == "ustar" else "Blick über Zürich/山.jpg"
    members = [(long, b"first"), ("k.json", b"{}"), (foreign, bytes(range(256)) * 9), ("empty.jpg", b"")]
    root = tmp_path / "set"
    write_tar(root / "deep/0.tar", members, TAR_FORMATS[form])
    write_tar(root / "1.tar", [("z.jpg", b"z"), ("a.jpg", b"a")])
    images = IndexedImages(str(root), "tar")
    assert contents(images) == {
        "1.tar/z.jpg": b"z",
        "1.tar/a.jpg": b"a",
        **{f"deep/0.tar/{name}": stored for name, stored in members if name != "k.json"},
    }
    assert images.shard_sizes().tolist() == [2, 3]


def test_tar_links_and_other_suffixes_are_not_indexed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    path = write_tar(root / "0.tar", [("a.rgb.jpg", b"a"), ("a.mask.jpg", b"m")])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.rgb.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.rgb.jpg"
        archive.addfile(link)
    assert set(contents(IndexedImages(str(root), "tar", suffixes=[".RGB.jpg"]))) == {"0.tar/a.rgb.jpg"}


@pytest.mark.parametrize(
    "cut, left, broken_at",
    [
        (512 + 100, 0, 0),  # within the first image
        (1024, 1, 1024),  # behind the first image: the second header is missing
        (1024 + 512, 1, 1024),  # the header of the second is there, its bytes are not
        (2048 + 512, 2, 2048),
        (3072, 3, 3072),  # all images are there, the end mark is not
        (3072 + 512, 3, None),
    ],
)
def test_truncated_tar_keeps_images_before_the_cut(
    tmp_path: Path, cut: int, left: int, broken_at: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "set"
    write_tar(root / "whole.tar", [("w.jpg", b"w")])
    path = write_tar(root / "cut.tar", [(f"{i}.jpg", bytes([i]) * 512) for i in range(3)])
    os.truncate(path, cut)
    images = IndexedImages(str(root), "tar")
    wanted = {f"cut.tar/{i}.jpg": bytes([i]) * 512 for i in range(left)}
    assert contents(images) == wanted | {"whole.tar/w.jpg": b"w"}
    assert images.index.broken() == ([] if broken_at is None else [("cut.tar", broken_at)])
    assert ("1 tar truncated" in caplog.text) == (broken_at is not None)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_media_not_indexed_are_counted(tmp_path: Path, kind: str) -> None:
    names = ["a.jpg", "b.HEIC", "c.heic", "d.gif", "e.txt", "f.json"]
    if kind == "tar":
        write_tar(tmp_path / "set/0.tar", [(name, b"x") for name in names])
        (tmp_path / "set/1.tar.gz").touch()
        expected = {".heic": 2, ".gif": 1, ".tar.gz": 1}
    else:
        (tmp_path / "set/sub").mkdir(parents=True)
        for i, name in enumerate(names):
            (tmp_path / "set" / ("sub" * (i % 2)) / name).touch()
        expected = {".heic": 2, ".gif": 1}
    images = IndexedImages(str(tmp_path / "set"), kind)
    assert images.passed_over == expected
    assert "2 .heic (suffixes=[.heic,...] names them)" in passed_over_line(images)
    assert IndexedImages(str(tmp_path / "set"), kind).passed_over == expected, "as the index has it"
    write_tar(tmp_path / "set/2.tar", [("new.jpg", b"x")])
    extra = {".tar": 1} if kind == "folder" else {}
    again = IndexedImages(str(tmp_path / "set"), kind, update=True)
    assert again.passed_over == expected | extra, "shards that did not change keep theirs"


def test_identity_does_not_depend_on_passed_over_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tar(tmp_path / name / "set/0.tar", [("a.jpg", b"x")])
    (tmp_path / "two/set/photo.heic").touch()
    one, two = (IndexedImages(str(tmp_path / name / "set"), "tar") for name in ("one", "two"))
    assert one.identity() == two.identity()
    assert not one.passed_over and two.passed_over


def test_tar_with_damaged_header_is_reported_as_broken(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set/0.tar", [(f"{i}.jpg", b"x" * 512) for i in range(3)])
    with open(path, "r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * 512)
    images = IndexedImages(str(tmp_path / "set"), "tar")
    assert (len(images), images.index.broken()) == (1, [("0.tar", 1024)])


@pytest.mark.parametrize(
    "files, kind, expected",
    [
        ({}, "folder", "no image with suffix .jpg"),
        ({"a.txt": b""}, "folder", "no image with suffix .jpg"),
        ({"a.jpg": b""}, "tar", r"no file \*.tar in it or below"),
        ({"a.tar.gz": b""}, "tar", "1 compressed ones such as a.tar.gz.*kind=folder"),
        ({"a.tar": b"\x1f\x8b garbage"}, "tar", "no image .* in 1 tars, 1 of them broken or not plain tars"),
        ({"a.jpg": b""}, "lmdb", "no LMDB environment"),
        ({"a.jpg": b""}, "zip", "unknown kind 'zip'; choose from folder, tar, lmdb"),
    ],
)
def test_root_without_images_is_refused(
    tmp_path: Path, files: dict[str, bytes], kind: str, expected: str
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name, stored in files.items():
        (root / name).write_bytes(stored)
    with pytest.raises(ValueError, match=expected) as failure:
        IndexedImages(str(root), kind)
    assert "\n" not in str(failure.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_index_bytes_are_reproducible(
    tmp_path: Path,
) -> None:
    for place in ("here", "there"):
        root = tmp_path / place / "set"
        for k in range(6):
            path = write_tar(root / f"{k % 2}/{k}.tar", [(f"{i}.jpg", b"x" * i) for i in range(k)])
            os.utime(path, ns=(0, k))
    paths = [tmp_path / f"{workers}.index" for workers in (1, 3)]
    build_index("tar", tmp_path / "here/set", paths[0], IMAGE_SUFFIXES, workers=1)
    build_index("tar", tmp_path / "there/set", paths[1], IMAGE_SUFFIXES, workers=3)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.index", "3.index", "here", "there"]


def test_killed_build_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, log, path = tmp_path / "set", tmp_path / "scanned", tmp_path / "killed"
    for k in range(30):
        write_tar(root / f"{k:02d}.tar", [(f"{i}.jpg", b"x" * i) for i in range(k)])
    build_index("tar", root, tmp_path / "whole", (".jpg",), workers=1)

    def slow(kind: str, root: Path, name: bytes, suffixes: tuple[str, ...]) -> Scan:
        time.sleep(0.02)
        with open(log, "ab") as file:
            file.write(name + b"\n")
        return scan(kind, root, name, suffixes)

    monkeypatch.setattr("depthany.data.indexed.build_index.scan", slow)
    for wanted in (5, 12, 20):
        child = os.fork()
        if child == 0:
            build_index("tar", root, path, (".jpg",), workers=2)
            os._exit(0)
        began = time.monotonic()
        while not log.exists() or len(log.read_text().split()) < wanted:
            assert time.monotonic() - began < 30
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)  # the parent alone: its processes must end by themselves
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        time.sleep(0.7)
    assert not path.exists()
    build_index("tar", root, path, (".jpg",), workers=2)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert len(log.read_text().split()) <= 30 + 3 * 6, "what was begun at a kill is scanned twice, no more"
    assert not path.with_name("killed.parts").exists()


def touch_later(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", ["touched", "longer", "gone", "new"])
def test_changed_data_needs_an_updated_index(tmp_path: Path, change: str) -> None:
    root = tmp_path / "set"
    for k in range(3):
        write_tar(root / f"{k}.tar", [(f"{k}.jpg", b"x")])
    IndexedImages(str(root), "tar")
    if change == "touched":
        touch_later(root / "1.tar")
    elif change == "longer":
        write_tar(root / "1.tar", [("1.jpg", b"y" * 9000), ("9.jpg", b"y")])
    elif change == "gone":
        (root / "1.tar").unlink()
    else:
        write_tar(root / "sub/3.tar", [("3.jpg", b"x")])
    expected = r"1 shards are new \(sub/3.tar\)" if change == "new" else r"1 of 3 shards .* \(1.tar\)"
    with pytest.raises(ValueError, match=f"{expected}: python -m depthany.index") as failure:
        IndexedImages(str(root), "tar")
    assert "\n" not in str(failure.value)
    sizes = {"touched": [1, 1, 1], "longer": [1, 2, 1], "gone": [1, 1], "new": [1, 1, 1, 1]}[change]
    assert IndexedImages(str(root), "tar", update=True).shard_sizes().tolist() == sizes
    assert IndexedImages(str(root), "tar").shard_sizes().tolist() == sizes


def test_added_file_is_noticed(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", ["a/b.jpg", "c/d.jpg"])
    os.utime(root / "a", ns=(0, 0))
    IndexedImages(str(root))
    (root / "a/e.jpg").write_bytes(b"e")
    with pytest.raises(ValueError, match=r"1 of 3 shards have changed or are gone \(a\)"):
        IndexedImages(str(root))


def test_update_reads_no_unchanged_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    for k in range(3):
        write_tar(root / f"{k}.tar", [(f"{k}_{i}.jpg", bytes([i])) for i in range(k + 1)])
    before = contents(IndexedImages(str(root), "tar"))
    stamp = (root / "1.tar").stat()
    (root / "1.tar").write_bytes(bytes(stamp.st_size))  # same size and time: reading it would find nothing
    os.utime(root / "1.tar", ns=(0, stamp.st_mtime_ns))
    touch_later(root / "2.tar")
    after = IndexedImages(str(root), "tar", update=True)
    assert [after.name(i).removeprefix(f"{root}/") for i in range(6)] == list(before)


def test_index_path_is_unique_to_its_root(
    tmp_path: Path,
) -> None:
    assert index_path(tmp_path / "a/set/", "tar", None) == tmp_path / "a/set.tar.index"
    elsewhere = [index_path(tmp_path / name / "set", "tar", str(tmp_path / "cache")) for name in "ab"]
    assert len(set(elsewhere)) == 2
    root = folder_of(tmp_path / "a/set", ["a.jpg"])
    images = IndexedImages(str(root), index_dir=str(tmp_path / "cache"))
    assert [path.parent for path in tmp_path.rglob("*.index")] == [tmp_path / "cache"]
    assert len(images) == 1


def test_unwritable_index_is_refused_with_the_remedy(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", ["a.jpg"])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot write the index .*: pass data.index_dir=FOLDER"):
        IndexedImages(str(root), index_dir=str(tmp_path / "file"))


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_damaged_index_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    root = folder_of(tmp_path / "set", ["a.jpg", "b.jpg"])
    path = IndexedImages(str(root)).index_path
    stored = path.read_bytes()
    path.write_bytes({"cut": stored[:-1], "other": b"x" + stored, "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"{path}: .*delete it to have it rebuilt"):
        IndexedImages(str(root))


def test_pickle_of_an_index_is_its_path(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", [f"{i:03d}.jpg" for i in range(300)])
    images = IndexedImages(str(root))
    sent = pickle.dumps(images)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert contents(again) == contents(images)


def test_entry_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    images = IndexedImages(str(folder_of(tmp_path / "set", ["a.jpg"])))
    for index in (1, -1):
        with pytest.raises(IndexError):
            images.stored_image(index)


def test_offsets_beyond_4_gib_are_kept(tmp_path: Path) -> None:
    rows = [ShardRow(b"s%d" % k, k % 3, 2 * (k % 3), 0, 0, -1) for k in range(1000)]
    entries = []
    for k, row in enumerate(rows):
        part = np.zeros(row.entries, ENTRY)
        part["offset"], part["size"] = (1 << 40) + k, k
        part["name"] = 2 * np.arange(row.entries)
        entries.append(part)
    names = [b"ab" * row.entries for row in rows]
    write_index(tmp_path / "i", "tar", [".jpg"], rows, entries, names)
    index, at = Index(tmp_path / "i"), 0
    assert len(index) == 333 * 3
    for k, row in enumerate(rows):
        for _ in range(row.entries):
            assert index.entry(at) == (k, (1 << 40) + k, k)
            assert index.entry_name(at) == b"ab"
            at += 1
        assert index.shard_name(k) == row.name


def test_lookups_do_not_grow_resident_memory(tmp_path: Path) -> None:
    count = 4_000_000
    entries = np.zeros(count, ENTRY)
    entries["size"] = WHOLE_FILE
    row = ShardRow(b"", count, 0, 0, 0, -1)
    write_index(tmp_path / "i", "folder", [".jpg"], [row], [entries], [b""])  # 80 MB
    index, before = Index(tmp_path / "i"), resident_mb()
    for i in np.random.default_rng(0).integers(0, count, 3000).tolist():
        index.entry(i)
        index.entry_name(i)
    assert resident_mb() - before < 10


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
