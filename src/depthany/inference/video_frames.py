"""Raw values of a video: a folder with one file per frame, and a description that completes it."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.inference.outputs import FORMATS, OutputSettings, write
from depthany.inference.video_in import Clip, Frame
from depthany.system.files import remove_partials, write_atomically

INDEX_NAME = "frames.json"
UNFINISHED_NAME = "unfinished.json"
FRAME_ENDINGS = {  # format -> the file that completes its folder
    name: f"{FORMATS[name][0].rsplit('.', 1)[0] or '_' + name}/{INDEX_NAME}"
    for name in ("png16", "npy", "exr", "pfm")
}


class FrameFolder:
    """The frames of a video in one format: 000001.npy, 000002.npy ... and, when all are there, frames.json.

    Each file appears whole or not at all. A folder without frames.json is continued if it was begun with the
    same settings, and restarted otherwise.

    Args:
        index: path of its frames.json.
        name: format, of FRAME_ENDINGS.
        settings: what the values are.
        span: smallest and largest disparity of the whole video, one scale for all 16-bit files; None: each
            file has its own.
        about: JSON-able settings that the values depend on.
        overwrite: restart in any case.
    """

    def __init__(
        self,
        index: Path,
        name: str,
        settings: OutputSettings,
        span: tuple[float, float] | None,
        about: Mapping[str, Any],
        overwrite: bool,
    ) -> None:
        self.folder, self.index, self.name = index.parent, index, name
        self.settings = replace(settings, stored_span=span)
        unit = {"per_metre": settings.per_metre} if settings.quantity.is_metric and name == "png16" else {}
        self.about = json.loads(json.dumps({**about, "span": span, **unit}))
        self._suffix = "." + FORMATS[name][0].rsplit(".", 1)[1]
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / UNFINISHED_NAME
        if overwrite or not unfinished.is_file() or json.loads(unfinished.read_text()) != self.about:
            self._clear()
            write_atomically(unfinished, lambda path: path.write_text(json.dumps(self.about)))
        remove_partials(self.folder)

    def path(self, number: int) -> Path:
        """Returns the file of a frame; the first is number 1."""
        return self.folder / f"{number:06d}{self._suffix}"

    def add(self, frame: Frame, values: NDArray[np.float32]) -> None:
        """Writes the values [h w] of a frame."""
        write({self.name: self.path(frame.number)}, None, values, self.settings)

    def finish(self, clip: Clip, size: tuple[int, int], times_s: list[float]) -> None:
        """Writes the description, which marks the folder as complete."""
        quantity = self.settings.quantity
        described: dict[str, Any] = {
            "video": clip.path.name,
            "frames": len(times_s),
            "files": f"%06d{self._suffix}, from 1",
            "size": list(size),
            "frames_per_second": float(clip.rate),
            "rate": str(clip.rate),
            "quantity": quantity.kind,
            "unit": "m" if quantity.is_metric else None,
            "larger_is_nearer": quantity.larger_is_nearer,
            "max_depth_m": quantity.max_depth_m,
        }
        if quantity.is_metric:
            described["metres"] = self.settings.metres
        if self.name == "png16":
            is_one_scale = quantity.is_metric or self.settings.stored_span is not None
            _, scale, offset = self.settings.unit_16bit(np.zeros((1, 1), np.float32))
            one: dict[str, Any] = {
                "scale": scale,
                "offset": offset,
                "formula": "value = offset + scale * stored",
            }
            if quantity.is_metric:
                one["unit"] = self.settings.unit_of_16bit
            described["stored"] = one if is_one_scale else "scale and offset are texts of each file"
        described |= {"made_with": self.about, "times_s": times_s}
        write_atomically(self.index, lambda path: path.write_text(json.dumps(described, indent=1) + "\n"))
        (self.folder / UNFINISHED_NAME).unlink()

    def discard(self) -> None:
        """Removes what was written."""
        self._clear()
        with suppress(OSError):  # the folder holds files of others
            self.folder.rmdir()

    def _clear(self) -> None:
        """Deletes frames and description, and nothing else."""
        for path in self.folder.iterdir():
            is_frame = re.fullmatch(r"\d{6,}", path.stem) and path.suffix == self._suffix
            if is_frame or path.name in (INDEX_NAME, UNFINISHED_NAME):
                path.unlink()
