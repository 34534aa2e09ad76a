"""Predict the depth of photos and videos: `python -m depthany.predict checkpoint=... images=...`."""

import sys
from pathlib import Path

import cv2
import torch
from omegaconf import DictConfig, ListConfig

from depthany import load_model
from depthany.config.entry import require, require_least, run_entry, typed
from depthany.config.schema import PredictSettings
from depthany.display.pictures import COLOUR_MAPS
from depthany.display.progress import Bar
from depthany.inference.outputs import FORMATS, OutputSettings, check_formats
from depthany.inference.photos import PhotoJob, predict_photos
from depthany.inference.prediction_counts import PredictionCounts
from depthany.inference.predictor import Predictor
from depthany.inference.sources import Source, find_sources
from depthany.inference.video_in import UnreadableVideo, probe_video
from depthany.inference.video_out import VIDEO_ENDINGS, VIDEO_SCALES, predict_video
from depthany.models.fast import prepare_for_inference
from depthany.models.model import DenseModel
from depthany.system.device import choose_amp, choose_device, keep_freed_memory
from depthany.system.files import require_writable


def run(cfg: DictConfig) -> int:
    """Predicts everything that `cfg.images` names; returns the exit code."""
    cfg = check(cfg)
    out, save = Path(cfg.out), formats(cfg.save)
    sources = find_sources(cfg.images, out)
    check_videos(sources, save)
    require_writable(out)
    device = choose_device(cfg.device)
    dtype = choose_amp(cfg.precision, device) or torch.float32
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    cv2.setNumThreads(1)  # images are read in threads of ours; more would take the cores from the model
    keep_freed_memory()

    model = prepare_for_inference(load_model(cfg.checkpoint, device, cfg.taps, cfg.max_depth), dtype)
    predictor, settings = build_predictor(cfg, model), build_settings(cfg, model)
    check_formats(save, settings)
    print(describe(cfg, predictor, len(sources), device), flush=True)
    counts = PredictionCounts()
    try:
        run_photos([source for source in sources if not source.is_video], predictor, settings, cfg, counts)
        for source in sources:
            if source.is_video:
                run_video(source, predictor, settings, cfg, counts)
    finally:  # also when interrupted
        counts.report(out)
    return 1 if counts.unreadable else 0


def run_photos(
    sources: list[Source],
    predictor: Predictor,
    settings: OutputSettings,
    cfg: DictConfig,
    counts: PredictionCounts,
) -> None:
    """Predicts the photos whose results do not exist yet."""
    endings = {name: FORMATS[name][0] for name in formats(cfg.save)}
    jobs = [PhotoJob(each.path, each.targets(endings, Path(cfg.out), cfg.overwrite)) for each in sources]
    wanted = [job for job in jobs if job.targets]
    counts.existing += [job.path for job in jobs if not job.targets]
    if wanted:
        with Bar("photos", len(wanted)) as bar:
            predict_photos(wanted, predictor, settings, cfg.batch_size, cfg.workers, bar, counts)


def run_video(
    source: Source,
    predictor: Predictor,
    settings: OutputSettings,
    cfg: DictConfig,
    counts: PredictionCounts,
) -> None:
    """Predicts a video, unless its results exist."""
    endings = {name: VIDEO_ENDINGS[name] for name in formats(cfg.save)}
    targets = source.targets(endings, Path(cfg.out), cfg.overwrite)
    if not targets:
        counts.existing.append(source.path)
        return
    try:
        clip = probe_video(source.path)
        passes = 2 if cfg.video_scale == "clip" else 1
        with Bar(f"frames of {source.path.name}", clip.frames and passes * clip.frames) as bar:
            predict_video(clip, targets, predictor, settings, cfg.batch_size, cfg.video_scale, bar)
    except UnreadableVideo as error:
        counts.unreadable.append(str(error))
    else:
        counts.done.append(source.path)


def check(cfg: DictConfig) -> DictConfig:
    """The configuration with its types checked.

    Raises:
        ValueError: (or one of OmegaConf's errors) a setting has a wrong type, no value, or a value that
            cannot be.
    """
    cfg = typed(cfg, PredictSettings)
    require(cfg)
    require_least(cfg, {"batch_size": 1, "workers": 1, "threads": 1})
    for key, choices in {"colormap": COLOUR_MAPS, "video_scale": VIDEO_SCALES}.items():
        if cfg[key] not in choices:
            raise ValueError(f"unknown {key} {cfg[key]!r}; choose from {', '.join(choices)}")
    if not cfg.scales or min(cfg.scales) <= 0:
        raise ValueError(f"scales={cfg.scales}: expected factors above 0, such as [1.0, 1.5]")
    if (cfg.near_m is None) != (cfg.far_m is None):
        raise ValueError(f"near_m={cfg.near_m} far_m={cfg.far_m}: give both or none, in metres")
    if cfg.near_m is not None and not 0 < cfg.near_m < cfg.far_m:
        raise ValueError(f"near_m={cfg.near_m} far_m={cfg.far_m}: expected 0 < near_m < far_m")
    if cfg.focal_px is not None and cfg.focal_px <= 0:
        raise ValueError(f"focal_px={cfg.focal_px}: expected pixels above 0")
    if not 0 < cfg.fov_deg < 180:
        raise ValueError(f"fov_deg={cfg.fov_deg}: expected degrees between 0 and 180")
    formats(cfg.save)
    return cfg


def formats(save: object) -> tuple[str, ...]:
    """Returns the formats in `color,npy` or in a list, without repetitions."""
    words = save.split(",") if isinstance(save, str) else save if isinstance(save, ListConfig) else []
    names = tuple(dict.fromkeys(str(word).strip() for word in words))
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r} in save; choose from {', '.join(FORMATS)}")
    if not names:
        raise ValueError(f"save={save}: expected one or more of {', '.join(FORMATS)}")
    return names


def check_videos(sources: list[Source], save: tuple[str, ...]) -> None:
    """Raises a `ValueError` if there is a video, and a format that a video cannot be saved in."""
    others = [name for name in save if name not in VIDEO_ENDINGS]
    videos = [source for source in sources if source.is_video]
    if others and videos:
        raise ValueError(
            f"save={','.join(others)}: of a video only {' and '.join(VIDEO_ENDINGS)} can be saved, and "
            f"{videos[0].path} is one"
        )


def build_predictor(cfg: DictConfig, model: DenseModel) -> Predictor:
    """Returns the model with its input size and views."""
    size = model.input_size if cfg.input_size is None else cfg.input_size
    return Predictor(model, size, tuple(cfg.scales), cfg.flip)


def build_settings(cfg: DictConfig, model: DenseModel) -> OutputSettings:
    """Returns what the model's values are and how they are shown."""
    range_m = None if cfg.near_m is None else (cfg.near_m, cfg.far_m)
    return OutputSettings(model.quantity, cfg.colormap, range_m, cfg.focal_px, cfg.fov_deg)


def describe(cfg: DictConfig, predictor: Predictor, count: int, device: torch.device) -> str:
    """Returns one line about the work that begins."""
    model = predictor.model
    number_format = str(next(model.parameters()).dtype).removeprefix("torch.")
    files = f"{count} {'file' if count == 1 else 'files'}"
    return (
        f"{model.encoder.label} ({model.quantity.describe()}) at input_size={predictor.input_size} "
        f"on {files}, {device.type} in {number_format}, colours of {cfg.colormap}"
    )


def main() -> None:
    """Console script `depthany-predict`."""
    sys.exit(run_entry("predict", run, literal=("checkpoint", "images", "out", "save")))


if __name__ == "__main__":
    main()
