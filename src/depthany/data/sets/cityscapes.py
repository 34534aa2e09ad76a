"""Cityscapes: 19 classes of streets."""

from collections.abc import Sequence
from typing import Any

from depthany.data.class_lists import CITYSCAPES, CITYSCAPES_RAW
from depthany.data.masks import PairedMasks
from depthany.data.pairs import Pair
from depthany.system.choices import require_choice

LABELS = {"raw": ("labelIds", CITYSCAPES_RAW), "train": ("labelTrainIds", CITYSCAPES)}
SPLITS = ("train", "val", "test")


class Cityscapes(PairedMasks):
    """Cityscapes with leftImg8bit/{train,val}/CITY/ and gtFine/{train,val}/CITY/.

    Args:
        root: folder that holds leftImg8bit and gtFine.
        split: train or val; the masks of test are not public.
        labels: `raw`: *_labelIds.png, whose 34 numbers become the 19 train ids, and others are ignored;
            `train`: *_labelTrainIds.png, which cityscapesScripts makes.
        common: see `PairedMasks`.
    """

    def __init__(self, root: str, split: str = "train", labels: str = "raw", **common: Any) -> None:
        require_choice("split", split, SPLITS)
        require_choice("labels", labels, LABELS)
        self.split, (self.ending, classes) = split, LABELS[labels]
        super().__init__(root, classes, **common)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        images = sorted((self.root / "leftImg8bit" / self.split).glob("*/*_leftImg8bit.png"))
        stems = [f"{path.parent.name}/{path.name.removesuffix('_leftImg8bit.png')}" for path in images]
        return self.existing(
            (
                f"leftImg8bit/{self.split}/{stem}_leftImg8bit.png",
                f"gtFine/{self.split}/{stem}_gtFine_{self.ending}.png",
            )
            for stem in stems
        )
