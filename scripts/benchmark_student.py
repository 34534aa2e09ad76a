"""What a step of the default runs costs: `python scripts/benchmark.py student`.

Contestants are runs of `python -m depthany.train` with the bundled sample, built from the same configuration:
the default teacher, the default student, the student with labels that are made once, and larger batches. They
alternate in one process of one thread, in an order that rotates. In a round each of them learns from about
the same number of images, so that other load on the machine affects all of them. Time is CPU time, reading
and perturbing included, without validation and saves. The result is the CPU time per image, as a ratio to
that of the default student in the same round. Networks have random weights, since the time does not depend
on them.

Further settings of all contestants are given as to depthany.train, such as stage.weights.feature=0.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from torch import Tensor

from depthany.config.entry import config_dir
from depthany.data.loading.loader import read_batches
from depthany.models.model import save_model
from depthany.system.device import prepare_compute
from depthany.system.distributed import ALONE
from depthany.training import build
from depthany.training.checks import check
from depthany.training.finite import FiniteCheck
from depthany.training.loop import draw_generator, update
from depthany.training.settings import ONCE, ONLINE, TrainSettings
from depthany.training.stored_labels import label_once
from our_training import Shares

DEFAULT = "student"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py student`."""
    parser.add_argument("--batches", type=int, nargs="+", default=[12, 24, 48], help="images per step")
    parser.add_argument(
        "--images", type=int, default=48, help="images of a contestant in a round (default 48)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("settings", nargs="*", help="further settings of depthany.train, such as model=vits")


def run(arguments: argparse.Namespace) -> None:
    """Prints CPU times and ratios of all contestants, and where the time of the default student goes."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher")
        save_random_teacher(teacher, arguments.settings)
        contestants = {
            name: Contestant([*arguments.settings, *words, f"run_dir={folder}/run"])
            for name, words in contestant_words(teacher, arguments).items()
        }
        costs = alternate(contestants, arguments.images, arguments.rounds)
        print_costs(contestants, costs)
        print_shares(contestants[DEFAULT], arguments.rounds)


def contestant_words(teacher: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the settings of each contestant, by name."""
    student = ["stage=student", f"stage.teacher={teacher}"]
    named = {"teacher": ["stage=teacher"], DEFAULT: student}
    default = settings_of([*arguments.settings, *student])
    for labels in (ONLINE, ONCE):
        for batch in arguments.batches:
            if (labels, batch) != (default.pseudo_labels, default.batch_size):
                name = f"student, labels {labels}, batch {batch}"
                named[name] = [*student, f"pseudo_labels={labels}", f"batch_size={batch}"]
    return named


def settings_of(words: list[str]) -> TrainSettings:
    """Returns the checked settings of a command line."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return check(hydra.compose("train", words))


def save_random_teacher(folder: Path, words: list[str]) -> None:
    """Writes an untrained teacher."""
    settings = settings_of(["stage=teacher", *words])
    torch.manual_seed(0)
    save_model(build.build_model(settings.model, settings.crop_size), folder)


class Contestant:
    """A run that takes one step after another, with the body of the training loop."""

    def __init__(self, words: list[str]) -> None:
        self.settings = settings = settings_of([*words, "steps=1000000", "threads=1"])
        compute = prepare_compute(settings.device, settings.precision, settings.threads)
        online = settings.pseudo_labels == ONLINE
        teacher = build.load_teacher(settings, compute.device)
        self.student, self.compute, self.number = teacher is not None, compute, 0
        dataset = build.build_training_set(settings, teacher)
        if teacher is not None and not online:
            began = time.process_time()
            print(*label_once(settings, dataset, teacher, compute, ALONE))
            seconds = time.process_time() - began
            if seconds > 1:  # not where another contestant has made them
                print(f"CPU time of labeling: {seconds / dataset.unlabeled_count * 1e3:.1f} ms per image")
        self.state = build.build_state(
            settings, teacher if online else None, compute.device, compute.amp, ALONE
        )
        sampler = build.build_sampler(settings, dataset, ALONE)
        self.batches = read_batches(dataset, sampler, 0, False, lambda number, batch: None)
        self.check = FiniteCheck.for_run(self.state.optimizer, compute.device, ALONE)
        self.backward: Callable[[Tensor, Tensor | None], None] = lambda loss, start: loss.backward(start)
        self.update: Callable[[], object] = lambda: update(self.state, None, self.check)

    def step(self) -> None:
        """Reads a batch and takes a step."""
        batch, amp = next(self.batches), self.compute.amp
        with torch.autocast(self.compute.device.type, amp, enabled=amp is not None):
            output = self.state.stage(self.state.model, batch, draw_generator(0, self.number))
        start = self.check.gradient_of_loss(output, self.number)
        self.backward(output.loss, start)
        self.check.settle()  # the step before
        self.update()
        self.number += 1

    def cost(self, images: int) -> float:
        """Returns the CPU seconds per image over steps that add up to about `images` images."""
        steps = max(1, round(images / self.settings.batch_size))
        began = time.process_time()
        for _ in range(steps):
            self.step()
        return (time.process_time() - began) / (steps * self.settings.batch_size)


def alternate(contestants: dict[str, Contestant], images: int, rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds per image of each contestant by round, after one round that is not counted."""
    names, costs = list(contestants), {name: list[float]() for name in contestants}
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            costs[name].append(contestants[name].cost(images))
    return {name: each[1:] for name, each in costs.items()}


def print_costs(contestants: dict[str, Contestant], costs: dict[str, list[float]]) -> None:
    """Prints the table."""
    print(
        "\n| | CPU s per step | images per CPU s | CPU time per image : default student |\n|---|---|---|---|"
    )
    for name, each in costs.items():
        middle = statistics.median(each)
        ratios = [mine / default for mine, default in zip(each, costs[DEFAULT], strict=True)]
        print(
            f"| {name} | {middle * contestants[name].settings.batch_size:.3f} | {1 / middle:.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def print_shares(contestant: Contestant, rounds: int) -> None:
    """Prints where the CPU time of a contestant's steps goes."""
    shares, steps = Shares(contestant, time.process_time), 4 * rounds
    contestant.batches = shares.timed_iterator("reading", contestant.batches)
    began = time.process_time()
    with shares.timing():
        for _ in range(steps):
            contestant.step()
    total = time.process_time() - began
    print(f"\nCPU time of the default student, {steps} steps of {total / steps * 1e3:.0f} ms:")
    for name, seconds in shares.seconds.items():
        print(f"  {name:16s} {seconds / total:6.1%}")
    print(f"  {'the rest':16s} {1 - sum(shares.seconds.values()) / total:6.1%}")
