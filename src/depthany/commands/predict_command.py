"""The command `predict`: writes the depth of photos and videos."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import depthany
from depthany.config.checker import check_settings
from depthany.config.schema import BatchSettings, CheckpointSettings
from depthany.display.pictures import COLOUR_MAPS
from depthany.display.progress import Bar
from depthany.inference.canonical import CanonicalPredictor, camera_of, canonical
from depthany.inference.demonstration import note_on_small_model
from depthany.inference.outputs import FORMATS, OutputSettings, check_formats
from depthany.inference.photos import PhotoJob, predict_photos
from depthany.inference.prediction_counts import PredictionCounts
from depthany.inference.prediction_note import NOTE, begin_note, drop_unused_note, note_of
from depthany.inference.predictor import Predictor
from depthany.inference.ready_model import load_ready_model
from depthany.inference.replay import ReplayedMaps
from depthany.inference.sources import Source, find_sources
from depthany.inference.video_in import UnreadableVideo, probe_video
from depthany.inference.video_out import (
    VIDEO_ENDINGS,
    VIDEO_SCALES,
    colour_range_m,
    predict_video,
    scale_of,
    takes_two_passes,
)
from depthany.models.files.model_source import ModelSource
from depthany.models.infer import forward_maps
from depthany.models.model import DenseModel
from depthany.system.device import Compute, prepare_compute, reading_threads, require_cuda_graphs
from depthany.system.files import require_writable
from depthany.system.plurals import counted
from depthany.system.rules import setting, split_words


@dataclass
class PredictSettings(CheckpointSettings, BatchSettings):
    """configs/predict.yaml."""

    images: str = setting()
    out: str = setting(filled=True)
    overwrite: bool = setting()
    save: Any = setting(None, choices=FORMATS, words=True)
    colormap: str = setting(choices=COLOUR_MAPS)
    legend: bool = setting()
    video_scale: str = setting(choices=VIDEO_SCALES)
    png16_per_metre: float = setting(above=0)
    input_size: int | None = None  # its bounds depend on the model
    flip: bool = setting()
    scales: list[float] = setting(above=0)
    margin: int = setting(least=0)
    near_m: float | None = setting(None, above=0)
    far_m: float | None = setting(None, above=0)
    focal_px: float | None = setting(None, above=0)
    fov_deg: float = setting(above=0, below=180)
    cuda_graphs: bool = setting()

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("scales=[]: expected factors on input_size, such as [1.0, 1.5]")
        if (self.near_m is None) != (self.far_m is None):
            raise ValueError(f"near_m={self.near_m} far_m={self.far_m}: give both or neither, in metres")
        if self.near_m is not None and self.far_m is not None and self.near_m >= self.far_m:
            raise ValueError(f"near_m={self.near_m} far_m={self.far_m}: expected near_m < far_m")


def run(cfg: DictConfig) -> int:
    """Predicts everything that `cfg.images` names; returns the exit code."""
    cfg = check_settings(cfg, PredictSettings)
    checkpoint = ModelSource.of("checkpoint", cfg.checkpoint, cfg.taps, cfg.max_depth)
    out = Path(cfg.out)
    counts = PredictionCounts()
    sources = find_sources(cfg.images, out, counts.passed_over)
    check_videos(sources, () if cfg.save is None else tuple(split_words("save", cfg.save)))
    require_writable(out)
    compute = prepare_compute(cfg.device, cfg.precision, cfg.threads)
    require_cuda_graphs(cfg.cuda_graphs, compute.device)
    model, sha256 = load_ready_model(checkpoint, compute, hash_weights=True)
    predictor, settings = build_predictor(cfg, model), build_settings(cfg, model)
    save = formats(cfg, settings)
    refuse_videos_of_classes(sources, settings)
    check_formats(save, settings)
    note = note_of(predictor, sha256, compute.precision, settings, save)
    about = {"depthany": depthany.__version__, "checkpoint": checkpoint.source, "images": str(cfg.images)}
    if unknown := begin_note(out, note, targets_of(sources, save, out), cfg.overwrite, about):
        print(
            f"warning: {counted(unknown, 'result')} in {out} from before its {NOTE}: which model made them "
            "is not known; they are kept (overwrite=true predicts them again)",
            file=sys.stderr,
        )
    print(describe(cfg, predictor, len(sources), compute) + units_of(save, settings), flush=True)
    if line := note_on_small_model(model, [source.path for source in sources]):
        print(f"note: {line}", flush=True)
    try:
        run_photos([source for source in sources if not source.is_video], predictor, settings, cfg, counts)
        for source in sources:
            if source.is_video:
                run_video(
                    source,
                    predictor,
                    settings,
                    cfg,
                    counts,
                    {"checkpoint": checkpoint.source, **note.settings},
                )
    finally:  # also when interrupted
        counts.report(out)
        if not (counts.done or counts.existing):
            drop_unused_note(out, note)
    return 1 if counts.unreadable else 0


def targets_of(sources: Sequence[Source], save: Sequence[str], out: Path) -> dict[str, list[Path]]:
    """Returns the files of all sources for each format, whether they exist or not."""
    targets: dict[str, list[Path]] = {name: [] for name in save}
    for source in sources:
        endings = {name: VIDEO_ENDINGS[name] if source.is_video else FORMATS[name][0] for name in save}
        for name, path in source.targets(endings, out, overwrite=True).items():
            targets[name].append(path)
    return targets


def run_photos(
    sources: list[Source],
    predictor: Predictor,
    settings: OutputSettings,
    cfg: DictConfig,
    counts: PredictionCounts,
) -> None:
    """Predicts the photos whose results do not exist yet."""
    endings = {name: FORMATS[name][0] for name in formats(cfg, settings)}
    jobs = [PhotoJob(each.path, each.targets(endings, Path(cfg.out), cfg.overwrite)) for each in sources]
    wanted = [job for job in jobs if job.targets]
    counts.existing += [job.path for job in jobs if not job.targets]
    if wanted:
        with Bar("photos", len(wanted)) as bar:
            threads = reading_threads(cfg.workers, predictor.device)
            predict_photos(wanted, predictor, settings, cfg.batch_size, threads, bar, counts)


def run_video(
    source: Source,
    predictor: Predictor,
    settings: OutputSettings,
    cfg: DictConfig,
    counts: PredictionCounts,
    about: Mapping[str, Any],
) -> None:
    """Predicts a video, unless its results exist; `about` is what its values depend on."""
    endings = {name: VIDEO_ENDINGS[name] for name in formats(cfg, settings)}
    targets = source.targets(endings, Path(cfg.out), cfg.overwrite)
    if not targets:
        counts.existing.append(source.path)
        return
    try:
        clip = probe_video(source.path)
        scale = scale_of(cfg.video_scale, settings)
        if scale == "metres" and (range_m := colour_range_m(settings)):
            print(f"{source.path.name}: the colours of all frames span {range_m[0]:g} to {range_m[1]:g} m")
        passes = 2 if takes_two_passes(targets, scale, settings.quantity) else 1
        with Bar(f"frames of {source.path.name}", clip.frames and passes * clip.frames) as bar:
            predict_video(
                clip,
                targets,
                predictor,
                settings,
                cfg.batch_size,
                scale,
                bar,
                counts,
                about,
                cfg.overwrite,
            )
    except UnreadableVideo as error:
        counts.unreadable.append(str(error))
    else:
        counts.done.append(source.path)


def formats(cfg: DictConfig, settings: OutputSettings) -> tuple[str, ...]:
    """Returns the file formats to write, without repeats; by default pictures, for classes overlays too."""
    if cfg.save is None:
        return ("color", "overlay") if settings.is_of_classes else ("color",)
    return tuple(dict.fromkeys(split_words("save", cfg.save)))


def refuse_videos_of_classes(sources: Sequence[Source], settings: OutputSettings) -> None:
    """Raises ValueError if there is a video and the model predicts classes."""
    videos = [source.path for source in sources if source.is_video]
    if videos and settings.is_of_classes:
        raise ValueError(
            f"{videos[0]} is a video, but the model predicts {settings.quantity.describe()}: classes are "
            "predicted for photos only; extract the frames first, for example with ffmpeg"
        )


def check_videos(sources: list[Source], save: tuple[str, ...]) -> None:
    """Raises ValueError if a video cannot be saved in one of the formats."""
    others = [name for name in save if name not in VIDEO_ENDINGS]
    videos = [source for source in sources if source.is_video]
    if others and videos:
        raise ValueError(
            f"save={','.join(others)}: a video can be saved as {', '.join(VIDEO_ENDINGS)} only, but "
            f"{videos[0].path} is one"
        )


def build_predictor(cfg: DictConfig, model: DenseModel) -> Predictor:
    """Returns the model with its input size and views; its metres are those of the camera of `focal_px`."""
    size = model.input_size if cfg.input_size is None else cfg.input_size
    forward = ReplayedMaps() if cfg.cuda_graphs else forward_maps
    predictor = Predictor(model, size, tuple(cfg.scales), cfg.flip, margin=cfg.margin, forward=forward)
    about = camera_of(predictor)
    if about is None or about.focal_px is None or cfg.focal_px is None:
        return predictor
    return canonical(predictor, about.focal_px, cfg.focal_px)


def build_settings(cfg: DictConfig, model: DenseModel) -> OutputSettings:
    """Returns what the model's values are and how they are shown."""
    range_m = None if cfg.near_m is None else (cfg.near_m, cfg.far_m)
    about = model.trained_on
    metres = "metres" if about is None or cfg.focal_px is not None else about.unit()
    return OutputSettings(
        model.quantity,
        cfg.colormap,
        range_m,
        cfg.focal_px,
        cfg.fov_deg,
        cfg.png16_per_metre,
        metres=metres,
        legend=cfg.legend,
    )


def describe(cfg: DictConfig, predictor: Predictor, count: int, compute: Compute) -> str:
    """Returns one line on what the command is going to do."""
    model, files = predictor.model, f"{count} {'file' if count == 1 else 'files'}"
    trained_on = "" if model.trained_on is None else f", from {model.trained_on.describe()}"
    if isinstance(predictor, CanonicalPredictor) and model.trained_on is not None:
        names = " and ".join(model.trained_on.sets)
        trained_on = f", from {names}, scaled from its camera to focal_px={predictor.focal:g}"
    return (
        f"{model.encoder.label} ({model.quantity.describe()}{trained_on}) at {predictor.describe_size()} "
        f"on {files}, {compute.describe()}"
        + ("" if model.quantity.kind == "classes" else f", colours of {cfg.colormap}")
    )


def units_of(save: Sequence[str], settings: OutputSettings) -> str:
    """Returns the units of the files of a metric model, to be added to the line of `describe`."""
    if not settings.quantity.is_metric:
        return ""
    words = [f"png16 in {settings.unit_of_16bit}"] if "png16" in save else []
    if floats := [name for name in save if name in ("npy", "exr", "pfm", "ply", "glb")]:
        words.append(f"{', '.join(floats)} in metres")
    return "".join(f", {each}" for each in words)
