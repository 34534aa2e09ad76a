"""A user's own pairs: image and mask of classes, as files with equal stems."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthany.data.class_list import ClassList, read_class_list
from depthany.data.folder_depth import files_by_stem, paired
from depthany.data.image_formats import image_suffixes
from depthany.data.masks import MASK_SUFFIXES, PairedMasks
from depthany.data.pairs import Pair

DEFAULT_FILE = "classes.yaml"


class FolderMasks(PairedMasks):
    """Image and mask files with equal stems in two folders below `root`, or in one.

    Args:
        root: folder that holds both.
        images, masks: names of the two folders; `.` is `root` itself.
        classes_file: YAML file with the names of the classes, see `read_class_list`; relative to the current
            folder, or else to `root`. None = `classes.yaml` in `root`, if it is there.
        names: the names themselves, in the order of the stored numbers, in place of a file.
        image_suffix, mask_suffix: how the names of the files end, such as `_rgb.png` and `_mask.png`; the
            part before it is the stem. None = any name.
        common: see `PairedMasks`.

    Raises:
        ValueError: none or both of `classes_file` and `names` are given, or see `PairedMasks`.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        masks: str = "masks",
        classes_file: str | None = None,
        names: Sequence[str] | None = None,
        image_suffix: str | None = None,
        mask_suffix: str | None = None,
        **common: Any,
    ) -> None:
        self.images, self.masks = images, masks
        self.image_suffix, self.mask_suffix = image_suffix or "", mask_suffix or ""
        super().__init__(root, self.listed_classes(root, classes_file, names), **common)

    @staticmethod
    def listed_classes(
        root: str, classes_file: str | None = None, names: Sequence[str] | None = None, **_: Any
    ) -> ClassList:
        """Returns the classes of a set with these arguments, without a look at its images."""
        if classes_file is None and names is None and (Path(root) / DEFAULT_FILE).is_file():
            classes_file = DEFAULT_FILE
        if (classes_file is None) == (names is None):
            raise ValueError(
                f"classes_file={classes_file} names={names}: name the classes of the masks by exactly one of "
                "them: classes_file=classes.yaml, or names=[background,cat]"
            )
        if names is not None:
            return ClassList.numbered([str(name) for name in names], where="names")
        path = Path(str(classes_file))
        return read_class_list(path if path.exists() else Path(root) / path)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        folders = self.root / self.images, self.root / self.masks
        nested = folders[0] in (folders[1], *folders[1].parents) or folders[1] in folders[0].parents
        passed_over = None if nested else self.passed_over
        images = files_by_stem(folders[0], image_suffixes(), self.image_suffix, passed_over)
        masks = files_by_stem(folders[1], MASK_SUFFIXES, self.mask_suffix, passed_over)
        if self.mask_suffix and not self.image_suffix:  # in one folder the masks are images, too
            taken = set(masks.values())
            images = {stem: path for stem, path in images.items() if path not in taken}
        return paired(images, masks, (self.images, self.image_suffix), (self.masks, self.mask_suffix))
