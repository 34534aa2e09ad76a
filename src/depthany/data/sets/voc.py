"""PASCAL VOC 2012, semantic segmentation: 20 classes and background."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthany.data.class_lists import VOC
from depthany.data.masks import PairedMasks
from depthany.data.pairs import Pair

LISTS = "ImageSets/Segmentation"


class Voc(PairedMasks):
    """VOC2012 with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val,trainval}.txt.

    The masks are palette PNGs: 0 background, 1 to 20 classes, 255 borders and difficult objects, which are
    ignored. The 10,582 masks of train_aug (Hariharan et al. 2011) are a folder SegmentationClassAug, and a
    list train_aug.txt.

    Args:
        root: the folder VOC2012.
        split: name of a list below ImageSets/Segmentation.
        masks: folder of the masks: SegmentationClass or SegmentationClassAug.
        common: see `PairedMasks`.
    """

    def __init__(
        self, root: str, split: str = "train", masks: str = "SegmentationClass", **common: Any
    ) -> None:
        self.split, self.masks = split, masks
        super().__init__(root, VOC, **common)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        path = self.root / LISTS / f"{self.split}.txt"
        if not path.is_file():
            there = sorted(each.stem for each in path.parent.glob("*.txt"))
            raise ValueError(f"{path}: no such list for split; choose from {', '.join(there) or 'none'}")
        words = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        stems = [Path(word).stem for word in words]  # some lists of train_aug hold paths
        return self.existing((f"JPEGImages/{stem}.jpg", f"{self.masks}/{stem}.png") for stem in stems)
