"""ADE20K, SceneParse150: 150 classes of scenes."""

from collections.abc import Sequence
from typing import Any

from depthany.data.class_lists import ADE20K
from depthany.data.masks import PairedMasks
from depthany.data.pairs import Pair
from depthany.system.choices import require_choice

SPLITS = ("training", "validation")


class Ade20k(PairedMasks):
    """ADEChallengeData2016 with images/{training,validation}/ and annotations/{training,validation}/.

    The files store 1 to 150, which become classes 0 to 149, and 0 for everything else, which is ignored.

    Args:
        root: the folder ADEChallengeData2016.
        split: training or validation.
        common: see `PairedMasks`.
    """

    def __init__(self, root: str, split: str = "training", **common: Any) -> None:
        require_choice("split", split, SPLITS)
        self.split = split
        super().__init__(root, ADE20K, **common)

    def find(self) -> tuple[Sequence[Pair], list[str]]:
        images, masks = f"images/{self.split}", f"annotations/{self.split}"
        stems = sorted(path.stem for path in (self.root / images).glob("*.jpg"))
        pairs, unpaired = self.existing((f"{images}/{stem}.jpg", f"{masks}/{stem}.png") for stem in stems)
        known = {pair.depth.name for pair in pairs}
        alone = sorted(each.name for each in (self.root / masks).glob("*.png") if each.name not in known)
        return pairs, unpaired + [f"{masks}/{name}" for name in alone]
