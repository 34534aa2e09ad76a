"""How the page of `depthany.app` shows metres: a colour bar, and the depth under the pointer."""

import base64
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from depthany.display.pictures import COLOUR_MAPS
from depthany.inference.output_settings import OutputSettings

DATA_ID, READOUT_ID, SLIDER_ID = "depth-data", "depth-readout", "depth-slider"  # ids of HTML elements
DATA_PIXELS = 1000  # longer side of the map that the browser gets to read metres from
TICKS = 5
_STOPS = 16  # of the gradient of the colour bar
_MOST_MM = 2**24 - 1


def metres_html(depth_m: NDArray[np.float32], colour_map: str) -> str:
    """Returns a colour bar in metres, a line for the depth under the pointer, and the map that holds it.

    Args:
        depth_m: [h w] depth in metres, finite.
        colour_map: a name in COLOUR_MAPS; its last colour is that of the nearest depth, as in the picture.
    """
    nearest, farthest = float(depth_m.min()), float(depth_m.max())
    picks = np.linspace(255, 0, _STOPS).round().astype(int)
    colours = ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in COLOUR_MAPS[colour_map][picks].tolist())
    ticks = "".join(f"<span>{tick:.2f} m</span>" for tick in np.linspace(nearest, farthest, TICKS))
    return (
        f'<div style="height: 14px; background: linear-gradient(to right, {colours})"></div>'
        f'<div style="display: flex; justify-content: space-between">{ticks}</div>'
        f'<div id="{READOUT_ID}">Move the pointer over the picture to read metres.</div>'
        f'<img id="{DATA_ID}" alt="" style="display: none" src="{_as_png(depth_m)}">'
    )


def _as_png(depth_m: NDArray[np.float32]) -> str:
    """Returns a map [h w] as an address of a PNG whose red, green and blue are the 24 bits of millimetres."""
    shrink = min(1.0, DATA_PIXELS / max(depth_m.shape))
    size = max(1, round(depth_m.shape[1] * shrink)), max(1, round(depth_m.shape[0] * shrink))
    small = cv2.resize(depth_m, size, interpolation=cv2.INTER_NEAREST)  # no depth between two surfaces
    mm = np.rint(small.astype(np.float64) * 1000).clip(0, _MOST_MM).astype(np.uint32)
    bgr = np.stack([mm & 255, mm >> 8 & 255, mm >> 16], axis=2).astype(np.uint8)
    done, stored = cv2.imencode(".png", bgr)
    assert done
    return "data:image/png;base64," + base64.b64encode(stored.tobytes()).decode()


# Runs once, when the page has loaded. The picture fills its element as large as its aspect allows.
SCRIPT = (
    """() => {
  const canvas = document.createElement("canvas");
  const pixels = canvas.getContext("2d", {willReadFrequently: true});
  let drawn = "";
  document.addEventListener("pointermove", (event) => {
    const data = document.getElementById("DATA_ID"), line = document.getElementById("READOUT_ID");
    const picture = [...document.querySelectorAll("#SLIDER_ID img")].find((each) => each.naturalWidth > 0);
    if (!data || !line || !picture || !data.complete || !data.naturalWidth) return;
    if (drawn !== data.src) {
      canvas.width = data.naturalWidth;
      canvas.height = data.naturalHeight;
      pixels.drawImage(data, 0, 0);
      drawn = data.src;
    }
    const box = picture.getBoundingClientRect();
    const scale = Math.min(box.width / picture.naturalWidth, box.height / picture.naturalHeight);
    const width = scale * picture.naturalWidth, height = scale * picture.naturalHeight;
    const x = (event.clientX - box.left - (box.width - width) / 2) / width;
    const y = (event.clientY - box.top - (box.height - height) / 2) / height;
    if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) return;
    const column = Math.floor(x * canvas.width), row = Math.floor(y * canvas.height);
    const [r, g, b] = pixels.getImageData(column, row, 1, 1).data;
    line.textContent = `Under the pointer: ${((r * 65536 + g * 256 + b) / 1000).toFixed(2)} m`;
  });
}""".replace("DATA_ID", DATA_ID)
    .replace("READOUT_ID", READOUT_ID)
    .replace("SLIDER_ID", SLIDER_ID)
)


def classes_html(numbers: NDArray, settings: OutputSettings) -> str:
    """Returns the classes of a photo with their colours and shares, the largest first.

    Args:
        numbers: [h w] uint8 class numbers.
        settings: with the names of the classes.
    """
    names = settings.quantity.class_names
    counts = np.bincount(numbers.ravel(), minlength=len(names))
    lines = list[str]()
    for place in np.argsort(-counts, kind="stable"):
        if counts[place]:
            r, g, b = settings.palette[place]
            box = f'<span style="background: rgb({r},{g},{b}); padding: 0 .7em">&nbsp;</span>'
            lines.append(f"{box} {escape(names[place])} {counts[place] / numbers.size:.1%}")
    return "<p>" + " &ensp; ".join(lines) + "</p>"
