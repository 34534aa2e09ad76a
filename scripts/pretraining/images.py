"""All images in memory, and random crops of them as batches on the device."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional as F

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find_images(roots: Sequence[str | Path]) -> list[Path]:
    """Returns all images below the roots, sorted; raises ValueError if a root has none."""
    found: list[Path] = []
    for root in roots:
        paths = sorted(path for path in Path(root).rglob("*") if path.suffix.lower() in SUFFIXES)
        paths = [path for path in paths if ".partial" not in path.name]
        if not paths:
            raise ValueError(f"{root} has no image; pass --roots with folders of {', '.join(SUFFIXES)}")
        found += paths
    return found


class ImageStore:
    """Images of several sizes on one canvas, on the device.

    Attributes:
        canvas: [n 3 h w] uint8 RGB; each image lies in the upper left corner.
        sizes: [n 2] height and width of each image.
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]], device: torch.device) -> None:
        heights, widths = zip(*(image.shape[:2] for image in images))
        self.canvas = torch.zeros(len(images), 3, max(heights), max(widths), dtype=torch.uint8)
        for place, image in zip(self.canvas, images):
            place[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
        self.canvas = self.canvas.to(device)
        self.sizes = torch.tensor(list(zip(heights, widths)), dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self.canvas)


def read_images(paths: Sequence[Path], threads: int) -> list[NDArray[np.uint8]]:
    """Returns images [h w 3] uint8 RGB."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read_rgb, paths))


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Returns an image [h w 3] uint8 RGB."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"{path} is not a readable image; delete it and render it again")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def drawn_images(count: int, step: int, batch: int, seed: int) -> Tensor:
    """Returns [batch] indices of the images of a step: a new random order for each pass over all images."""
    picked: list[Tensor] = []
    place, left = step * batch, batch
    while left:
        epoch, start = divmod(place, count)
        order = torch.randperm(count, generator=Generator().manual_seed(seed * 1_000_003 + epoch))
        part = order[start : start + left]
        picked.append(part)
        place, left = place + len(part), left - len(part)
    return torch.cat(picked)


def random_crops(
    store: ImageStore,
    index: Tensor,
    side: int,
    area: tuple[float, float],
    generator: Generator,
    oversampling: int = 1,
) -> Tensor:
    """Returns random crops [b 3 side side] float32 in 0..1, half of them mirrored.

    Args:
        index: [b] images, on the CPU.
        area: range of the share of the image's area; the aspect ratio is 3/4 to 4/3.
        generator: on the CPU.
        oversampling: samples per pixel and axis, whose mean is taken: for crops that shrink the image.
    """
    b, device = len(index), store.canvas.device
    draw = torch.rand(5, b, generator=generator).to(device)
    index = index.to(device)
    height, width = store.sizes[index].T
    share = (area[0] + (area[1] - area[0]) * draw[0]) * height * width
    aspect = torch.exp((2 * draw[1] - 1) * math.log(4 / 3))  # width / height
    crop_h = torch.minimum((share / aspect).sqrt(), height)
    crop_w = torch.minimum((share * aspect).sqrt(), width)
    top, left = draw[2] * (height - crop_h), draw[3] * (width - crop_w)
    crop_w, left = (
        torch.where(draw[4] < 0.5, -crop_w, crop_w),
        torch.where(draw[4] < 0.5, left + crop_w, left),
    )
    samples = side * oversampling
    step = (torch.arange(samples, device=device) + 0.5) / samples  # [s] in 0..1
    y = (top[:, None] + crop_h[:, None] * step) / store.canvas.shape[2] * 2 - 1  # [b s]
    x = (left[:, None] + crop_w[:, None] * step) / store.canvas.shape[3] * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)  # [b s s 2]
    # "border" stops at the canvas; an image smaller than the canvas gets half a pixel of black at most
    images = store.canvas[index].float() / 255
    crops = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(crops, oversampling) if oversampling > 1 else crops
