"""What an evaluation protocol fixes about the input of a model: its size, and the views to average."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from depthany.models.preprocess import MAX_PIXELS, Preprocessing, check_image

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class FixedSize:
    """An input of one size for every image, as ZoeDepth makes it (Resize in models/base_models/midas.py).

    The image is resized bilinearly with aligned corners, without antialiasing. The preprocessing of Depth
    Anything differs in all three: aspect kept, shorter side at least the size, bicubic.

    Attributes:
        size: height and width of the input.
        keep_aspect: scale by one factor, the one of height and width that is closer to 1, and round both
            sides to the nearest multiple of the patch size; False stretches the image to `size`.
        resize_first: height and width to which the image is resized before (bilinear, corners not aligned, no
            antialiasing); None: no such step.
    """

    size: Size
    keep_aspect: bool = False
    resize_first: Size | None = None

    def input_shape(self, height: int, width: int, multiple: int) -> Size:
        """Returns the height and width of the model input of an image [height width].

        Raises:
            ValueError: the input would have more than `MAX_PIXELS` pixels.
        """
        if self.resize_first is not None:
            height, width = self.resize_first
        scales = self.size[0] / height, self.size[1] / width
        if self.keep_aspect:
            scales = (min(scales, key=lambda scale: abs(1 - scale)),) * 2
        sides = [
            max(1, round(scale * side / multiple)) * multiple for scale, side in zip(scales, (height, width))
        ]
        if sides[0] * sides[1] > MAX_PIXELS:
            raise ValueError(
                f"image is ({height}, {width}) and would be ({sides[0]}, {sides[1]}) with "
                f"eval_size={list(self.size)}, more than {MAX_PIXELS / 1e6:.1f} million pixels"
            )
        return sides[0], sides[1]

    def prepare(self, image: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
        """Returns the model input [3 h w] float32, normalised, of an image [height width 3] uint8 RGB."""
        check_image(image)
        shape = self.input_shape(image.shape[0], image.shape[1], preprocessing.multiple)
        pixels = torch.from_numpy(image.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[
            None
        ]  # [1 3 h w]
        if self.resize_first is not None:
            pixels = F.interpolate(pixels, self.resize_first, mode="bilinear", align_corners=False)
        pixels = F.interpolate(pixels, shape, mode="bilinear", align_corners=True)[0]
        mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
        return (pixels - mean) / std


@dataclass(frozen=True)
class StretchedSize(FixedSize):
    """An input of one size for every image, stretched as the metadata of an exported file say: by the kernel
    of Depth Anything's preprocessing. `size` must be multiples of the patch size.
    """

    def prepare(self, image: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
        """Returns the model input [3 h w] float32, normalised, of an image [height width 3] uint8 RGB."""
        return preprocessing.prepare_at(image, self.size)


@dataclass(frozen=True)
class ModelInput:
    """What a protocol says about the model's side of a score.

    Attributes:
        input_size: pixels of the shorter side; None: the model's own.
        fixed: one size for every image; None: see `input_size`.
        flip: average over the mirrored image, too.
        allow_not_finite: hand out maps in metres with NaN or infinity, which the score replaces and counts.
        window, stride: for a model of classes, see `Predictor`.
    """

    input_size: int | None = None
    fixed: FixedSize | None = None
    flip: bool = False
    allow_not_finite: bool = False
    window: int | None = None
    stride: int | None = None
