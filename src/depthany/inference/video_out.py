"""Videos from file to file, in memory that does not grow with their length."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthany.display.progress import Bar
from depthany.inference.launched import Pending
from depthany.inference.outputs import OutputSettings, legend_of, picture, side_by_side, with_legend
from depthany.inference.pipeline import run_pipeline
from depthany.inference.prediction_counts import PredictionCounts
from depthany.inference.predictor import Predictor
from depthany.inference.video_frames import FRAME_ENDINGS, FrameFolder
from depthany.inference.video_in import Clip, Frame, UnreadableVideo, read_frames
from depthany.models.output import Quantity
from depthany.system.files import whole_file
from depthany.system.packages import optional

MOVIE_ENDINGS = {"color": "_color.mp4", "side": "_side.mp4"}  # format -> end of the file's name
VIDEO_ENDINGS = {**MOVIE_ENDINGS, **FRAME_ENDINGS}
VIDEO_SCALES = ("auto", "frame", "clip")
_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # in order of preference


def predict_video(
    clip: Clip,
    targets: dict[str, Path],
    predictor: Predictor,
    settings: OutputSettings,
    batch_size: int,
    scale: str,
    bar: Bar,
    counts: PredictionCounts,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the predictions of a video: as MP4 without sound, at the times of its frames, or raw, a file per
    frame.

    Args:
        targets: the file to write for each format, of VIDEO_ENDINGS.
        scale: "frame": the colours, and the 16-bit numbers of disparity, of a frame span its own values;
            "clip": they span the values of the whole clip, which takes a pass over it before the first frame
            is written; "metres": the colours span `colour_range_m`. See `scale_of`.
        counts: counts of the prediction; each frame is a map.
        about: JSON-able settings that the values depend on; a folder of raw frames that was begun with others
            is restarted.
        overwrite: restart a folder of raw frames in any case.

    Raises:
        UnreadableVideo: the video is damaged or cut short; no file is left at `targets`.
        ValueError: a file cannot be written, or memory is not enough.
    """
    movies = {name: path for name, path in targets.items() if name in MOVIE_ENDINGS}
    span = None
    if takes_two_passes(targets, scale, settings.quantity):
        span = nearness_span(clip, predictor, settings, batch_size, bar)
    elif scale == "metres" and (range_m := colour_range_m(settings)):
        span = -range_m[1], -range_m[0]
    about = {"video_bytes": clip.path.stat().st_size, **(about or {})}
    folders = frame_folders(targets, settings, span, about, overwrite)
    seen: list[Frame] = []  # the last one
    times_s: list[float] = []

    def is_needed(frame: Frame) -> bool:
        seen[:] = [frame]
        times_s.append(float(frame.time * clip.time_base))
        needed = bool(movies) or not all(folder.path(frame.number).exists() for folder in folders)
        if not needed:
            bar.advance()
        return needed

    try:
        write_frames(clip, movies, folders, predictor, settings, batch_size, span, bar, counts, is_needed)
    except UnreadableVideo:
        for folder in folders:
            folder.discard()
        raise
    for folder in folders:
        folder.finish(clip, seen[0].size, times_s)


def frame_folders(
    targets: Mapping[str, Path],
    settings: OutputSettings,
    span: tuple[float, float] | None,
    about: Mapping[str, Any],
    overwrite: bool,
) -> list[FrameFolder]:
    """Returns the folders of raw frames among the targets; `span` is the scale of 16-bit disparity only."""
    stored_in_span = None if settings.quantity.is_metric else "png16"
    return [
        FrameFolder(path, name, settings, span if name == stored_in_span else None, about, overwrite)
        for name, path in targets.items()
        if name in FRAME_ENDINGS
    ]


def scale_of(video_scale: str, settings: OutputSettings) -> str:
    """Returns the scale of `predict_video` that the setting `video_scale` means for a model.

    auto is one for each frame of disparity, whose scale means nothing. Metres mean the same in every frame
    and keep one scale: a fixed one if the range is known, else that of the clip.
    """
    if video_scale != "auto":
        return video_scale
    if not settings.quantity.is_metric:
        return "frame"
    return "clip" if colour_range_m(settings) is None else "metres"


def colour_range_m(settings: OutputSettings) -> tuple[float, float] | None:
    """Returns nearest and farthest metres of the colours of a video; None if they are not known.

    They are near_m and far_m, or else 0 and the far end of the model, or of the depth it was trained on.
    """
    if settings.range_m is not None:
        return settings.range_m
    farthest = settings.quantity.max_depth_m or settings.quantity.trained_to_m
    return None if farthest is None else (0.0, farthest)


def takes_two_passes(names: Collection[str], scale: str, quantity: Quantity) -> bool:
    """Whether a format needs the range of the whole clip before its first frame is written."""
    spanned = {*MOVIE_ENDINGS} if quantity.is_metric else {*MOVIE_ENDINGS, "png16"}
    return scale == "clip" and not spanned.isdisjoint(names)


def write_frames(
    clip: Clip,
    movies: Mapping[str, Path],
    folders: list[FrameFolder],
    predictor: Predictor,
    settings: OutputSettings,
    batch_size: int,
    span: tuple[float, float] | None,
    bar: Bar,
    counts: PredictionCounts,
    is_needed: Callable[[Frame], bool],
) -> None:
    """Writes the frames to movies, which appear whole at the end, and to folders."""
    with ExitStack() as stack:
        partials = {name: stack.enter_context(whole_file(path)) for name, path in movies.items()}
        files = {name: VideoFile(path, clip) for name, path in partials.items()}
        for file in files.values():
            stack.callback(file.close)  # before `whole_file` renames it

        def write(frame: Frame, values: NDArray[np.float32]) -> None:
            counts.add_map(f"{clip.path.name} at {float(frame.time * clip.time_base):.2f} s", values)
            for folder in folders:
                folder.add(frame, values)
                if folder.name == "png16":
                    counts.add_png16(f"{clip.path.name}, frame {frame.number}", values, settings)
            if files:
                coloured, legend = picture(values, settings, span), legend_of(values, settings, span)
            for name, file in files.items():
                shown = coloured if name == "color" else side_by_side(frame.pixels, coloured)
                file.add(with_legend(shown, legend, settings), frame.time)
            bar.advance()

        for_each_frame(clip, predictor, write, batch_size, is_needed)
        for file in files.values():
            file.finish()


def nearness_span(
    clip: Clip, predictor: Predictor, settings: OutputSettings, batch_size: int, bar: Bar
) -> tuple[float, float]:
    """Returns the smallest and the largest nearness in the whole clip."""
    low, high = np.inf, -np.inf

    def widen(frame: Frame, values: NDArray[np.float32]) -> None:
        nonlocal low, high
        nearness = settings.nearness(values)
        low, high = min(low, float(nearness.min())), max(high, float(nearness.max()))
        bar.advance()

    for_each_frame(clip, predictor, widen, batch_size)
    return low, high


def for_each_frame(
    clip: Clip,
    predictor: Predictor,
    finish: Callable[[Frame, NDArray[np.float32]], object],
    batch_size: int,
    is_needed: Callable[[Frame], bool] = lambda frame: True,
) -> None:
    """Calls `finish` with each frame that is needed and its prediction [height width], in order."""

    def use(frame: Frame, pending: Pending) -> None:
        finish(frame, pending.wait())

    with closing(read_frames(clip, predictor)) as frames:
        needed: Iterator[Frame] = filter(is_needed, frames)
        run_pipeline(
            needed,
            None,
            predictor.launch_resized,
            use,
            batch_size=batch_size,
            threads=1,  # one thread keeps the order
            queue=2 * batch_size,
        )


class VideoFile:
    """An H.264 MP4 file that is written frame by frame, until `finish` completes it.

    The format needs even sides: the last row or column of a picture with odd sides is written twice.

    Args:
        path: path of the file.
        clip: the video whose rate and time base it gets.
    """

    def __init__(self, path: Path, clip: Clip) -> None:
        self._av = optional("av", "video")
        self._container = self._av.open(str(path), "w", format="mp4")
        self._clip = clip
        self._stream: Any = None

    def add(self, pixels: NDArray[np.uint8], time: int) -> None:
        """Appends a picture.

        Args:
            pixels: [h w 3] uint8 RGB.
            time: when it is first shown, in units of the clip's `time_base`.
        """
        odd_rows, odd_columns = pixels.shape[0] % 2, pixels.shape[1] % 2
        pixels = np.pad(pixels, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._begin(pixels.shape[1], pixels.shape[0])
        frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, self._clip.time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes the frames that the encoder still holds, and the index; closes the file."""
        self._container.mux(self._stream.encode(None))
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _begin(self, width: int, height: int) -> Any:
        codec = next(name for name in _ENCODERS if name in self._av.codecs_available)
        options = {"crf": "18"} if codec == "libx264" else {}
        stream = self._container.add_stream(codec, rate=self._clip.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = self._clip.time_base
        if codec != "libx264":
            stream.bit_rate = 4 * width * height  # bits per second
        return stream
