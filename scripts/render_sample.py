"""Renders the bundled sample data: rooms and streets with exact depth and classes, path-traced by Mitsuba 3.

    pip install -e ".[render]"
    python scripts/render_sample.py --out data/sample --jobs 2
    python scripts/render_sample.py --out data/sample --contact-sheet docs/contact_sheet.jpg

An image depends only on --seed, --samples, its split and its index, not on the counts, the number of
processes or existing images. Existing files are kept, so the same command continues an interrupted run, a
larger count adds to a smaller one, and an existing image gets only the depth or mask that it lacks.
Cost: 1 to 1.5 s of one core per image, half of it to build the scene.
"""

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from depthany.system.files import write_atomically

JPEG_QUALITY = 90
SCENES = ("rooms", "streets")  # the folders of even and of odd indices
SUFFIXES = {"depth": ".png", "masks": ".png", "images": ".jpg"}  # in the order of writing


@dataclass(frozen=True)
class Split:
    """One folder of the sample data. `number` enters the seed, so it must never change."""

    folder: str
    number: int
    broad: bool
    with_labels: bool  # depth and masks
    default_count: int

    @property
    def option(self) -> str:
        return self.folder.replace("/", "_")

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(SUFFIXES) if self.with_labels else ("images",)


SPLITS = (
    Split("labeled/train", 0, broad=False, with_labels=True, default_count=300),
    Split("labeled/val", 1, broad=False, with_labels=True, default_count=100),
    Split("unlabeled/train", 2, broad=True, with_labels=False, default_count=1000),
    Split("unlabeled/val", 3, broad=True, with_labels=True, default_count=100),
    Split("unlabeled/test", 4, broad=True, with_labels=True, default_count=100),
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

    @property
    def key(self) -> list[int]:
        return [self.seed, self.split.number, self.index]

    def path(self, kind: str) -> Path:
        scenes = SCENES[self.index % 2]
        return self.out / self.split.folder / kind / scenes / f"{self.index:05d}{SUFFIXES[kind]}"

    def missing(self) -> tuple[str, ...]:
        """Returns the kinds of files to write: all of them where there is no image."""
        if not self.path("images").exists():
            return self.split.kinds
        return tuple(kind for kind in self.split.kinds if not self.path(kind).exists())


def start_worker() -> None:
    """Limits a process to one thread, since the processes share the cores."""
    import drjit

    drjit.set_thread_count(1)
    cv2.setNumThreads(1)


def run(job: Job) -> None:
    """Writes the missing files. The image comes last and takes most of the time."""
    from sample_world.classes import write_mask
    from sample_world.depth_png import encode_depth_mm, write_depth
    from sample_world.render import draw_view, take_picture, view_classes

    missing, view = job.missing(), draw_view(job.key, job.split.broad, job.indoors)
    depth_mm = encode_depth_mm(view.depth_m, view.is_sky)
    if "depth" in missing:
        write_atomically(job.path("depth"), lambda path: write_depth(path, depth_mm))
    elif "masks" in missing:
        require_depth(job.path("depth"), depth_mm)
    if "masks" in missing:
        classes = view_classes(view)
        write_atomically(job.path("masks"), lambda path: write_mask(path, classes))
    if "images" in missing:
        rgb = take_picture(
            view.rng, view.breadth, view.scene, view.sky, view.camera, view.depth_m, job.samples
        )
        write_atomically(job.path("images"), lambda path: write_image(path, rgb))


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Writes [h w 3] uint8 as a JPEG, whatever the name ends in."""
    path.write_bytes(cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def require_depth(path: Path, depth_mm: np.ndarray) -> None:
    """Raises ValueError if the stored depth is not this one [h w], up to rounding in a few pixels."""
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is not None and stored.shape == depth_mm.shape:
        apart = np.abs(stored.astype(np.int64) - depth_mm)
        if np.mean(apart > 0.01 * depth_mm) < 0.01:
            return
    raise ValueError(
        f"{path} shows another scene, so its mask cannot be added: pass the --seed that it was made with"
    )


def todo(args: argparse.Namespace) -> list[Job]:
    """Returns all unfinished images, ordered so that a partial run has all splits in proportion."""
    jobs: list[tuple[float, Job]] = []
    for split in SPLITS:
        for kind in split.kinds:
            for scenes in SCENES:
                (args.out / split.folder / kind / scenes).mkdir(parents=True, exist_ok=True)
        count = getattr(args, split.option)
        jobs += [((i + 1) / count, Job(split, i, args.out, args.seed, args.samples)) for i in range(count)]
    return [job for _, job in sorted(jobs, key=lambda ranked: ranked[0]) if job.missing()]


def copy_classes(out: Path) -> None:
    """Puts the names and colours of the classes beside the masks."""
    from sample_world.classes import CLASSES_FILE

    if not (out / CLASSES_FILE.name).exists():
        write_atomically(out / CLASSES_FILE.name, lambda path: path.write_bytes(CLASSES_FILE.read_bytes()))


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
    copy_classes(args.out)
    if jobs:
        render_all(jobs, args.jobs)


if __name__ == "__main__":
    main()
