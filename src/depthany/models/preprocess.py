"""From an RGB image to the model's input, as the released code does it.

Source: Yang et al. 2024 (arXiv 2401.10891, arXiv 2406.09414), test-time transform of the released code:
aspect ratio kept, shorter side at least the input size, sides multiples of 14, cubic.
"""

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthany.system.transfer import send

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 40_000 * 14**2  # 8 million: 2800 x 2800, or a strip of 518 x 15,000


def check_image(image: NDArray[np.uint8]) -> None:
    """Raises a `ValueError` unless `image` is an RGB uint8 array [h w 3] of at least one pixel."""
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image is a {type(image).__name__}; expected a NumPy array [h w 3] of uint8 RGB: "
            "np.asarray(image.convert('RGB')) makes one of a Pillow image"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image has shape {image.shape}; expected RGB [h w 3] with at least one pixel")
    if image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype}; expected uint8 with values 0 to 255: convert it first")


@dataclass(frozen=True)
class Preprocessing:
    """From images to the input of an encoder.

    Attributes:
        multiple: both sides of an input are multiples of this number of pixels: the patch size of a vision
            transformer, the largest stride of a CNN.
        mean, std: mean and standard deviation of the normalisation, RGB in 0..1.
    """

    multiple: int = 14
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def input_shape(self, height: int, width: int, input_size: int) -> tuple[int, int]:
        """Returns height and width of the model input for an image [height width].

        The image is scaled so that its shorter side is `input_size`. Then each side is rounded to the nearest
        multiple of `multiple`, or up if the nearest one is below `input_size`.

        Raises:
            ValueError: `input_size` is not a whole number of at least `multiple`, or the input would have
                more than `MAX_PIXELS` pixels.
        """
        self.require_input_size(input_size)
        scale = input_size / min(height, width)
        shape = self._rounded(scale * height, input_size), self._rounded(scale * width, input_size)
        if shape[0] * shape[1] > MAX_PIXELS:
            raise ValueError(
                f"image is ({height}, {width}) and would be {shape} with input_size={input_size}, more than "
                f"{MAX_PIXELS / 1e6:.1f} million pixels: pass a smaller input_size, or crop the image"
            )
        return shape

    def require_input_size(self, input_size: object) -> None:
        """Raises a `ValueError` unless `input_size` is a whole number of at least `multiple` pixels, and not
        too large for every image.
        """
        is_whole = isinstance(input_size, int | np.integer) and not isinstance(input_size, bool)
        if not is_whole or input_size < self.multiple:  # type: ignore[operator]
            raise ValueError(
                f"input_size={input_size!r}: expected a whole number of pixels, {self.multiple} or more"
            )
        largest = math.isqrt(MAX_PIXELS) // self.multiple * self.multiple
        if input_size > largest:  # type: ignore[operator]
            raise ValueError(
                f"input_size={input_size}: expected {largest} or less, since the input of any image would "
                f"have more than {MAX_PIXELS / 1e6:.1f} million pixels"
            )

    def shorter_side(self, input_size: int) -> int:
        """Returns the shorter side of inputs with this `input_size`: the next multiple of `multiple`."""
        return math.ceil(input_size / self.multiple) * self.multiple

    def prepare(self, image: NDArray[np.uint8], input_size: int) -> Tensor:
        """Returns the model input [3 h w] float32 of an image [height width 3] uint8 RGB, (h, w) from
        `input_shape`.

        The image is resized by OpenCV's bicubic kernel on floats (values may leave 0..1 at edges, as in the
        released code) and normalised. Departure: float32 where the released code has float64, 4 times faster;
        with random weights of vits at 720 x 1280 it moved the output by 3e-6 of its range on a smooth image,
        5e-5 on noise.
        """
        check_image(image)
        return self.prepare_at(image, self.input_shape(image.shape[0], image.shape[1], input_size))

    def prepare_at(self, image: NDArray[np.uint8], shape: tuple[int, int]) -> Tensor:
        """Returns the model input [3 h w] float32 of `shape` (h, w) of an image [height width 3] uint8 RGB,
        whose aspect may change; resized and normalised as in `prepare`.
        """
        check_image(image)
        h, w = shape
        resized = image.astype(np.float32) / np.float32(255.0)
        if resized.shape[:2] != (h, w):
            resized = cv2.resize(resized, (w, h), interpolation=cv2.INTER_CUBIC)
        resized = (resized - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def normalise(self, image: Tensor) -> Tensor:
        """Returns image [b 3 h w] uint8 RGB as float32, normalised."""
        if image.device.type != "cpu":  # kept constants, one pass: the same up to rounding
            scale, shift = _scale_and_shift(self.mean, self.std, image.device)
            return torch.addcmul(shift, image.to(torch.float32), scale)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        copy = image.to(torch.float32, copy=True)  # in place from here on: a quarter of the memory
        return copy.div_(255.0).sub_(mean).div_(std)

    def _rounded(self, side: float, least: int) -> int:
        nearest = round(side / self.multiple) * self.multiple
        return nearest if nearest >= least else math.ceil(side / self.multiple) * self.multiple


@cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns [3 1 1] each, on the device: a byte times the first plus the second is normalised."""
    both = torch.tensor([[1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std)]])
    scale, shift = send(both, device)[:, :, None, None]
    return scale, shift
