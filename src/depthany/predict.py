"""Predict the depth of photos and videos: `python -m depthany.predict checkpoint=... images=...`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from depthany.config.checker import check_settings
from depthany.config.entry import run_entry
from depthany.config.schema import BatchSettings, CheckpointSettings
from depthany.display.pictures import COLOUR_MAPS
from depthany.display.progress import Bar
from depthany.inference.outputs import FORMATS, Meaning, check_formats
from depthany.inference.photos import predict_stills, still_job
from depthany.inference.predictor import Predictor
from depthany.inference.ready_model import load_ready_model
from depthany.inference.sources import Source, find_sources
from depthany.inference.tally import Tally
from depthany.inference.video_in import UnreadableVideo, look_at
from depthany.inference.video_out import (
    VIDEO_FORMATS,
    VIDEO_SCALES,
    predict_video,
    video_targets,
)
from depthany.models.model import DenseModel
from depthany.system.device import Compute, prepare_compute
from depthany.system.files import require_writable
from depthany.system.rules import setting, split_words


@dataclass
class PredictSettings(CheckpointSettings, BatchSettings):
    """configs/predict.yaml."""

    images: str = setting()
    out: str = setting()
    overwrite: bool = setting()
    save: Any = setting(choices=FORMATS, words=True)
    colormap: str = setting(choices=COLOUR_MAPS)
    video_scale: str = setting(choices=VIDEO_SCALES)
    input_size: int | None = None  # its bounds depend on the model
    flip: bool = setting()
    scales: list[float] = setting(above=0)
    near_m: float | None = setting(None, above=0)
    far_m: float | None = setting(None, above=0)
    focal_px: float | None = setting(None, above=0)
    fov_deg: float = setting(above=0, below=180)

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("scales=[]: expected factors on input_size, such as [1.0, 1.5]")
        if (self.near_m is None) != (self.far_m is None):
            raise ValueError(f"near_m={self.near_m} far_m={self.far_m}: give both or none, in metres")
        if self.near_m is not None and self.far_m is not None and self.near_m >= self.far_m:
            raise ValueError(f"near_m={self.near_m} far_m={self.far_m}: expected near_m < far_m")


def run(cfg: DictConfig) -> int:
    """Predicts everything that `cfg.images` names; returns the exit code."""
    cfg = check_settings(cfg, PredictSettings)
    out, save = Path(cfg.out), formats(cfg)
    sources = find_sources(cfg.images, out)
    check_videos(sources, save)
    require_writable(out)
    compute = prepare_compute(cfg.device, cfg.precision, cfg.threads)
    model = load_ready_model(cfg.checkpoint, compute, cfg.taps, cfg.max_depth).model
    predictor, meaning = build_predictor(cfg, model), build_meaning(cfg, model)
    check_formats(save, meaning)
    print(describe(cfg, predictor, len(sources), compute), flush=True)
    tally = Tally()
    try:
        do_stills([source for source in sources if not source.is_video], predictor, meaning, cfg, tally)
        for source in sources:
            if source.is_video:
                do_video(source, predictor, meaning, cfg, tally)
    finally:  # interrupted, too
        tally.report(out)
    return 1 if tally.unreadable else 0


def do_stills(
    sources: list[Source], predictor: Predictor, meaning: Meaning, cfg: DictConfig, tally: Tally
) -> None:
    """Predicts the photos whose results do not exist yet."""
    save, out = formats(cfg), Path(cfg.out)
    jobs = [still_job(source, save, out, cfg.overwrite) for source in sources]
    wanted = [job for job in jobs if job.targets]
    tally.skipped += [job.source.path for job in jobs if not job.targets]
    if wanted:
        with Bar("photos", len(wanted)) as bar:
            predict_stills(wanted, predictor, meaning, cfg.batch_size, cfg.workers, bar, tally)


def do_video(source: Source, predictor: Predictor, meaning: Meaning, cfg: DictConfig, tally: Tally) -> None:
    """Predicts a video if its result does not exist yet."""
    targets = video_targets(source, formats(cfg), Path(cfg.out), cfg.overwrite)
    if not targets:
        tally.skipped.append(source.path)
        return
    try:
        clip = look_at(source.path)
        passes = 2 if cfg.video_scale == "clip" else 1
        with Bar(f"frames of {source.path.name}", clip.frames and passes * clip.frames) as bar:
            predict_video(clip, targets, predictor, meaning, cfg.batch_size, cfg.video_scale, bar)
    except UnreadableVideo as error:
        tally.unreadable.append(str(error))
    else:
        tally.done.append(source.path)


def formats(cfg: DictConfig) -> tuple[str, ...]:
    """Returns the file formats to write, without repetitions."""
    return tuple(dict.fromkeys(split_words("save", cfg.save)))


def check_videos(sources: list[Source], save: tuple[str, ...]) -> None:
    """Raises ValueError if a video cannot be saved in one of the formats."""
    others = [name for name in save if name not in VIDEO_FORMATS]
    videos = [source for source in sources if source.is_video]
    if others and videos:
        raise ValueError(
            f"save={','.join(others)}: a video can be saved as {' and '.join(VIDEO_FORMATS)} only, and "
            f"{videos[0].path} is one"
        )


def build_predictor(cfg: DictConfig, model: DenseModel) -> Predictor:
    """Returns the model with its input size and views."""
    size = model.input_size if cfg.input_size is None else cfg.input_size
    return Predictor(model, size, tuple(cfg.scales), cfg.flip)


def build_meaning(cfg: DictConfig, model: DenseModel) -> Meaning:
    """Returns what the model's numbers mean and how they are shown."""
    range_m = None if cfg.near_m is None else (cfg.near_m, cfg.far_m)
    return Meaning(model.quantity.max_depth_m, cfg.colormap, range_m, cfg.focal_px, cfg.fov_deg)


def describe(cfg: DictConfig, predictor: Predictor, count: int, compute: Compute) -> str:
    """Returns one line on what the command is going to do."""
    model, files = predictor.model, f"{count} {'file' if count == 1 else 'files'}"
    return (
        f"{model.encoder.label} ({model.quantity.describe()}) at input_size={predictor.input_size} "
        f"on {files}, {compute.describe()}, colours of {cfg.colormap}"
    )


def main() -> None:
    """Console script `depthany-predict`."""
    sys.exit(run_entry("predict", run, literal=("checkpoint", "images", "out", "save")))


if __name__ == "__main__":
    main()
