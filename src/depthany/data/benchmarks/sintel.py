"""MPI Sintel, training scenes."""

from depthany.data.benchmarks.benchmark import BenchmarkDepth, subfolder
from depthany.data.float_files import read_dpt
from depthany.data.labeled import Decoded
from depthany.data.pairs import Pair
from depthany.system.choices import require_choice

_PASSES = ("final", "clean")


class Sintel(BenchmarkDepth):
    """The 1,064 frames of Sintel's training scenes, 436x1024, with rendered depth.

    Butler et al. 2012; depth was added later. Sky is not marked: it is about 1e5 m away and valid here, so
    that `max_depth` and `truth_beyond` of a protocol decide about it.

    Args:
        root: folder that holds training/, or training/ itself.
        render: final (with blur and fog) or clean.

    Raises:
        ValueError: see `BenchmarkDepth`; or the rendering is unknown.
    """

    layout = (
        "training/{final,clean}/<scene>/frame_0001.png (MPI-Sintel-complete) and "
        "training/depth/<scene>/frame_0001.dpt (MPI-Sintel-depth-training), of sintel.is.tue.mpg.de"
    )

    def __init__(self, root: str, render: str = "final") -> None:
        require_choice("render of Sintel", render, _PASSES)
        self.render = render
        super().__init__(root)

    def official_pairs(self) -> list[Pair]:
        training = subfolder(self.root, "training")
        images = sorted((training / self.render).glob("*/frame_*.png"))
        names = [f"{image.parent.name}/{image.stem}" for image in images]
        return [Pair(name, image, training / "depth" / f"{name}.dpt") for name, image in zip(names, images)]

    def decode(self, pair: Pair) -> Decoded:
        depth_m = read_dpt(pair.depth)
        return Decoded(depth_m, depth_m > 0)
