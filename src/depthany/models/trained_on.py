"""What a metric model was trained on: its scale belongs to that camera and those places."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TrainedOn:
    """Where the metres of a model are from. It travels in the model's configuration, to every file.

    Attributes:
        sets: names of the data sets.
        focal_px: focal length in pixels of the training images, where they have one; None if not.
        image_width: pixels of the width at which `focal_px` holds.
        canonical: whether the depth of all images was scaled to a camera of `focal_px`, in pixels of the
            model's input (`stage.canonical_focal`): metres of another camera are the prediction times its
            focal length / `focal_px`.

    Raises:
        ValueError: no set is named, or focal length and width are not both given and above 0.
    """

    sets: tuple[str, ...]
    focal_px: float | None = None
    image_width: int | None = None
    canonical: bool = False

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("trained_on names no data set")
        camera = {"focal_px": self.focal_px, "image_width": self.image_width}
        if all(value is None for value in camera.values()) and not self.canonical:
            return
        for name, value in camera.items():
            if value is None or not 0 < value < math.inf:
                raise ValueError(
                    f"trained_on: {name}={value}: expected pixels above 0, with {' and '.join(camera)}"
                )

    def describe(self) -> str:
        """Returns it in words, such as "hypersim, focal length 887 px at a width of 1024"."""
        names = " and ".join(self.sets)
        if self.focal_px is None:
            return names
        if not self.canonical:
            return f"{names}, {self._camera()}"
        return (
            f"{names}, in {self.unit()}: multiply them by your focal length / {self.focal_px:g}, both in "
            "pixels of the model's input"
        )

    def unit(self) -> str:
        """Returns the unit of predictions, such as "metres of a camera of focal length 200 px at a width of
        126".
        """
        return f"metres of a camera of {self._camera()}" if self.canonical else "metres"

    def _camera(self) -> str:
        return f"focal length {self.focal_px:g} px at a width of {self.image_width}"

    def to_config(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint."""
        return {**asdict(self), "sets": list(self.sets)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TrainedOn":
        """Returns what `to_config` described."""
        camera = (config.get("focal_px"), config.get("image_width"))
        return cls(tuple(config["sets"]), *camera, bool(config.get("canonical", False)))
