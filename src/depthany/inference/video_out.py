"""Videos through the model, in memory that does not grow with their length."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.display.progress import Bar
from depthany.inference.outputs import Meaning, optional, picture, side_by_side
from depthany.inference.pipeline import Behind, map_ahead
from depthany.inference.predictor import Predictor
from depthany.inference.sources import Source
from depthany.inference.video_in import Clip, Frame, read_frames
from depthany.system.files import whole_file

VIDEO_FORMATS = {"color": "_color.mp4", "side": "_side.mp4"}
VIDEO_SCALES = ("frame", "clip")
_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that this FFmpeg has


def video_targets(source: Source, save: Sequence[str], out: Path, overwrite: bool) -> dict[str, Path]:
    """The files that a video is to become; none, if all of them are there and not to be overwritten."""
    paths = {name: out / (source.name + VIDEO_FORMATS[name]) for name in save}
    return {name: path for name, path in paths.items() if overwrite or not path.exists()}


def predict_video(
    clip: Clip,
    targets: dict[str, Path],
    predictor: Predictor,
    meaning: Meaning,
    batch_size: int,
    scale: str,
    bar: Bar,
) -> None:
    """Write the depth of a video as MP4 without sound, with the times of its frames.

    Args:
        targets: file of each of VIDEO_FORMATS that is wanted.
        scale: "frame": each frame is coloured from its own farthest to its own nearest point; "clip": all
            from those of the whole clip, which takes a pass before, and so twice the time.

    Raises:
        UnreadableVideo: it is damaged or cut short; nothing is left at `targets`.
        ValueError: a file cannot be written, or memory is not enough.
    """
    with ExitStack() as stack:
        span = _span(clip, predictor, meaning, batch_size, bar) if scale == "clip" else None
        partials = {name: stack.enter_context(whole_file(path)) for name, path in targets.items()}
        files = {name: VideoFile(path, clip) for name, path in partials.items()}
        for file in files.values():
            stack.callback(file.close)  # before its renaming

        def draw(image: NDArray, values: NDArray, time: int) -> None:
            shades = picture(values, meaning, span)
            for name, file in files.items():
                file.add(shades if name == "color" else side_by_side(image, shades), time)

        with Behind(threads=1, pending=2 * batch_size) as writer:
            for frame, values in _predicted(clip, predictor, batch_size, bar):
                writer.submit(draw, frame.image, values, frame.time)
        for file in files.values():
            file.finish()


class VideoFile:
    """An H.264 MP4 that is written frame by frame; `finish` makes it whole.

    Odd sides grow by a copy of their last row or column, since the format knows even ones only.
    """

    def __init__(self, path: Path, like: Clip) -> None:
        self._av = optional("av", "video")
        self._container = self._av.open(str(path), "w", format="mp4")
        self._like = like
        self._stream: Any = None

    def add(self, pixels: NDArray[np.uint8], time: int) -> None:
        """Append a picture [h w 3] uint8 RGB that is shown from `time` on, in units of the time base."""
        odd_rows, odd_columns = pixels.shape[0] % 2, pixels.shape[1] % 2
        pixels = np.pad(pixels, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._begin(pixels.shape[1], pixels.shape[0])
        frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, self._like.time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder still holds, and the index."""
        self._container.mux(self._stream.encode(None))
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def _begin(self, width: int, height: int) -> Any:
        codec = next(name for name in _ENCODERS if name in self._av.codecs_available)
        options = {"crf": "18"} if codec == "libx264" else {}
        stream = self._container.add_stream(codec, rate=self._like.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = self._like.time_base
        if codec != "libx264":
            stream.bit_rate = 4 * width * height  # bits per second
        return stream


def _span(
    clip: Clip, predictor: Predictor, meaning: Meaning, batch_size: int, bar: Bar
) -> tuple[float, float]:
    """Smallest and largest nearness in the whole clip."""
    low, high = np.inf, -np.inf
    for _, values in _predicted(clip, predictor, batch_size, bar):
        nearness = meaning.nearness(values)
        low, high = min(low, float(nearness.min())), max(high, float(nearness.max()))
    return low, high


def _predicted(
    clip: Clip, predictor: Predictor, batch_size: int, bar: Bar
) -> Iterator[tuple[Frame, NDArray[np.float32]]]:
    """Each frame with its prediction [height width]; frames are decoded while others are predicted."""
    frames = read_frames(clip, predictor.prepare)
    ahead = map_ahead(lambda _: next(frames, None), repeat(None), threads=1, ahead=2 * batch_size)
    with closing(frames), closing(ahead):
        while batch := [frame for _ in range(batch_size) if (frame := next(ahead)) is not None]:
            values = predictor.predict([frame.inputs for frame in batch])
            yield from zip(batch, predictor.resize(values, [frame.image.shape[:2] for frame in batch]))
            bar.advance(len(batch))
