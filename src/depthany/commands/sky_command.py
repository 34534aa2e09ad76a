"""The command `sky`: writes masks of the sky for labeled sets."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

import depthany
from depthany.config.checker import check_settings
from depthany.config.schema import BatchSettings, CheckpointSettings
from depthany.data.image_formats import describe_passed_over
from depthany.display.progress import Bar
from depthany.inference.segmenters import open_segmenter, require_class
from depthany.inference.sky_masks import (
    SkyCounts,
    SkyJob,
    SkySettings,
    delete_masks,
    draw_contact_sheet,
    make_masks,
    require_same_note,
    write_note,
)
from depthany.inference.sources import Source, find_sources
from depthany.models.files.model_source import ModelSource
from depthany.system.device import prepare_compute, reading_threads
from depthany.system.files import require_writable
from depthany.system.plurals import counted
from depthany.system.rules import setting


@dataclass
class SkyCommandSettings(CheckpointSettings, BatchSettings):
    """configs/sky.yaml."""

    images: str = setting()
    out: str = setting(filled=True)
    overwrite: bool = setting()
    sky_class: str = setting(filled=True)
    threshold: float = setting(above=0, below=1)
    erode: int = setting(least=0)
    input_size: int | None = setting(None, least=1)
    limit: int | None = setting(None, least=1)


def run(cfg: DictConfig) -> int:
    """Writes a mask for each image that has none yet; returns the exit code."""
    cfg = check_settings(cfg, SkyCommandSettings)
    out, passed_over = Path(cfg.out), Counter[str]()
    found = find_sources(cfg.images, out, passed_over)
    sources, videos = chosen(found, cfg.limit), sum(source.is_video for source in found)
    require_writable(out)
    compute = prepare_compute(cfg.device, cfg.precision, cfg.threads)
    source = ModelSource.of("checkpoint", cfg.checkpoint, cfg.taps, cfg.max_depth)
    segmenter = open_segmenter(source, compute, cfg.input_size)
    number = require_class(segmenter.names, cfg.sky_class, str(source))
    settings = SkySettings(
        source.source,
        segmenter.revision,
        segmenter.names[number],
        cfg.threshold,
        cfg.erode,
        segmenter.input_size,
        compute.precision,
    )
    jobs = [SkyJob(each.path, out / f"{each.name}.png") for each in sources]
    require_other_files(out, [each.path for each in found], jobs)
    if cfg.overwrite:
        delete_masks(out, settings, jobs)
    else:
        require_same_note(out, settings, jobs)
    wanted = [job for job in jobs if not job.target.exists()]
    about = {"depthany": depthany.__version__, "images": str(cfg.images)}
    write_note(out, settings, about)
    print(
        f"{settings.sky_class} of {source} at {cfg.threshold:g} on {len(wanted)} of {len(jobs)} images, "
        f"{compute.describe()}",
        flush=True,
    )
    counts = SkyCounts()
    if wanted:
        with Bar("images", len(wanted)) as bar:
            threads = reading_threads(cfg.workers, compute.device)
            counts = make_masks(wanted, segmenter, number, settings, cfg.batch_size, threads, bar)
    return report(out, jobs, wanted, counts, passed_over, videos)


def require_other_files(out: Path, images: list[Path], jobs: list[SkyJob]) -> None:
    """Raises ValueError if a mask would replace one of the images."""
    own = {path.resolve() for path in images}
    for job in jobs:
        if job.target.resolve() in own:
            raise ValueError(
                f"out={out} is a folder of the images: the mask {job.target} would replace an image; pass "
                "another one"
            )


def chosen(sources: list[Source], limit: int | None) -> list[Source]:
    """Returns all images, or `limit` of them, evenly spaced.

    Raises:
        ValueError: there are only videos.
    """
    images = [source for source in sources if not source.is_video]
    if not images:
        raise ValueError(f"{sources[0].path} is a video: masks of the sky are made for images only")
    wanted = len(images) if limit is None else min(limit, len(images))
    return [images[k * len(images) // wanted] for k in range(wanted)]


def report(
    out: Path,
    jobs: list[SkyJob],
    wanted: list[SkyJob],
    counts: SkyCounts,
    passed_over: Counter[str],
    videos: int = 0,
) -> int:
    """Draws the contact sheet and prints what was done; returns the exit code.

    Args:
        videos: number of videos, which get no masks.
    """
    done = [job for job in jobs if job.target.exists()]
    written = len(counts.shares)
    parts = [f"{counted(written, 'mask')} written"]
    if counts.shares:
        some = sum(share > 0 for share in counts.shares)
        parts[0] += f", {some} with sky ({np.mean(counts.shares):.1%} of all pixels)"
    if len(jobs) > len(wanted):
        parts.append(f"{len(jobs) - len(wanted)} there already (overwrite=true replaces them)")
    if counts.unreadable:
        parts.append(f"{len(counts.unreadable)} unreadable")
    if videos:
        parts.append(f"{counted(videos, 'video')} left out (masks are made for images only)")
    if passed_over:
        parts.append(describe_passed_over(passed_over))
    print(f"{out}: {', '.join(parts)}", flush=True)
    wrong = list(counts.unreadable)
    if done:
        sheet, left_out = draw_contact_sheet(out, done)
        wrong += left_out
        # absolute: `sky_masks` is relative to the root of its set, not to this folder
        print((f"look at {sheet}; " if sheet else "") + "a labeled set reads the masks with")
        print(f"  sky_masks={out.absolute()}")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0
