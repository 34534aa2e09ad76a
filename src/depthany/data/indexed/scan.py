"""Lists the images of a shard: files of one folder, members of a tar, keys of an LMDB environment."""

import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from depthany.data.folders import links_up, walk
from depthany.data.image_formats import count_passed_over, is_hidden
from depthany.data.indexed.archives import open_lmdb
from depthany.data.indexed.index_file import ENTRY, NOT_BROKEN, WHOLE_FILE, shard_path
from depthany.system.packages import optional, reason

_BLOCK = tarfile.BLOCKSIZE  # 512 bytes; two blocks of zeros end a tar (POSIX.1-1988, ustar)


@dataclass(frozen=True)
class Scan:
    """The images of a shard.

    entries: [n] ENTRY, names counted from 0.
    names: bytes of the names, one after the other.
    folders: paths, below the root, of the folders inside, which are shards too.
    broken_at: byte where a tar breaks off, or NOT_BROKEN.
    passed_over: by suffix, how many files or members look like images or other media and are not indexed.
    """

    entries: NDArray[np.void]
    names: bytes
    folders: list[bytes] = field(default_factory=list)
    broken_at: int = NOT_BROKEN
    passed_over: Counter[str] = field(default_factory=Counter)


def first_shards(kind: str, root: Path) -> list[bytes]:
    """Returns the paths, below root, of the shards that a scan starts with: the root, or all tars or
    environments.

    Raises:
        ValueError: there is none, or a folder cannot be listed.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder (looked from {Path.cwd()})")
    if kind == "folder":
        return [b""]
    paths = [Path(folder, name) for folder, _, names in walk(root) for name in names if name[0] != "."]
    if kind == "tar":
        found = [path for path in paths if path.suffix.lower() == ".tar"]
        hint = _compressed(paths)
    else:
        found, hint = [path.parent for path in paths if path.name == "data.mdb"], ""
    if not found:
        sought = "file *.tar" if kind == "tar" else "LMDB environment (a folder with data.mdb)"
        raise ValueError(f"{root}: no {sought} in it or below{hint}")
    return sorted(b"" if path == root else os.fsencode(path.relative_to(root)) for path in found)


def scan(kind: str, root: Path, name: bytes, suffixes: tuple[str, ...]) -> Scan:
    """Lists the images of a shard. Raises ValueError, which names the shard, if it cannot be read."""
    try:
        if kind == "folder":
            return _scan_folder(root, name, suffixes)
        if kind == "tar":
            return _scan_tar(shard_path(kind, root, name), suffixes)
        return _scan_lmdb(os.path.dirname(shard_path(kind, root, name)))
    except OSError as error:
        where = shard_path(kind, root, name)
        raise ValueError(f"{where}: cannot read it: {reason(error)}") from None


def is_image(name: str, suffixes: tuple[str, ...]) -> bool:
    """Returns whether a file has one of the suffixes, in any case, and is not hidden (as `._a.jpg` of
    macOS).
    """
    return name.lower().endswith(suffixes) and not is_hidden(name)


def passed_over_beside_tars(root: Path) -> Counter[str]:
    """Returns, by suffix, how many files below a folder of tars look like images or other media, including
    compressed tars.
    """
    counts = Counter[str]()
    for _, _, names in walk(root):
        count_passed_over(names, (".tar",), counts)
    return counts


def _scan_folder(root: Path, name: bytes, suffixes: tuple[str, ...]) -> Scan:
    here = os.fsencode(root) + (b"/" + name if name else b"")
    files, folders, passed_over = list[bytes](), list[bytes](), Counter[str]()
    with os.scandir(here) as found:
        for entry in found:  # the file type comes with the listing: no `stat` for each image
            if is_image(file := os.fsdecode(entry.name), suffixes):
                files.append(entry.name)
            elif not entry.name.startswith(b".") and entry.is_dir():
                if not _is_loop(entry):
                    folders.append(name + b"/" + entry.name if name else entry.name)
            else:
                count_passed_over([file], suffixes, passed_over)
    files.sort()
    zeros = np.zeros(len(files), np.uint64)
    entries = _entries(zeros, np.full(len(files), WHOLE_FILE), files)
    return Scan(entries, b"".join(files), sorted(folders), passed_over=passed_over)


def _scan_tar(path: str, suffixes: tuple[str, ...]) -> Scan:
    offsets, sizes, names, broken_at = array("Q"), array("Q"), list[bytes](), NOT_BROKEN
    passed_over = Counter[str]()
    with open(path, "rb") as file:
        members = _members(file, os.fstat(file.fileno()).st_size)
        for member in members:
            if isinstance(member, int):
                broken_at = member
            elif not _is_plain(member):
                continue
            elif is_image(member.name, suffixes):
                offsets.append(member.offset_data)
                sizes.append(member.size)
                names.append(member.name.encode("utf-8", "surrogateescape"))
            else:
                count_passed_over([member.name], suffixes, passed_over)
    entries = _entries(np.array(offsets, np.uint64), np.array(sizes, np.uint64), names)
    return Scan(entries, b"".join(names), broken_at=broken_at, passed_over=passed_over)


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Returns whether a member is stored as it is: not a link, not sparse, below 4 GiB."""
    return member.isreg() and not member.issparse() and member.size < WHOLE_FILE


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo | int]:
    """Yields the complete members of a tar, then the byte where it breaks off, if it does."""
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            # The offset is 0 in an empty tar alone, where `next` of Python 3.10 fails.
            while tar.offset and (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.offset_data + member.size > size:
                    yield member.offset
                    return
                end = tar.offset
                yield member
            end = tar.offset
    except (tarfile.TarError, ValueError):  # a damaged header, at byte `end`
        yield end
        return
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes other bytes for the end too
        yield end


def _scan_lmdb(path: str) -> Scan:
    lmdb = optional("lmdb", f"{path}: reading LMDB")
    try:
        with closing(open_lmdb(path)) as environment, environment.begin() as transaction:
            names = list(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise ValueError(f"{path}: cannot list the LMDB environment: {reason(error)}") from None
    zeros = np.zeros(len(names), np.uint64)
    return Scan(_entries(zeros, np.full(len(names), WHOLE_FILE), names), b"".join(names))


def _entries(offsets: NDArray[np.uint64], sizes: NDArray[np.integer], names: list[bytes]) -> NDArray[np.void]:
    entries = np.zeros(len(names), ENTRY)
    entries["offset"], entries["size"] = offsets, sizes
    if names:
        lengths = np.fromiter((len(name) for name in names), np.uint64, len(names))
        entries["name"][1:] = np.cumsum(lengths)[:-1]
    return entries


def _is_loop(folder: "os.DirEntry[bytes]") -> bool:
    return folder.is_symlink() and links_up(os.fsdecode(folder.path))


def _compressed(paths: list[Path]) -> str:
    endings = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
    packed = [path.name for path in paths if path.name.lower().endswith(endings)]
    if not packed:
        return ""
    return (
        f", but {len(packed)} compressed ones such as {packed[0]}, which cannot be read at an offset: "
        "unpack them (gunzip NAME.tar.gz leaves NAME.tar), or extract them and choose kind=folder"
    )
