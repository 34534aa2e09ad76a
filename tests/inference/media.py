"""Small images and videos for the tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def pixels(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise [h w 3] uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_video(
    path: Path, frames: list[NDArray[np.uint8]], rate: Fraction, times: list[Fraction] | None = None
) -> None:
    """Writes frames at a constant rate, or at `times` in seconds; the suffix chooses the container."""
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = unit = Fraction(1, 90_000) if times else 1 / rate
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base, frame.pts = unit, round(times[i] / unit) if times else i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_video(path: Path) -> tuple[list[NDArray[np.uint8]], Fraction, list[Fraction]]:
    """Returns the frames, the average rate, and the times of the frames in seconds."""
    with av.open(str(path)) as container:
        assert not container.streams.audio
        stream = container.streams.video[0]
        decoded = list(container.decode(video=0))
        times = [frame.pts * stream.time_base for frame in decoded]
        return [frame.to_ndarray(format="rgb24") for frame in decoded], stream.average_rate, times
