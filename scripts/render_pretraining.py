"""Renders images for `pretrain_sample_encoder.py`: rooms and streets of the sample's generators.

    pip install -e ".[render]"
    python scripts/render_pretraining.py --out outputs/pretraining --jobs 2

Every fifth pair of scenes is of the labeled domain, the others are of the unlabeled one. Each scene is seen
from `--views` places, since building it costs as much as a picture, and with fewer paths per pixel than the
sample. The seeds differ from those of the sample, so none of its scenes is among them. Existing images are
kept: the same command continues an interrupted run. Cost: 0.5 s of one core per image.
"""

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

JPEG_QUALITY = 90
SPLIT = 5  # enters the seed; the splits of the sample are 0 to 4
CAMERAS = 60  # tries per scene


@dataclass(frozen=True)
class Job:
    """All views of one scene."""

    scene: int
    out: Path
    seed: int
    views: int
    samples: int

    @property
    def indoors(self) -> bool:
        return self.scene % 2 == 0

    @property
    def broad(self) -> bool:
        return self.scene // 2 % 5 > 0

    def path(self, view: int) -> Path:
        return self.out / ("rooms" if self.indoors else "streets") / f"{self.scene:05d}_{view}.jpg"

    def done(self) -> bool:
        return self.path(self.views - 1).exists()


def start_worker() -> None:
    """Limits a process to one thread, since the processes share the cores."""
    import drjit

    drjit.set_thread_count(1)
    cv2.setNumThreads(1)


def run(job: Job) -> int:
    """Writes all views of the first scene that has enough usable ones; returns their number."""
    from sample_world.render import acceptable, build_scene, draw_camera, exact_depth, take_picture

    for attempt in range(100):
        rng = np.random.default_rng([job.seed, SPLIT, job.scene, attempt])
        breadth = rng.random() if job.broad else 0.0
        scene, sky = build_scene(rng, breadth, job.indoors)
        pictures: list[np.ndarray] = []
        for _ in range(CAMERAS):
            camera = draw_camera(rng, breadth, job.indoors)
            depth_m, is_sky = exact_depth(scene, camera)
            if acceptable(depth_m, is_sky):
                pictures.append(take_picture(rng, breadth, scene, sky, camera, depth_m, job.samples))
            if len(pictures) == job.views:
                write(job, pictures)
                return job.views
    raise RuntimeError(f"scene {job.scene} has no {job.views} usable views in 100 attempts: lower --views")


def write(job: Job, pictures: list[np.ndarray]) -> None:
    """Each picture appears under its name once it is whole, and the last one says that the scene is done."""
    for view, picture in enumerate(pictures):
        path = job.path(view)
        partial = path.with_suffix(".partial.jpg")
        if not cv2.imwrite(str(partial), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"{partial} cannot be written: is the disk full?")
        partial.replace(path)


def render_all(jobs: list[Job], processes: int) -> None:
    began, done, total = time.monotonic(), 0, sum(job.views for job in jobs)
    # "spawn": a forked Mitsuba inherits dead threads.
    with multiprocessing.get_context("spawn").Pool(processes, start_worker) as pool:
        for views in pool.imap_unordered(run, jobs):
            done += views
            each_s = (time.monotonic() - began) / done
            left_min = each_s * (total - done) / 60
            print(
                f"\r{done}/{total} images, {each_s:.2f} s each, {left_min:.0f} min left ", end="", flush=True
            )
    print()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that gets rooms/ and streets/")
    parser.add_argument("--scenes", type=int, default=3400, help="half rooms, half streets (default 3400)")
    parser.add_argument("--views", type=int, default=6, help="images of each scene (default 6)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other images (default 0)")
    parser.add_argument("--samples", type=int, default=2, help="paths per pixel (default 2)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, best one per core (default 2)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for kind in ("rooms", "streets"):
        (args.out / kind).mkdir(parents=True, exist_ok=True)
    jobs = [Job(scene, args.out, args.seed, args.views, args.samples) for scene in range(args.scenes)]
    missing = [job for job in jobs if not job.done()]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} scenes are there already")
    if missing:
        render_all(missing, args.jobs)


if __name__ == "__main__":
    main()
