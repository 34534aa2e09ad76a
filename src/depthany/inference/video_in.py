"""A video as a stream of frames that are upright and know their time."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depthany.inference.outputs import optional

_SHORT_OF = 0.95  # of the frames that the file claims to have; a few are cut off by edit lists


class UnreadableVideo(ValueError):
    """A video is empty, damaged, cut short or has no picture."""


@dataclass(frozen=True)
class Frame:
    """A frame, upright.

    Attributes:
        image: [height width 3] uint8 RGB.
        time: in units of the clip's `time_base`; grows from frame to frame, 0 at the first.
        inputs: [3 h w] for each scale.
    """

    image: NDArray[np.uint8]
    time: int
    inputs: list[Tensor]


@dataclass(frozen=True)
class Clip:
    """What is known of a video before its frames are decoded.

    Attributes:
        frames: how many there are, or None.
        is_counted: whether the file says so, rather than its duration.
        rate: frames per second, on average where it varies.
        tick: seconds, the unit of time in the file.
    """

    path: Path
    frames: int | None
    is_counted: bool
    rate: Fraction
    tick: Fraction

    @property
    def time_base(self) -> Fraction:
        """Seconds, the unit of time of what is written: 1 / rate is a whole number of them."""
        return 1 / (Fraction(self.rate.numerator) * max(1, 90_000 // self.rate.numerator))

    def time(self, ticks: int) -> int:
        """In units of `time_base`, the time of a frame in ticks from the first.

        Where the file had to round it (WebM: to milliseconds) it becomes the multiple of 1 / rate again.
        """
        seconds = ticks * self.tick
        even = round(seconds * self.rate) / self.rate
        return round((even if abs(even - seconds) <= self.tick else seconds) / self.time_base)


def look_at(path: Path) -> Clip:
    """What a video file says of itself.

    Raises:
        UnreadableVideo: it is empty, damaged or has no picture.
        ValueError: PyAV is not installed.
    """
    with closing(_open(path)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        frames = stream.frames
        if not frames and container.duration:
            frames = round(container.duration / 1_000_000 * rate)  # µs
        return Clip(path, frames or None, stream.frames > 0, rate, stream.time_base)


def read_frames(
    clip: Clip, prepare: Callable[[NDArray[np.uint8]], list[Tensor]]
) -> Generator[Frame, None, None]:
    """Frames in order.

    Raises:
        UnreadableVideo: the file is damaged, changes its size on the way, ends too early, or is too
            long a strip.
    """
    count, begin, time, shape = 0, 0, 0, None
    step = round(1 / clip.rate / clip.time_base)  # between frames that have no time of their own
    for decoded in _decoded(clip.path):
        image = np.ascontiguousarray(np.rot90(decoded.to_ndarray(format="rgb24"), decoded.rotation // 90))
        if shape not in (None, image.shape):
            raise UnreadableVideo(
                f"{clip.path}: frame {count + 1} has shape {image.shape}, those before {shape}"
            )
        shape = image.shape
        if count == 0:
            begin = decoded.pts or 0
        elif decoded.pts is None:
            time += step
        else:
            time = max(time + 1, clip.time(decoded.pts - begin))
        count += 1
        try:
            inputs = prepare(image)
        except ValueError as error:
            raise UnreadableVideo(f"{clip.path}: {error}") from None
        yield Frame(image, time, inputs)
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
        raise UnreadableVideo(f"{path}: has no picture, sound alone")
    return container
