"""The command `evaluate`: opens models and protocols, and scores each model under each protocol."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig

import depthany
from depthany.config.checker import check_settings
from depthany.config.entry import plain
from depthany.config.paths import split_paths
from depthany.config.schema import BatchSettings, CheckpointSettings
from depthany.data.counts import set_notes
from depthany.data.plausible import doubts, look_at
from depthany.data.samples import UnknownUnit
from depthany.evaluation.compare import Comparison
from depthany.evaluation.html import REPORT_FILE
from depthany.evaluation.open_predictors import open_predictors
from depthany.evaluation.per_image import PER_IMAGE_FILE
from depthany.evaluation.predictors import QUANTITIES, ScoredPredictor, space_of
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.protocol_files import Chosen, choose, leave_out_unfit
from depthany.evaluation.results import RESULTS_FILE
from depthany.evaluation.stored_sizes import stretch_warnings
from depthany.inference.canonical import at_camera_of
from depthany.inference.predictor import Predictor
from depthany.models.files.model_source import ModelSource
from depthany.system.device import Compute, prepare_compute, reading_threads
from depthany.system.distributed import Processes, launched_processes, process_group
from depthany.system.files import require_own_results, require_writable
from depthany.system.rules import setting, split_words


@dataclass
class EvaluateSettings(CheckpointSettings, BatchSettings):
    """configs/evaluate.yaml. `override` and `folder` are checked with the protocols that they change."""

    checkpoint: Any = setting(words=True)
    protocols: Any = setting(words=True)
    roots: dict[str, str | None] = field(default_factory=dict)
    override: dict[str, Any] = field(default_factory=dict)
    folder: dict[str, Any] = field(default_factory=dict)
    out: str = setting(filled=True)
    quantity: Any = setting(None, choices=QUANTITIES, words=True)
    stored_per_unit: float | None = setting(None, above=0)
    limit: int | None = setting(None, least=1)
    skip_unreadable: bool = setting()
    pictures: int = setting(least=0)
    zooms: int = setting(least=0)

    def __post_init__(self) -> None:
        models = [each.source for each in models_of(self.checkpoint)]
        for key, words in (("checkpoint", models), ("protocols", split_paths("protocols", self.protocols))):
            if repeated := [word for word in words if words.count(word) > 1]:
                raise ValueError(f"{key}={','.join(words)}: {repeated[0]} is given twice")


def run(cfg: DictConfig) -> int:
    """Scores every checkpoint under every protocol, writes and prints the results; returns the exit code."""
    cfg = check_settings(cfg, EvaluateSettings)
    processes = launched_processes()
    compute = prepare_compute(cfg.device, cfg.precision, cfg.threads, processes)
    with process_group(processes, compute.device):
        prepare(cfg, processes, compute).run()
    return 0


def prepare(cfg: DictConfig, processes: Processes, compute: Compute) -> Comparison:
    """Opens protocols, checkpoints and data sets: a mistake in any is found before the first score."""
    protocols = split_paths("protocols", cfg.protocols)
    chosen, missing = choose(protocols, cfg.roots, cfg.override, cfg.folder)
    out = Path(cfg.out)
    if processes.is_main:
        for why in dict.fromkeys(missing.values()):
            print(f"{', '.join(name for name in missing if missing[name] == why)}: not run, {why}")
        require_writable(out)
        require_own_results(out, RESULTS_FILE, "protocols", (PER_IMAGE_FILE, REPORT_FILE))
    predictors, about = open_predictors(
        models_of(cfg.checkpoint, cfg.taps, cfg.max_depth),
        [] if cfg.quantity is None else split_words("quantity", cfg.quantity),
        compute,
        cfg.stored_per_unit,
    )
    chosen, unfit = leave_out_unfit(chosen, {each.label: space_of(each) for each in predictors})
    missing |= unfit
    if processes.is_main:
        if unfit:
            print(f"not run, as they score what a predictor does not predict: {', '.join(unfit)}")
        for one in chosen:
            for predictor in predictors:
                for note in input_notes(one.protocol, predictor):
                    print(note)
    sets = [one.open() for one in chosen]
    cameras = camera_notes(chosen, sets, predictors)
    warnings = doubts_of(chosen, sets)
    for one, dataset in zip(chosen, sets):
        for predictor in predictors:
            warnings += stretch_warnings(predictor, dataset, one.protocol)
    if processes.is_main:
        for line in cameras:
            print(line)
        for line in warnings:
            print(f"warning: {line}")
        print(describe(predictors, len(chosen), compute, processes), flush=True)
        for line in set_notes({one.protocol.name: dataset for one, dataset in zip(chosen, sets)}):
            print(line, flush=True)
    return Comparison(
        predictors,
        chosen,
        sets,
        out,
        describe_run(cfg, about, missing, compute) | {"warnings": warnings},
        cfg.batch_size,
        reading_threads(cfg.workers, compute.device),
        cfg.limit,
        cfg.skip_unreadable,
        cfg.pictures,
        cfg.zooms,
        processes,
    )


def models_of(value: Any, taps: str | None = None, max_depth: float | None = None) -> list[ModelSource]:
    """Returns the models that the setting `checkpoint` names; an existing path may contain commas."""
    is_text = isinstance(value, str) and not value.startswith("{")
    named = split_paths("checkpoint", value) if is_text else value
    return ModelSource.several("checkpoint", named, taps, max_depth)


def doubts_of(chosen: Sequence[Chosen], sets: Sequence[Any]) -> list[str]:
    """Returns warnings about ground truth that does not look like metres; reads some images of each set.

    Raises:
        ValueError: the settings of a set do not say the unit of its depth.
    """
    lines = list[str]()
    for one, dataset in zip(chosen, sets, strict=True):
        name = f"protocol {one.protocol.name}"
        if one.protocol.task == "depth":
            try:
                seen = look_at(dataset)
            except UnknownUnit as error:
                raise ValueError(f"{name}: {error} (here it is folder.depth_scale=...)") from None
            lines += [f"{name}: {line}" for line in doubts(dataset, seen, one.range_of_truth(dataset))]
    return lines


def camera_notes(
    chosen: Sequence[Chosen], sets: Sequence[Any], predictors: Sequence[ScoredPredictor]
) -> list[str]:
    """Returns a line for each set to whose camera the metres of a predictor are scaled.

    Raises:
        ValueError: see `at_camera_of`.
    """
    lines = list[str]()
    for one, dataset in zip(chosen, sets, strict=True):
        for each in predictors:
            name, align = one.protocol.name, one.protocol.align
            if at_camera_of(each, dataset, name, align == "none") is not each:
                lines.append(f"{name}, {each.label}: scaled to the set's camera, focal={dataset.focal:g}")
    return lines


def input_notes(protocol: Protocol, predictor: ScoredPredictor) -> list[str]:
    """Returns notes on an input size that the model rounds, and on ground truth beyond the model's range."""
    who, notes = f"{protocol.name}, {predictor.label}", list[str]()
    quantity, farthest = predictor.quantity, protocol.prediction_range_m[1]
    largest = quantity.max_depth_m or quantity.trained_to_m
    if protocol.align == "none" and largest is not None and largest < farthest:
        verb = "predicts" if quantity.max_depth_m else "was trained on"
        notes.append(f"{who}: {verb} {largest:g} m at most, but ground truth counts up to {farthest:g} m")
    if not isinstance(predictor, Predictor):
        return notes
    set_up = predictor.for_protocol(protocol.name, protocol.model_input)
    preprocessing = set_up.model.preprocessing
    if set_up.fixed_size is not None:
        height, width = set_up.fixed_size.size
        used = replace(set_up.fixed_size, keep_aspect=False).input_shape(
            height, width, preprocessing.multiple
        )
        if used != (height, width):
            notes.append(
                f"{who}: eval_size={height}x{width} is rounded to {used[0]}x{used[1]}, multiples of "
                f"{preprocessing.multiple}"
            )
    elif preprocessing.shorter_side(set_up.input_size) != set_up.input_size and protocol.input_size:
        notes.append(f"{who}: {set_up.describe_size()}")
    return notes


def describe(
    predictors: Sequence[ScoredPredictor], protocols: int, compute: Compute, processes: Processes
) -> str:
    """Returns one line on what the command is going to do."""
    models = ", ".join(f"{each.label} ({_about(each)})" for each in predictors)
    count = f"{protocols} protocol{'s' if protocols > 1 else ''}"
    shared = f", {processes.size} processes" if processes.size > 1 else ""
    return f"{models} under {count}, {compute.describe()}{shared}"


def _about(predictor: ScoredPredictor) -> str:
    """Returns what a predictor predicts and, if known, the data on which it learned metres."""
    quantity = predictor.quantity.describe()
    trained_on = predictor.model.trained_on if isinstance(predictor, Predictor) else None
    if trained_on is not None and trained_on.canonical:  # scaled to the camera of a set, where it has one
        return f"{predictor.quantity.describe(trained_on.unit())}, from {' and '.join(trained_on.sets)}"
    return quantity if trained_on is None else f"{quantity}, from {trained_on.describe()}"


def describe_run(
    cfg: DictConfig, checkpoints: dict[str, Any], missing: dict[str, str], compute: Compute
) -> dict[str, Any]:
    """Returns what results.json says besides the results."""
    return {
        "versions": {
            "depthany": depthany.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "python": platform.python_version(),
        },
        "device": compute.device.type,
        "precision": compute.precision,
        "command": plain(cfg),
        "checkpoints": checkpoints,
        "not_run": missing,
    }


def first_scores(cfg: DictConfig) -> dict[str, float]:
    """Returns the first metric of every protocol and checkpoint, for the table of a sweep."""
    results = json.loads((Path(cfg.out) / RESULTS_FILE).read_text())
    scores = dict[str, float]()
    for name, protocol in results["protocols"].items():
        for label, scored in protocol["scores"].items():
            for metric, value in list(scored["mean"].items())[:1]:
                several = f" {label}" if len(protocol["scores"]) > 1 else ""
                scores[f"{name}{several} {metric}"] = value
    return scores
