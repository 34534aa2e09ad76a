"""DIODE, validation."""

from pathlib import Path

from depthany.data.benchmarks.benchmark import BenchmarkDepth, subfolder
from depthany.data.depth_files import read_depth
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair
from depthany.data.samples import require_same_size
from depthany.system.choices import require_choice

_PARTS = {"indoors": ("indoors",), "outdoor": ("outdoor",), "all": ("indoors", "outdoor")}


class Diode(BenchmarkDepth):
    """DIODE's validation images, with float32 depth in metres and a mask of valid pixels.

    Vasiljevic et al. 2019 (arXiv 1908.00463). Depth is stored as (768, 1024, 1). Pixels outside the mask
    have values too, which must not count (ZoeDepth's loader reads the mask and does not use it).

    Args:
        root: folder that holds val/, or val/ itself.
        part: indoors (325 images), outdoor (446) or all (771).
        use_mask: False counts every depth above 0, as the loader of ZoeDepth and Depth Anything V1 does.

    Raises:
        ValueError: see `BenchmarkDepth`; or the part is unknown.
    """

    layout = (
        "val/{indoors,outdoor}/scene_*/scan_*/NAME.png with NAME_depth.npy and NAME_depth_mask.npy "
        "(val.tar.gz of diode-dataset.org)"
    )

    def __init__(self, root: str, part: str = "all", use_mask: bool = True) -> None:
        require_choice("part of DIODE", part, _PARTS)
        self.part, self.use_mask = part, use_mask
        super().__init__(root)

    def official_pairs(self) -> list[Pair]:
        val = subfolder(self.root, "val")
        images = [path for part in _PARTS[self.part] for path in sorted(val.glob(f"{part}/*/*/*.png"))]
        return [
            Pair(image.relative_to(val).with_suffix("").as_posix(), image, _beside(image, "_depth.npy"))
            for image in images
        ]

    def needed(self, pair: Pair) -> list[Path]:
        return [pair.image, pair.depth, _beside(pair.image, "_depth_mask.npy")]

    def decode(self, pair: Pair) -> Decoded:
        mask_path, depth_m = _beside(pair.image, "_depth_mask.npy"), read_depth(pair.depth)
        if not self.use_mask:
            return Decoded(depth_m, depth_m > 0)
        trusted = read_depth(mask_path) > 0
        require_same_size(str(pair.depth), depth_m.shape, str(mask_path), trusted.shape, "mask", "depth map")
        return Decoded(depth_m, trusted)


def _beside(image: Path, ending: str) -> Path:
    return image.with_name(image.stem + ending)
