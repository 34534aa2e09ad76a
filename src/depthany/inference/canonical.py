"""Metres of any camera from a model that predicts those of one camera (`stage.canonical_focal`)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from depthany.inference.predictor import Predictor, PreparedImage
from depthany.models.trained_on import TrainedOn


@dataclass(frozen=True)
class CanonicalPredictor(Predictor):
    """Returns metres of a camera from a model that predicts them for one of another focal length.

    Attributes:
        focal_px: focal length that the model was trained for, in pixels of its input.
        focal, focal_width: camera of the images, see `data.labeled.PairedDepth`.
    """

    focal_px: float = 1.0
    focal: float = 1.0
    focal_width: float | None = None

    def maps_of(self, images: Sequence[PreparedImage]) -> torch.Tensor:
        """Returns the maps [b h w] in metres."""
        maps = super().maps_of(images)
        widths = [self.focal_width or image.size[1] for image in images]
        factors = [self.focal / width * maps.shape[-1] / self.focal_px for width in widths]
        return maps * torch.tensor(factors, device=maps.device)[:, None, None]


def canonical(
    predictor: Predictor, focal_px: float, focal: float, focal_width: float | None = None
) -> CanonicalPredictor:
    """Returns the predictor for images of a camera; see `CanonicalPredictor`."""
    of_model = {each.name: getattr(predictor, each.name) for each in fields(Predictor)}
    return CanonicalPredictor(**of_model, focal_px=focal_px, focal=focal, focal_width=focal_width)


def camera_of(predictor: Any) -> TrainedOn | None:
    """Returns the one camera whose metres a predictor returns; None if it is of no canonical camera."""
    if not isinstance(predictor, Predictor) or isinstance(predictor, CanonicalPredictor):
        return None
    about = getattr(predictor.model, "trained_on", None)  # a model of a plugin may not say it
    return about if about is not None and about.canonical and predictor.quantity.is_metric else None


def at_camera_of(predictor: Any, dataset: Any, name: str, needs_metres: bool) -> Any:
    """Returns the predictor for the camera of a set, if it predicts metres of another one.

    Args:
        predictor: anything that `score_set` takes.
        dataset: may have `focal` and `focal_width`, see `data.labeled.PairedDepth`.
        name: name of the protocol, for the message.
        needs_metres: whether its scale counts, as without alignment.

    Raises:
        ValueError: the scale counts, and the set does not say its focal length.
    """
    about, focal = camera_of(predictor), getattr(dataset, "focal", None)
    if about is None:
        return predictor
    assert about.focal_px is not None
    if focal is not None:
        return canonical(predictor, about.focal_px, focal, getattr(dataset, "focal_width", None))
    if needs_metres:
        raise ValueError(
            f"{name}: {predictor.label} predicts metres of one camera (focal length {about.focal_px:g} px at "
            f"an input {about.image_width} px wide), and the set does not say its own: pass folder.focal=, "
            "in pixels of its images, or name focal below dataset in a protocol file; or align the "
            "predictions, with override.align=median"
        )
    return predictor
