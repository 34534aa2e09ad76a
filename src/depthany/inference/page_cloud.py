"""Point clouds on the page of `depthany.app`: the checks of its numbers, the files and the view."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from depthany.inference.outputs import OutputSettings, upright_points, write_ply
from depthany.system.packages import optional

CLOUD_POINTS = 1_000_000  # largest file; a larger photo contributes every 2nd, 3rd ... pixel
SHOWN_POINTS = 250_000  # largest view
LARGEST_RATIO = 1.2  # of the depths of neighbours that the view connects
ASSUMED = (
    "This model does not predict metres: the nearest and farthest distances are **assumed** here, and so is "
    "the field of view. The cloud is only as accurate as they are."
)
ASSUMED_VIEW = (
    "Depth is in metres, as predicted; the field of view is **assumed**: it sets how wide the cloud is."
)


@dataclass(frozen=True)
class CloudControls:
    """What the page shows about point clouds.

    Attributes:
        numbers: nearest and farthest distance, field of view.
        make: the button that makes a cloud.
        ply: the download of the cloud.
    """

    numbers: tuple[gr.Number, gr.Number, gr.Number]
    make: gr.Button
    ply: gr.DownloadButton


def cloud_controls(is_metric: bool, visible: bool) -> CloudControls:
    """Adds the controls to the page."""
    with gr.Accordion("Point cloud", open=False, visible=visible):
        gr.Markdown(ASSUMED_VIEW if is_metric else ASSUMED)
        with gr.Row():
            near = gr.Number(1, label="Nearest (m), assumed", visible=not is_metric, min_width=90)
            far = gr.Number(20, label="Farthest (m), assumed", visible=not is_metric, min_width=90)
        fov = gr.Number(60, label="Field of view, left to right (degrees), assumed")
        make, ply = gr.Button("Make point cloud"), gr.DownloadButton("PLY", interactive=False)
        return CloudControls((near, far, fov), make, ply)


def cloud_view(visible: bool) -> gr.Model3D:
    """Adds the view of the cloud to the page: from the start, since gradio draws none that appears later."""
    return gr.Model3D(label="Point cloud: drag turns it, the wheel zooms", height=480, visible=visible)


def no_cloud() -> list[Any]:
    """Returns the download and the view of the page without a cloud."""
    return [gr.DownloadButton(value=None, interactive=False), gr.Model3D(value=None)]


def problem_of_cloud(
    is_metric: bool, near_m: float | None, far_m: float | None, fov_deg: float | None
) -> str:
    """Returns what is wrong with the numbers of the page, "" if nothing is."""
    if not is_metric and not (near_m and far_m and 0 < near_m < far_m):
        return f"**Nearest {near_m} m, farthest {far_m} m:** expected 0 < nearest < farthest."
    if not fov_deg or not 1 <= fov_deg <= 170:
        return f"**Field of view {fov_deg}:** expected 1 to 170 degrees."
    return ""


def make_cloud(
    path: Path, image: NDArray[np.uint8], values: NDArray[np.float32], settings: OutputSettings
) -> list[Any]:
    """Writes the cloud and the smaller one of the view; returns download, view and message, for the page.

    Args:
        path: path of the PLY file; the file of the view has the suffix .glb.
        image: [h w 3] uint8 RGB.
        values: [h w] as predicted.
        settings: with the assumed range and field of view.
    """
    if not np.isfinite(settings.depth_m(values)).any():
        return [*no_cloud(), "**No point cloud:** no pixel has a depth above 0."]
    step, shown = _step(values, CLOUD_POINTS), _step(values, SHOWN_POINTS)
    write_ply(path, image[::step, ::step], values[::step, ::step], settings)
    view = path.with_suffix(".glb")
    write_surface(view, image[::shown, ::shown], values[::shown, ::shown], settings)
    message = f"Every {step}th pixel of rows and columns is a point." if step > 1 else ""
    return [
        gr.DownloadButton(value=str(path), interactive=True),
        gr.Model3D(value=str(view)),
        message,
    ]


def write_surface(
    path: Path, image: NDArray[np.uint8], values: NDArray[np.float32], settings: OutputSettings
) -> None:
    """Writes a binary glTF of triangles between neighbouring points, cut where depth jumps.

    A browser draws a point as one pixel, which leaves little to see of a small photo.

    Args:
        path: path of the file.
        image: [h w 3] uint8 RGB.
        values: [h w] as predicted.
        settings: range and field of view.
    """
    points = upright_points(values, settings)
    corners = np.arange(values.size).reshape(values.shape)
    a, b, c, d = corners[:-1, :-1], corners[:-1, 1:], corners[1:, :-1], corners[1:, 1:]
    triangles = np.concatenate([np.stack(three, axis=-1).reshape(-1, 3) for three in ((a, c, b), (b, c, d))])
    depth_m = -points[..., 2].reshape(-1)[triangles]
    triangles = triangles[depth_m.max(axis=1) < LARGEST_RATIO * depth_m.min(axis=1)]  # False of NaN
    points, colours = np.nan_to_num(points.reshape(-1, 3)), image.reshape(-1, 3)
    trimesh = optional("trimesh", "the view of a point cloud")
    surface = trimesh.Trimesh(points, triangles, vertex_colors=colours, process=False)
    surface.remove_unreferenced_vertices()
    path.write_bytes(surface.export(file_type="glb"))


def _step(values: NDArray, points: int) -> int:
    """Returns which rows and columns give at most `points` points: every 1st, 2nd, 3rd ..."""
    return -(-max(values.shape) // round(points**0.5))
