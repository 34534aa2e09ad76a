"""DA-2K: pairs of points, one of which is nearer."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from depthany.data.benchmarks.benchmark import expecting, require_files
from depthany.data.images import read_image
from depthany.data.samples import OrdinalSample, Point
from depthany.system.packages import reason

ANNOTATIONS = "annotations.json"
_LAYOUT = (
    f"{ANNOTATIONS} and the images that it names, <scene type>/*.jpg (huggingface.co/datasets/"
    "depth-anything/DA-2K, unpacked)"
)


class OrdinalPairs:
    """Images with pairs of points; which point is nearer is known.

    Yang et al. 2024 (arXiv 2406.09414), DA-2K.md of its repository: {path: [{"point1": [row, column],
    "point2": [row, column], "closer_point": "point1"}]}. The type of scene is the first folder of the path.

    Args:
        root: holds annotations.json and the images.

    Raises:
        ValueError: the annotations are missing or have another form, or images are missing (the first ten are
            named).
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        path = self.root / ANNOTATIONS
        with expecting(_LAYOUT):
            annotations = _read_json(path)
            self.images = sorted(annotations)
            require_files(self.root, [self.root / name for name in self.images])
        self.pairs = [
            [_pair(stored, f"{path}: {name}") for stored in annotations[name]] for name in self.images
        ]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Returns the path of image `index` below root, as in the annotations."""
        return self.images[index]

    def scene(self, index: int) -> str:
        """Returns the type of scene of image `index`, such as `underwater`."""
        folders = [folder for folder in PurePosixPath(self.images[index]).parts[:-1] if folder != "images"]
        return folders[0] if folders else "none"

    def read(self, index: int, convert_images: bool = True) -> OrdinalSample:
        """Returns image `index` with its pairs. Raises ValueError if a point is outside of the image.

        Args:
            convert_images: turn gray, palette and RGBA images into RGB, as OpenCV does for the authors.
        """
        image = read_image(self.root / self.images[index], convert_images)
        height, width = image.shape[:2]
        for row, column in (point for pair in self.pairs[index] for point in pair):
            if not (0 <= row < height and 0 <= column < width):
                raise ValueError(
                    f"{self.root / self.images[index]}: point (row {row}, column {column}) is outside of the "
                    f"image, which is {width}x{height}: correct {ANNOTATIONS}"
                )
        return OrdinalSample(self.name(index), self.scene(index), image, self.pairs[index])


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the annotations by path of the image."""
    try:
        annotations = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot read the annotations: {reason(error)}") from None
    if not isinstance(annotations, dict) or not annotations:
        raise ValueError(f"{path}: expected an object of image paths, got {type(annotations).__name__}")
    return annotations


def _pair(stored: Any, where: str) -> tuple[Point, Point]:
    """Returns the nearer and the farther point of one annotation."""
    try:
        points = {key: (int(stored[key][0]), int(stored[key][1])) for key in ("point1", "point2")}
        nearer = points.pop(stored["closer_point"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(
            f"{where}: expected point1, point2 and closer_point (point1 or point2), got {stored}"
        ) from None
    (farther,) = points.values()
    return nearer, farther
