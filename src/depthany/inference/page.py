"""The page of `depthany.app`: its layout and its controls."""

import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthany.data.image_formats import MissingDecoder, image_suffixes, open_image
from depthany.data.images import decode_image, read_bytes
from depthany.display.class_pictures import overlay
from depthany.display.pictures import COLOUR_MAPS
from depthany.inference.constant_maps import constant_maps
from depthany.inference.demonstration import note_on_small_model, size_advice
from depthany.inference.outputs import OutputSettings, picture, write_color, write_png16
from depthany.inference.page_cloud import cloud_controls, cloud_view, make_cloud, no_cloud, problem_of_cloud
from depthany.inference.readout import SLIDER_ID, classes_html, metres_html
from depthany.metrics.constant import is_constant
from depthany.models.model import DenseModel
from depthany.system.files import bundled

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "AVIF",
    "BMP",
    "TIFF",
)  # Pillow's names; its other decoders never see a file
EXAMPLE = "data/sample/unlabeled/test/images/rooms/00000.jpg"  # there in a checkout
SHOWN_PIXELS = 1600  # longer side of the pictures that the browser gets
KEPT_FOLDERS = 8  # latest downloads; gradio serves copies of its own
HELP = {
    "disparity": "Red, bright or white is near. The numbers are **disparity of unknown scale and shift**: "
    "they say what is nearer, not how many metres away it is.",
    "classes": "Every colour is one of **{quantity}**. The PNG holds their numbers, with the colours as its "
    "palette.",
    "depth_m": "Red, bright or white is near. The numbers are **{quantity}**, in the 16-bit PNG millimetres.",
}


@dataclass(frozen=True)
class PredictedPhoto:
    """A photo and its map.

    Attributes:
        image: [h w 3] uint8 RGB.
        values: [h w] float32, as predicted.
        name: name of the file, without suffix.
    """

    image: NDArray[np.uint8]
    values: NDArray[np.float32]
    name: str


class Page:
    """Reacts to the controls of the page. A photo that cannot be used leads to a message.

    Args:
        model: prepared for inference.
        max_megapixels: larger photos are refused before they are decoded.
        input_size: initial input size, a multiple of the patch; None: that of training.
    """

    def __init__(self, model: DenseModel, max_megapixels: float, input_size: int | None = None) -> None:
        self.model, self.max_megapixels = model, max_megapixels
        self.input_size = input_size or model.preprocessing.shorter_side(model.input_size)
        found = Path(bundled(EXAMPLE))
        self.example = found if found.is_file() else None
        self.quantity = model.quantity
        self.metres = "metres" if model.trained_on is None else model.trained_on.unit()
        self._downloads = tempfile.TemporaryDirectory(prefix="depthany-page-")

    def predict(self, path: str | None, input_size: float | None, colour_map: str) -> list[Any]:
        """Returns prediction, slider, metres, 16-bit PNG, point cloud and its view (none yet) and message.

        An unusable size changes nothing but the message.
        """
        if path is None:
            return [None, None, "", _no_download(), *no_cloud(), ""]
        if problem := self.problem_of_size(input_size):
            return [*(gr.skip() for _ in range(6)), problem]
        try:
            image = self.read(Path(path))
            values = self.model.infer(image, int(input_size or 0))
        except ValueError as error:
            return [None, None, "", _no_download(), *no_cloud(), _problem(error, path)]
        prediction = PredictedPhoto(image, values, Path(path).stem)
        settings = OutputSettings(self.quantity, metres=self.metres)
        ending, write_png = ("classes", write_color) if settings.is_of_classes else ("16bit", write_png16)
        png = self._folder() / f"{prediction.name}_{ending}.png"
        write_png(png, image, values, settings)
        return [
            prediction,
            *self.recolour(prediction, colour_map),
            gr.DownloadButton(value=str(png), interactive=True),
            *no_cloud(),
            _warnings(prediction, settings),
        ]

    def sizes(self) -> tuple[int, int]:
        """Returns the smallest and the largest input size on offer."""
        return min(self.input_size, 10 * self.model.preprocessing.multiple), 2 * self.input_size

    def problem_of_size(self, input_size: float | None) -> str:
        """Returns what is wrong with the number in the field, "" if nothing is."""
        smallest, largest = self.sizes()
        if input_size is not None and smallest <= input_size <= largest:
            return ""
        given = "no number" if input_size is None else f"{input_size:g}"
        return f"**Input size, {given}:** expected {smallest} to {largest} pixels. The picture is unchanged."

    def recolour(self, prediction: PredictedPhoto | None, colour_map: str) -> list[Any]:
        """Returns slider and metres, or the list of classes, for the page."""
        if prediction is not None and self.quantity.kind == "classes":
            shares = classes_html(prediction.values, OutputSettings(self.quantity))
            return [self.show(prediction, colour_map), shares]
        has_metres = prediction is not None and self.quantity.is_metric
        metres = metres_html(prediction.values, colour_map) if prediction and has_metres else ""
        return [self.show(prediction, colour_map), metres]

    def show(self, prediction: PredictedPhoto | None, colour_map: str) -> tuple[NDArray, NDArray] | None:
        """Returns the two sides of the slider: photo and picture of depth, no larger than a screen."""
        if prediction is None:
            return None
        coloured = picture(prediction.values, OutputSettings(self.quantity, colour_map))
        if self.quantity.kind == "classes":
            coloured = overlay(prediction.image, coloured)
        return _for_screen(prediction.image), _for_screen(coloured)

    def cloud(
        self,
        prediction: PredictedPhoto | None,
        near_m: float | None,
        far_m: float | None,
        fov_deg: float | None,
    ) -> list[Any]:
        """Returns point cloud, its view and message, for the page."""
        if prediction is None:
            return [*no_cloud(), "**No photo yet:** drop one first."]
        if problem := problem_of_cloud(self.quantity.is_metric, near_m, far_m, fov_deg):
            return [*no_cloud(), problem]
        range_m = None if self.quantity.is_metric else (float(near_m or 0), float(far_m or 0))
        settings = OutputSettings(self.quantity, range_m=range_m, fov_deg=float(fov_deg or 0))
        path = self._folder() / f"{prediction.name}.ply"
        return make_cloud(path, prediction.image, prediction.values, settings)

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Returns the photo [h w 3] uint8 RGB.

        Raises:
            ValueError: the file is not an image of a known format, is damaged, or has too many pixels.
        """
        stored = read_bytes(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with open_image(stored, FORMATS) as file:  # reads the header only
                    width, height = file.size
        except MissingDecoder:
            raise
        except Exception:  # Pillow's parsers raise many kinds on a damaged file
            raise ValueError("not a readable photo: expected JPEG, PNG, WebP, AVIF, BMP or TIFF") from None
        if width * height > self.max_megapixels * 1e6:
            raise ValueError(
                f"{width} x {height} is more than {self.max_megapixels:g} million pixels; make it smaller, "
                "or start the app with a larger max_megapixels"
            )
        return decode_image(stored, str(path), convert=True)

    def _folder(self) -> Path:
        """Makes a folder for a download; deletes the oldest ones."""
        root = Path(self._downloads.name)
        for old in sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime)[: -KEPT_FOLDERS + 1]:
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=root))


def build(page: Page) -> gr.Blocks:
    """Lays out the page and connects its controls."""
    is_metric, multiple = page.quantity.is_metric, page.model.preprocessing.multiple
    of_classes = page.quantity.kind == "classes"
    shown = "classes" if of_classes else "depth"
    with gr.Blocks(
        analytics_enabled=False, title="depthany", fill_width=True, delete_cache=(600, 3600)
    ) as blocks:
        prediction = gr.State(None, time_to_live=3600)
        gr.Markdown(f"# depthany\nThe {shown} of a photo, by {page.model.encoder.label}.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                photo = gr.File(label="Photo", file_types=list(image_suffixes()), height=140)
                colour_map = gr.Dropdown(
                    list(COLOUR_MAPS), value="spectral_r", label="Colour map", visible=not of_classes
                )
                example = gr.Button("Example photo", visible=page.example is not None)
                example.click(lambda: str(page.example), outputs=photo)
                input_size = gr.Slider(
                    *page.sizes(),
                    value=page.input_size,
                    step=multiple,
                    label="Input size (pixels)",
                    info=f"Shorter side as the model sees it. {size_advice(page.model)}",
                )
                png = gr.DownloadButton("Palette PNG" if of_classes else "16-bit PNG", interactive=False)
                cloud = cloud_controls(is_metric, visible=not of_classes)
            with gr.Column(scale=3):
                message = gr.Markdown("", elem_id="message")
                slider = gr.ImageSlider(
                    label=f"Photo | {shown}",
                    type="numpy",
                    interactive=False,
                    format="jpeg",
                    max_height=640,
                    elem_id=SLIDER_ID,
                )
                metres = gr.HTML("", visible=is_metric or of_classes)
                view = cloud_view(visible=not of_classes)
                if note := note_on_small_model(page.model):
                    gr.Markdown(f"**Note:** {note}.")
                gr.Markdown(HELP[page.quantity.kind].format(quantity=page.quantity.describe(page.metres)))
        gr.on(
            [photo.change, input_size.release],
            page.predict,
            [photo, input_size, colour_map],
            [prediction, slider, metres, png, cloud.ply, view, message],
        )
        colour_map.change(page.recolour, [prediction, colour_map], [slider, metres])
        cloud.make.click(page.cloud, [prediction, *cloud.numbers], [cloud.ply, view, message])
    return blocks


def theme() -> gr.themes.Base:
    """Returns Gradio's theme with system fonts: the page loads nothing from other machines."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _no_download() -> Any:
    return gr.DownloadButton(value=None, interactive=False)


def _warnings(prediction: PredictedPhoto, settings: OutputSettings) -> str:
    """Returns what is wrong with a prediction, "" if nothing is."""
    if settings.is_of_classes:  # a photo of one class is no fault
        return ""
    lines = [constant_maps([prediction.name], 1)] if is_constant(prediction.values) else []
    if beyond := settings.beyond_16bit(prediction.values):
        lines.append(f"{beyond} pixels are beyond {settings.largest_16bit_m:g} m, the end of the 16-bit PNG.")
    return "  \n".join(f"**Warning:** {line}" for line in lines)


def _problem(error: ValueError, path: str) -> str:
    name = Path(path).name
    text = str(error).replace(f"{path}: ", "").replace(path, name)
    return f"**{name} cannot be used:** {text}"


def _for_screen(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shrink = SHOWN_PIXELS / max(image.shape[:2])
    if shrink >= 1:
        return image
    size = max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
