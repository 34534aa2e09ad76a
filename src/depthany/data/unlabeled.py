"""Unlabeled data sets: a folder of images, or millions of images with an index on disk."""

import hashlib
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from depthany.data.folders import list_files
from depthany.data.image_formats import IMAGE_SUFFIXES, image_suffixes
from depthany.data.images import read_bytes
from depthany.data.indexed.archives import OpenFiles, read_lmdb
from depthany.data.indexed.build_index import build_index
from depthany.data.indexed.index_file import KINDS, WHOLE_FILE, Index
from depthany.data.indexed.scan import first_shards, passed_over_beside_tars
from depthany.system.choices import require_choice
from depthany.system.plurals import counted

log = logging.getLogger(__name__)


class FolderImages:
    """Every image below a folder, at any depth. Raises ValueError if there is none.

    The list is kept in memory and rebuilt at each start; use `IndexedImages` beyond some 100,000 images.

    Attributes:
        passed_over: by suffix, how many files look like images or other media and are not read.
    """

    def __init__(self, root: str) -> None:
        self.root, self.passed_over = root, Counter[str]()
        self.paths = list(list_files(Path(root), image_suffixes(), self.passed_over).values())

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Returns the path of image `index`."""
        return str(self.paths[index])

    def identity(self) -> str:
        """Returns a hash of all paths below the root, in order. It changes with the files, names and
        order.
        """
        names = [os.fsencode(os.path.relpath(path, self.root)) for path in self.paths]
        return hashlib.blake2b(b"\0".join(names), digest_size=16).hexdigest()

    def shard_sizes(self) -> NDArray[np.int64]:
        """Returns [1] the number of images: the data set counts as one shard."""
        return np.array([len(self)], np.int64)

    def stored_image(self, index: int) -> bytes:
        """Returns the content of image file `index`."""
        return read_bytes(self.paths[index])


class IndexedImages:
    """Images in folders, tars (WebDataset layout) or LMDB environments, found by an index on disk.

    The index is built at the first use. It is the file `<root>.<kind>.index` beside the root: a file inside
    would change the folder that it lists.

    Args:
        root: folder of the data set.
        kind: folder (image files, at any depth) | tar (plain .tar files, not compressed) | lmdb (environments
            whose values are image files, as in LSUN).
        suffixes: endings of file names that count as images, such as [.jpg]; None = all known ones but HEIC,
            which need a package. Not for LMDB, where every value counts.
        index_dir: folder for the index; None = beside the root.
        expected: number of images of the complete data set, for progress and warnings.
        update: update an index that no longer fits the data, instead of raising.
        build_workers: processes that build; None = one per core.

    Attributes:
        passed_over: by suffix, how many files look like images or other media and are not in the index; not
            counted where `suffixes` chooses.
        broken: archives that end early, with the reason; the images before are used.

    Raises:
        ValueError: the folder is missing or holds no image, or the data has changed since the index was
            built.
    """

    heic_remedy = "suffixes=[.heic,...] names them"

    def __init__(
        self,
        root: str,
        kind: str = "folder",
        suffixes: list[str] | None = None,
        index_dir: str | None = None,
        expected: int | None = None,
        update: bool = False,
        build_workers: int | None = None,
    ) -> None:
        require_choice("kind", kind, KINDS)
        self.root, self.kind, self.expected = Path(root), kind, expected
        if not self.root.is_dir():
            raise ValueError(f"{root}: no such folder (looked from {Path.cwd()})")
        self.suffixes = () if kind == "lmdb" else tuple(end.lower() for end in suffixes or IMAGE_SUFFIXES)
        self.index_path = index_path(self.root, kind, index_dir)
        self.index = self._open_index(update, build_workers)
        self._files = OpenFiles()
        self.passed_over = Counter[str]() if suffixes else self._passed_over()
        self.broken = [
            (os.path.join(root, name), f"ends early, at byte {byte}: the images before it are used")
            for name, byte in self.index.broken()
        ]
        if self.broken:
            named = ", ".join(f"{name} at byte {byte}" for name, byte in self.index.broken()[:3])
            more = " ..." if self.broken[3:] else ""
            tars = f"{counted(len(self.broken), 'tar')} truncated"
            log.warning(f"{root}: {tars}; the images before the break are used: {named}{more}")

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        """Returns the path of image `index`; in a tar or LMDB environment its path joined with the name
        inside.
        """
        shard, _, _ = self.index.entry(index)
        entry = self.index.entry_name(index).decode("utf-8", "backslashreplace")
        return os.path.join(self._shard(shard), entry)

    def identity(self) -> str:
        """Returns the hash of the data set; see `Index.identity`."""
        return self.index.identity()

    def shard_sizes(self) -> NDArray[np.int64]:
        """Returns [s] the images of each folder, tar or LMDB environment, in the order of the indices."""
        return self.index.shard_sizes()

    def stored_image(self, index: int) -> bytes:
        """Returns the content of image file `index`. Raises ValueError, which names it, if it cannot be
        read.
        """
        shard, offset, size = self.index.entry(index)
        if self.kind == "lmdb":
            return read_lmdb(self._shard(shard), self.index.entry_name(index))
        if size == WHOLE_FILE:
            return read_bytes(Path(self._shard(shard), os.fsdecode(self.index.entry_name(index))))
        return self._files.read(self._shard(shard), offset, size)

    def _passed_over(self) -> Counter[str]:
        beside = passed_over_beside_tars(self.root) if self.kind == "tar" else Counter[str]()
        return beside + self.index.passed_over()

    def _shard(self, shard: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.index.shard_name(shard)))

    def _open_index(self, update: bool, build_workers: int | None) -> Index:
        if not self.index_path.exists() or (update and self._problem(Index(self.index_path))):
            lock = self._locked()
            try:
                with lock:  # a second process waits for the build of the first
                    if not self.index_path.exists() or self._problem(Index(self.index_path)):
                        arguments = (self.suffixes, build_workers, self.expected)
                        build_index(self.kind, self.root, self.index_path, *arguments)
            finally:
                Path(f"{self.index_path}.lock").unlink(missing_ok=True)
        index = Index(self.index_path)
        if problem := self._problem(index):
            raise ValueError(
                f"{self.index_path}: {problem}: python -m depthany.index with the same data=... updates it "
                "(the order of the images changes: begin a new run), or restore the data"
            )
        return index

    def _problem(self, index: Index) -> str:
        """Returns how the index differs from the data; an empty string if it fits."""
        if not index.is_of(self.kind, self.suffixes):
            then, now = (", ".join(ends) for ends in (index.header.suffixes, self.suffixes))
            return f"built for other suffixes ([{then}], now [{now}]: suffixes=[{then}] keeps it)"
        if changed := index.changed(self.root):
            return f"{len(changed)} of {index.header.shards} shards have changed or are gone{_some(changed)}"
        if self.kind != "folder":  # a new folder changes the mtime of its parent, which is a shard
            known = {index.shard_name(shard) for shard in range(index.header.shards)}
            new = [os.fsdecode(name) for name in first_shards(self.kind, self.root) if name not in known]
            if new:
                return f"{len(new)} shards are new{_some(new)}"
        return ""

    def _locked(self) -> FileLock:
        try:
            self.index_path.parent.mkdir(parents=True, exist_ok=True)
            self.index_path.with_name(f"{self.index_path.name}.lock").touch()
        except OSError as error:
            raise ValueError(
                f"cannot write the index {self.index_path}: {error.strerror}: pass data.index_dir=FOLDER"
            ) from None
        return FileLock(f"{self.index_path}.lock")


def index_path(root: Path, kind: str, index_dir: str | None) -> Path:
    """Returns the path of an index: beside the root, or in `index_dir` under a name that is unique to the
    root.
    """
    full = Path(os.path.abspath(root))
    if index_dir is None:
        return full.with_name(f"{full.name}.{kind}.index")
    unique = hashlib.blake2b(os.fsencode(full), digest_size=4).hexdigest()
    return Path(index_dir) / f"{full.name}-{unique}.{kind}.index"


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
