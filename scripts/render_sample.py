"""Renders the bundled sample data: rooms and streets with exact depth, path-traced by Mitsuba 3 on the CPU.

    pip install -e ".[render]"
    python scripts/render_sample.py --out data/sample --jobs 2
    python scripts/render_sample.py --out data/sample --contact-sheet docs/contact_sheet.jpg

An image depends only on --seed, --samples, its split and its index, not on the counts, the number of
processes or existing images. Existing images are kept, so the same command continues an interrupted run and a
larger count adds to a smaller one. Cost: 1 to 1.5 s of one core per image, half of it to build the scene.
"""

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import cv2

JPEG_QUALITY = 90
SCENES = ("rooms", "streets")  # the folders of even and of odd indices


@dataclass(frozen=True)
class Split:
    """One folder of the sample data. `number` enters the seed, so it must never change."""

    folder: str
    number: int
    broad: bool
    with_depth: bool
    default_count: int

    @property
    def option(self) -> str:
        return self.folder.replace("/", "_")


SPLITS = (
    Split("labeled/train", 0, broad=False, with_depth=True, default_count=300),
    Split("labeled/val", 1, broad=False, with_depth=True, default_count=100),
    Split("unlabeled/train", 2, broad=True, with_depth=False, default_count=1000),
    Split("unlabeled/val", 3, broad=True, with_depth=True, default_count=100),
    Split("unlabeled/test", 4, broad=True, with_depth=True, default_count=100),
)


@dataclass(frozen=True)
class Job:
    split: Split
    index: int
    out: Path
    seed: int
    samples: int

    @property
    def indoors(self) -> bool:
        return self.index % 2 == 0

    def path(self, kind: str, suffix: str) -> Path:
        scenes = SCENES[self.index % 2]
        return self.out / self.split.folder / kind / scenes / f"{self.index:05d}{suffix}"

    def done(self) -> bool:
        return self.path("images", ".jpg").exists()


def start_worker() -> None:
    """Limits a process to one thread, since the processes share the cores."""
    import drjit

    drjit.set_thread_count(1)
    cv2.setNumThreads(1)


def run(job: Job) -> None:
    """Writes the depth first, so that an image on disk means a finished pair."""
    from sample_world.depth_png import write_depth_png
    from sample_world.render import render_sample

    sample = render_sample([job.seed, job.split.number, job.index], job.split.broad, job.indoors, job.samples)
    if job.split.with_depth:
        write_depth_png(job.path("depth", ".png"), sample.depth_m, sample.sky)
    cv2.imwrite(
        str(job.path("images", ".jpg")), sample.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )


def todo(args: argparse.Namespace) -> list[Job]:
    """Returns all missing images, ordered so that a partial run has all splits in proportion."""
    jobs: list[tuple[float, Job]] = []
    for split in SPLITS:
        for kind in ("images", "depth") if split.with_depth else ("images",):
            for scenes in SCENES:
                (args.out / split.folder / kind / scenes).mkdir(parents=True, exist_ok=True)
        count = getattr(args, split.option)
        jobs += [((i + 1) / count, Job(split, i, args.out, args.seed, args.samples)) for i in range(count)]
    return [job for _, job in sorted(jobs, key=lambda ranked: ranked[0]) if not job.done()]


def render_all(jobs: list[Job], processes: int) -> None:
    began = time.monotonic()
    # "spawn": a forked Mitsuba inherits dead threads.
    with multiprocessing.get_context("spawn").Pool(processes, start_worker) as pool:
        for count, _ in enumerate(pool.imap_unordered(run, jobs), 1):
            spent_s = time.monotonic() - began
            left_min = spent_s / count * (len(jobs) - count) / 60
            print(
                f"\r{count}/{len(jobs)} images, {spent_s / count:.2f} s each, {left_min:.1f} min left ",
                end="",
                flush=True,
            )
    print()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that gets labeled/ and unlabeled/")
    for split in SPLITS:
        parser.add_argument(
            f"--{split.option.replace('_', '-')}",
            type=int,
            default=split.default_count,
            metavar="N",
            help=f"images in {split.folder} (default {split.default_count})",
        )
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another data set (default 0)")
    parser.add_argument(
        "--samples", type=int, default=6, help="paths per pixel; time is proportional (default 6)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes, best one per core (default 2)")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="JPG", help="draw an overview of --out and stop"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.contact_sheet:
        from sample_world.contact_sheet import write_contact_sheet

        write_contact_sheet(args.out, args.contact_sheet)
        return
    jobs = todo(args)
    if jobs:
        render_all(jobs, args.jobs)


if __name__ == "__main__":
    main()
