"""Sizes of predictions in files: a map of another part or shape of the image must not pass for the whole."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from depthany.evaluation.predictors import FolderPredictor, MissingPrediction, ScoredPredictor
from depthany.evaluation.protocol import Protocol

Size = tuple[int, int]  # height, width
Box = tuple[slice, slice]
LOOKED_AT = 3  # predictions of a set
STRETCHED = 0.1  # sides rounded to multiples of a patch change the ratio by less


def shown_part(prediction: Tensor, shown_hw: Size, whole_hw: Size, box: Box | None, name: str) -> Tensor:
    """Returns the part of a stored prediction [h w] that shows what a model would see of its image.

    A prediction of the size of the whole image is cropped like it; another one shows the same part as the
    cropped image, at any size.

    Args:
        shown_hw: height and width of the image after `input_crop`; whole_hw: before it.
        box: the crop, None for none.
        name: name of the image, for messages.

    Raises:
        ValueError: the prediction has rows and columns swapped, or shows the whole image at another size.
    """
    hw: Size = (prediction.shape[0], prediction.shape[1])
    if box is not None and hw == whole_hw:
        return prediction[box]
    if hw != shown_hw and hw in (shown_hw[::-1], whole_hw[::-1]):
        raise ValueError(
            f"{name}: the prediction is {in_words(hw)}, its image {in_words(shown_hw)}: rows and columns are "
            "swapped"
        )
    if box is not None and stretch(hw, whole_hw) < stretch(hw, shown_hw):
        raise ValueError(
            f"{name}: the prediction is {in_words(hw)}, in the ratio of the whole image, "
            f"{in_words(whole_hw)}, but input_crop leaves {in_words(shown_hw)} of it: write predictions at "
            "the size of the whole image, which are cropped, or of the cropped one"
        )
    return prediction


def stretch_warnings(
    predictor: ScoredPredictor, dataset: Any, protocol: Protocol, convert_images: bool = True
) -> list[str]:
    """Returns a warning if stored predictions of a set have another ratio of sides than their images.

    Reads a few images. What cannot be read is left to the evaluation.
    """
    if not isinstance(predictor, FolderPredictor):
        return []
    files = predictor.for_protocol(protocol.name, protocol.model_input)
    for index in range(min(LOOKED_AT, len(dataset))):
        try:
            image = dataset.read(index, convert_images).image
            (prediction,) = files.prepare(image, dataset.name(index))
        except (ValueError, MissingPrediction):
            continue
        hw: Size = (prediction.shape[0], prediction.shape[1])
        if stretch(hw, image.shape[:2]) > STRETCHED:
            return [
                f"protocol {protocol.name}, {predictor.label}: the prediction of {dataset.name(index)} is "
                f"{in_words(hw)}, its image {in_words(image.shape[:2])}: it is stretched to the image, "
                "which is right only if it shows the whole image"
            ]
    return []


def stretch(hw: Sequence[int], other_hw: Sequence[int]) -> float:
    """Returns by how much the ratios of two sizes (height, width) differ, 0 for equal ones."""
    return abs(math.log(hw[0] * other_hw[1] / (hw[1] * other_hw[0])))


def in_words(hw: Sequence[int]) -> str:
    """Returns a size (height, width) as WIDTHxHEIGHT."""
    return f"{hw[1]}x{hw[0]}"
