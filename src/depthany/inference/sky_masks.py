"""Masks of the sky for a folder of images: read ahead, predicted in batches, written behind, resumable."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.data.folders import walk
from depthany.data.images import read_image
from depthany.data.masks import read_mask
from depthany.display.class_pictures import overlay
from depthany.display.progress import Bar
from depthany.inference.pipeline import Skipped, run_pipeline
from depthany.inference.predictor import PreparedImage
from depthany.inference.segmenters import Segmenter
from depthany.system.files import write_atomically

NOTE, SHEET = "sky.json", "contact.jpg"
SHOWN, TILE, COLUMNS = 16, 240, 4  # images of the contact sheet, width of one, tiles in a row
_SKY = (70, 130, 180)


@dataclass(frozen=True)
class SkySettings:
    """What decides a mask; noted beside the masks, and compared when a folder is continued.

    model, revision: identify the segmenter. sky_class: its name. threshold: least probability of sky.
    erode: pixels by which the sky is made smaller, for thin structures in front of it. input_size: pixels of
    the shorter side of the model's input; None = its processor decides. precision: number format of the
    model's matrix products.
    """

    model: str
    revision: str
    sky_class: str
    threshold: float
    erode: int
    input_size: int | None = None
    precision: str = "float32"

    def mask(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Returns the sky [h w] bool of its probability [h w]."""
        sky = probability >= self.threshold
        if not self.erode:
            return sky
        side = 2 * self.erode + 1
        kernel = np.ones((side, side), np.uint8)
        padded = cv2.copyMakeBorder(sky.astype(np.uint8), *(self.erode,) * 4, cv2.BORDER_REPLICATE)
        inner = cv2.erode(padded, kernel)[self.erode : -self.erode, self.erode : -self.erode]
        return inner.astype(bool)


@dataclass(frozen=True)
class SkyJob:
    """An image and the file of its mask."""

    path: Path
    target: Path


@dataclass
class SkyCounts:
    """What became of the images; threads add to it.

    shares: share of sky in each predicted image. unreadable: one line per file.
    """

    shares: list[float] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def add(self, share: float) -> None:
        """Counts a mask."""
        with self._lock:
            self.shares.append(share)


@dataclass(frozen=True)
class SkyImage(PreparedImage):
    """An image that was read, and its job."""

    job: SkyJob


def make_masks(
    jobs: Sequence[SkyJob],
    segmenter: Segmenter,
    number: int,
    settings: SkySettings,
    batch_size: int,
    workers: int,
    bar: Bar,
) -> SkyCounts:
    """Predicts and writes the masks of all images that can be read.

    Args:
        number: number of the class.
        batch_size: images of equal input shape that go through the model together.
        workers: threads that read, and as many that write.
    """
    counts = SkyCounts()

    def read(job: SkyJob) -> SkyImage | Skipped[SkyJob]:
        try:
            pixels = read_image(job.path, convert=True)
            inputs = segmenter.prepare(pixels, str(job.path))
        except ValueError as error:
            return Skipped(job, str(error))
        return SkyImage(str(job.path), inputs, (pixels.shape[0], pixels.shape[1]), job)

    def predict(images: Sequence[SkyImage]) -> Iterator[NDArray[np.float32]]:
        return segmenter.probabilities(images, number)

    def finish(image: SkyImage, probability: NDArray[np.float32]) -> None:
        sky = settings.mask(probability)
        write_mask(image.job.target, sky)
        counts.add(float(sky.mean()))
        bar.advance()

    def skip(skipped: Skipped[SkyJob]) -> None:
        counts.unreadable.append(skipped.message)
        bar.advance()

    run_pipeline(jobs, read, predict, finish, batch_size=batch_size, threads=workers, skip=skip)
    return counts


def write_mask(path: Path, sky: NDArray[np.bool_]) -> None:
    """Writes a mask [h w] as a PNG of 1 bit: white is sky."""
    picture = Image.fromarray(sky.astype(np.uint8) * 255).convert("1")
    write_atomically(path, lambda partial: picture.save(partial, "PNG"))


def require_same_note(out: Path, settings: SkySettings, jobs: Sequence[SkyJob]) -> None:
    """Raises ValueError if the folder holds masks that were made with other settings, or does not say how."""
    path = out / NOTE
    if not path.is_file():
        if there := [job.target for job in jobs if job.target.exists()]:
            raise ValueError(
                f"{there[0]} exists, but no {path} says how it was made: pass another out=..., or "
                "overwrite=true to make it again"
            )
        return
    noted = _noted(out)
    if noted is None:
        raise ValueError(f"{path} is damaged: overwrite=true makes all masks again")
    for key, value in asdict(settings).items():
        if noted.get(key) != value:
            raise ValueError(
                f"{out} holds masks with {key}={noted.get(key)}, not {value}: pass another out=..., or "
                "overwrite=true to make all of them again"
            )


def delete_masks(out: Path, settings: SkySettings, jobs: Sequence[SkyJob]) -> None:
    """Deletes the masks of the jobs, before the note says that the folder has masks with `settings`: if the
    run ends early, no mask made otherwise is taken for one of these.

    Raises:
        ValueError: the folder would keep masks of other images, which were made with other settings.
    """
    targets = {job.target for job in jobs}
    found = (Path(folder, name) for folder, _, names in walk(out) for name in names if name.endswith(".png"))
    others = sorted(path for path in found if path not in targets)
    if others and _noted(out) != asdict(settings):
        raise ValueError(
            f"{out} also holds {others[0]}, which overwrite=true would not make again with these settings: "
            "leave out limit, name all images, or pass another out=..."
        )
    for target in targets:
        target.unlink(missing_ok=True)


def _noted(out: Path) -> Mapping[str, Any] | None:
    """Returns the settings in the note of a folder; None if there is none, or it is damaged."""
    try:
        noted = json.loads((out / NOTE).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return noted if isinstance(noted, dict) else None


def write_note(out: Path, settings: SkySettings, about: Mapping[str, Any]) -> None:
    """Writes how the masks were made beside them."""
    text = json.dumps({"settings": asdict(settings), **about}, indent=2) + "\n"
    write_atomically(out / NOTE, lambda path: path.write_text(text, encoding="utf-8"))


def draw_contact_sheet(out: Path, jobs: Sequence[SkyJob]) -> tuple[Path | None, list[str]]:
    """Writes a picture of some images with their sky in blue.

    Args:
        jobs: jobs whose masks exist.

    Returns:
        Its path, None if no image can be drawn, and a line for each image that is left out.
    """
    tiles, left_out = list[NDArray[np.uint8]](), list[str]()
    for job in (jobs[k * len(jobs) // min(SHOWN, len(jobs))] for k in range(min(SHOWN, len(jobs)))):
        try:
            tiles.append(_tile(job))
        except ValueError as error:
            left_out.append(str(error))
    if not tiles:
        return None, left_out
    height = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(tile, ((0, height - tile.shape[0]), (0, 0), (0, 0))) for tile in tiles]
    padded += [np.zeros_like(padded[0])] * (-len(padded) % COLUMNS)
    rows = [np.concatenate(padded[i : i + COLUMNS], axis=1) for i in range(0, len(padded), COLUMNS)]
    sheet = Image.fromarray(np.concatenate(rows))
    write_atomically(out / SHEET, lambda path: sheet.save(path, "JPEG", quality=90))
    return out / SHEET, left_out


def _tile(job: SkyJob) -> NDArray[np.uint8]:
    """Returns an image with its sky in blue, TILE pixels wide.

    Raises:
        ValueError: the image or the mask cannot be read, or their sizes differ.
    """
    remedy = "delete it, or pass overwrite=true to make all masks again"
    image = read_image(job.path, convert=True)
    try:
        sky = read_mask(job.target) != 0
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from None
    if sky.shape != image.shape[:2]:
        sizes = [f"{width}x{height}" for height, width in (sky.shape, image.shape[:2])]
        raise ValueError(
            f"{job.target} is a mask of {sizes[0]} pixels, but {job.path} has {sizes[1]}, as if it was "
            f"replaced after the mask was made: {remedy}"
        )
    coloured = np.where(sky[:, :, None], np.array(_SKY, np.uint8), image)
    size = TILE, max(1, round(image.shape[0] * TILE / image.shape[1]))
    return cv2.resize(overlay(image, coloured), size, interpolation=cv2.INTER_AREA).astype(np.uint8)
