"""Reading a video: what its file says, and its frames, upright and with their times."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.inference.predictor import Predictor, PreparedImage
from depthany.system.packages import optional

_SHORT_OF = 0.95  # share of the stated frames that must be there: edit lists cut off a few


class UnreadableVideo(ValueError):
    """The video is empty, damaged, cut short or has no picture."""


@dataclass(frozen=True)
class Frame(PreparedImage):
    """A frame, upright.

    Attributes:
        pixels: [height width 3] uint8 RGB.
        time: in units of the clip's `time_base`; 0 at the first frame, larger for each later one.
        number: 1 for the first frame.
    """

    pixels: NDArray[np.uint8]
    time: int
    number: int


@dataclass(frozen=True)
class Clip:
    """What is known of a video before its frames are decoded.

    Attributes:
        path: path of the file.
        frames: number of frames, or None if it is not known.
        is_counted: True if the file states the number of frames; False if it follows from the duration.
        rate: frames per second, on average where it varies.
        tick: unit of time in the file, in seconds.
    """

    path: Path
    frames: int | None
    is_counted: bool
    rate: Fraction
    tick: Fraction

    @property
    def time_base(self) -> Fraction:
        """Unit of time of the written video, in seconds: a whole number of them make 1 / rate."""
        return 1 / (Fraction(self.rate.numerator) * max(1, 90_000 // self.rate.numerator))

    def time(self, ticks: int) -> int:
        """Returns the time of a frame in units of `time_base`.

        A time that the file had to round (WebM: to milliseconds) becomes a multiple of 1 / rate again.

        Args:
            ticks: time since the first frame, in units of `tick`.
        """
        seconds = ticks * self.tick
        even = round(seconds * self.rate) / self.rate
        return round((even if abs(even - seconds) <= self.tick else seconds) / self.time_base)


def probe_video(path: Path) -> Clip:
    """Reads the metadata of a video file.

    Raises:
        UnreadableVideo: the file is empty, damaged or has no picture.
        ValueError: PyAV is not installed.
    """
    with closing(_open(path)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        frames = stream.frames
        if not frames and container.duration:
            frames = round(container.duration / 1_000_000 * rate)  # µs
        return Clip(path, frames or None, stream.frames > 0, rate, stream.time_base)


def read_frames(clip: Clip, predictor: Predictor) -> Generator[Frame, None, None]:
    """Yields the frames in order, prepared for the predictor.

    Raises:
        UnreadableVideo: the file is damaged, its frames change their size, it ends too early, or its frames
            are too long for the model.
    """
    count, begin, time, shape = 0, 0, 0, None
    step = round(1 / clip.rate / clip.time_base)  # between frames that have no time of their own
    for decoded in _decoded(clip.path):
        pixels = np.ascontiguousarray(np.rot90(decoded.to_ndarray(format="rgb24"), decoded.rotation // 90))
        if shape not in (None, pixels.shape):
            raise UnreadableVideo(
                f"{clip.path}: frame {count + 1} has shape {pixels.shape}, those before {shape}"
            )
        shape = pixels.shape
        if count == 0:
            begin = decoded.pts or 0
        elif decoded.pts is None:
            time += step
        else:
            time = max(time + 1, clip.time(decoded.pts - begin))
        count += 1
        try:
            inputs = predictor.prepare(pixels, str(clip.path))
        except ValueError as error:
            raise UnreadableVideo(str(error)) from None
        size = pixels.shape[0], pixels.shape[1]
        yield Frame(f"{clip.path}, frame {count}", inputs, size, pixels, time, count)
    expected = (clip.frames or 1) if clip.is_counted else 1
    if count < _SHORT_OF * expected:
        raise UnreadableVideo(f"{clip.path}: ends after frame {count} of {expected}: cut short, or damaged")


def _decoded(path: Path) -> Iterator[Any]:
    av = optional("av", "video")
    count = 0
    with closing(_open(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for decoded in container.decode(video=0):
                count += 1
                yield decoded
        except av.error.FFmpegError as error:
            raise UnreadableVideo(f"{path}: damaged after frame {count}: {error.strerror}") from None


def _open(path: Path) -> Any:
    av = optional("av", "video")
    if path.is_file() and path.stat().st_size == 0:
        raise UnreadableVideo(f"{path}: the file is empty (0 bytes)")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise UnreadableVideo(f"{path}: cannot read the video: {error.strerror}") from None
    if not container.streams.video:
        container.close()
        raise UnreadableVideo(f"{path}: has no picture, only sound")
    return container
