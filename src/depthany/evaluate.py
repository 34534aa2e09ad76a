"""Scores models and predictions: `python -m depthany.evaluate checkpoint=... protocol=...`."""

import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig, ListConfig

import depthany
from depthany.config.entry import plain, require, require_least, run_entry, typed
from depthany.config.schema import EvaluateSettings
from depthany.display.progress import bar_of_all
from depthany.evaluation.console import print_results
from depthany.evaluation.html import Report
from depthany.evaluation.predictors import (
    QUANTITIES,
    FolderPredictor,
    ScoredPredictor,
    holds_predictions,
    space_of,
)
from depthany.evaluation.protocol_files import Chosen, choose
from depthany.evaluation.results import ProtocolResult, write_per_image, write_results
from depthany.evaluation.run import Scored, UnreadableImage, score_set
from depthany.inference.predictor import Predictor
from depthany.models.fast import prepare_for_inference
from depthany.models.files.loading import load_model
from depthany.models.files.weights import weights_sha256
from depthany.system.device import choose_amp, choose_device, keep_freed_memory
from depthany.system.distributed import Processes, launched, process_group
from depthany.system.files import require_writable

LITERAL = ("checkpoint", "protocols", "out", "quantity")
ALIASES = {"protocol": "protocols"}  # Hydra keeps the word `protocol` for the folder configs/protocol


def run(cfg: DictConfig) -> int:
    """Score every checkpoint under every protocol, write and print; the exit code."""
    cfg, processes = check(cfg), launched()
    device = choose_device(cfg.device, processes.local_rank if processes.size > 1 else None)
    with process_group(processes, device):
        return evaluate(cfg, processes, device)


def evaluate(cfg: DictConfig, processes: Processes, device: torch.device) -> int:
    """The same, by processes that have met."""
    chosen, missing = choose(words(cfg.protocols, "protocols"), cfg.roots, cfg.override)
    out = Path(cfg.out)
    if processes.is_main:
        for name, why in missing.items():
            print(f"{name}: not run, {why}")
        require_writable(out)
    dtype = choose_amp(cfg.precision, device) or torch.float32
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    cv2.setNumThreads(1)  # images are read in threads of ours; more would take the cores from the model
    keep_freed_memory()

    predictors, checkpoints = build_predictors(cfg, device, dtype)
    for one in chosen:
        for predictor in predictors:
            one.protocol.require_fits(space_of(predictor), predictor.label)
    sets = [one.open() for one in chosen]  # all of them before the work begins, to find what is wrong
    if processes.is_main:
        print(describe(predictors, chosen, device, dtype, processes), flush=True)
    about = describe_run(cfg, checkpoints, missing, device, dtype)
    return evaluate_all(cfg, predictors, chosen, sets, about, out, processes)


def evaluate_all(
    cfg: DictConfig,
    predictors: Sequence[ScoredPredictor],
    chosen: Sequence[Chosen],
    sets: Sequence[Any],
    about: dict[str, Any],
    out: Path,
    processes: Processes,
) -> int:
    """Runs the protocols one by one; writes and prints those that are complete, even if interrupted.

    All processes score; only the first one writes and prints.
    """
    results: list[ProtocolResult] = []
    report = Report(cfg.pictures)
    about["complete"] = False
    try:
        for one, dataset in zip(chosen, sets, strict=True):
            result = score(cfg, predictors, one, dataset, processes)
            if not any(scored.rows for scored in result.scored.values()):
                raise ValueError("\n".join(nothing_scored(result)))
            if not processes.is_main:
                continue
            results.append(result)
            if cfg.pictures:
                report.add(result, predictors, dataset)
            write_results(out, about, results)
        about["complete"] = True
    except KeyboardInterrupt:
        if processes.is_main:
            print(f"\ninterrupted; {len(results)} of {len(chosen)} protocols are done", flush=True)
        raise
    finally:
        if results:
            write_all(out, about, results, report if cfg.pictures else None)
    return 0


def write_all(
    out: Path, about: dict[str, Any], results: Sequence[ProtocolResult], report: Report | None
) -> None:
    """Writes every file and prints the tables."""
    write_results(out, about, results)
    write_per_image(out, results)
    if report is not None:
        report.write(out, about)
    print_results(results)
    names = "results.json, per_image.csv" + (", report.html" if report is not None else "")
    print(f"{out}: {names}", flush=True)


def score(
    cfg: DictConfig, predictors: Sequence[ScoredPredictor], one: Chosen, dataset: Any, processes: Processes
) -> ProtocolResult:
    """Scores every checkpoint under one protocol."""
    asked = len(dataset) if cfg.limit is None else min(cfg.limit, len(dataset))
    indices = [k * len(dataset) // asked for k in range(asked)]
    result = ProtocolResult(one.protocol, one.dataset, one.changed, len(dataset), asked)
    for predictor in predictors:
        with bar_of_all(processes, f"{one.protocol.name}, {predictor.label}", asked) as advance:
            scored = score_one(cfg, predictor, one, dataset, indices, advance, processes)
            advance(0)  # shows what other processes have done since
        result.scored[predictor.label] = scored
    return result


def score_one(
    cfg: DictConfig,
    predictor: ScoredPredictor,
    one: Chosen,
    dataset: Any,
    indices: Sequence[int],
    tick: Callable[[], object],
    processes: Processes,
) -> Scored:
    """Scores one checkpoint under one protocol."""
    try:
        return score_set(
            predictor,
            dataset,
            one.protocol,
            indices,
            cfg.batch_size,
            cfg.workers,
            convert_images=True,
            skip_unreadable=cfg.skip_unreadable,
            tick=tick,
            processes=processes,
        )
    except UnreadableImage as error:
        raise ValueError(f"{error} (skip_unreadable=true leaves such images out, counted)") from None


def nothing_scored(result: ProtocolResult) -> list[str]:
    """Returns lines that say why no checkpoint has a score."""
    head = f"protocol {result.protocol.name}: none of {result.asked} images could be scored"
    return [head, *(f"{label}: {note}" for label in result.scored for note in result.notes(label))]


def check(cfg: DictConfig) -> DictConfig:
    """The configuration with its types checked.

    Raises:
        ValueError: (or one of OmegaConf's errors) a setting has a wrong type, no value, or a value that
            cannot be.
    """
    cfg = typed(cfg, EvaluateSettings)
    require(cfg)
    require_least(cfg, {"batch_size": 1, "workers": 1, "threads": 1, "limit": 1, "pictures": 0})
    if cfg.stored_per_unit is not None and cfg.stored_per_unit <= 0:
        raise ValueError(f"stored_per_unit={cfg.stored_per_unit}: expected a stored value above 0")
    for quantity in words(cfg.quantity, "quantity") if cfg.quantity is not None else []:
        if quantity not in QUANTITIES:
            raise ValueError(f"unknown quantity {quantity!r}; choose from {', '.join(QUANTITIES)}")
    for key in ("checkpoint", "protocols"):
        words(cfg[key], key)
    return cfg


def words(setting: object, key: str) -> list[str]:
    """Each once, of `a,b` or a list."""
    parts = (
        setting.split(",") if isinstance(setting, str) else setting if isinstance(setting, ListConfig) else []
    )
    found = [word for part in parts if (word := str(part).strip())]
    if not found or (key != "quantity" and len(set(found)) < len(found)):
        raise ValueError(f"{key}={setting}: expected one or more, each once, with commas between")
    return found


def build_predictors(
    cfg: DictConfig, device: torch.device, dtype: torch.dtype
) -> tuple[list[ScoredPredictor], dict[str, dict[str, Any]]]:
    """Loads all checkpoints, to find a wrong one before hours of work.

    Returns:
        The predictors, and what results.json says of each one, by label.
    """
    paths = words(cfg.checkpoint, "checkpoint")
    quantities = _quantities(cfg, [path for path in paths if holds_predictions(Path(path))])
    predictors: list[ScoredPredictor] = []
    about: dict[str, dict[str, Any]] = {}
    for path, label in zip(paths, labels_of(paths), strict=True):
        if path in quantities:
            predictors.append(
                FolderPredictor(Path(path), QUANTITIES[quantities[path]], cfg.stored_per_unit, label)
            )
            more = {}
        else:
            model = load_model(path, device, cfg.taps, cfg.max_depth)
            more = {"model": model.config, "weights_sha256": weights_sha256(model)}
            model = prepare_for_inference(model, dtype)  # changes the weights
            predictors.append(Predictor(model, model.input_size, label=label))
        about[label] = {"source": path, "quantity": space_of(predictors[-1]), **more}
    return predictors, about


def _quantities(cfg: DictConfig, folders: Sequence[str]) -> dict[str, str]:
    """Returns the quantity in each folder of predictions, which the user must state."""
    given = words(cfg.quantity, "quantity") if cfg.quantity is not None else []
    if not folders:
        if given:
            raise ValueError(
                f"quantity={cfg.quantity} is of folders of predictions, and no checkpoint is one"
            )
        return {}
    if not given:
        raise ValueError(
            f"{folders[0]} is a folder of predictions: say what they are, quantity=disparity "
            "(larger is nearer) or quantity=depth"
        )
    given = given * len(folders) if len(given) == 1 else given
    if len(given) != len(folders):
        raise ValueError(f"quantity={cfg.quantity} is of {len(given)} folders, there are {len(folders)}")
    return dict(zip(folders, given))


def labels_of(paths: Sequence[str]) -> list[str]:
    """Returns the last parts of the paths, as many as make them differ."""
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(paths)


def describe(
    predictors: Sequence[ScoredPredictor],
    chosen: Sequence[Chosen],
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes,
) -> str:
    """Returns one line about the work that begins."""
    models = ", ".join(f"{each.label} ({space_of(each)})" for each in predictors)
    number_format = str(dtype).removeprefix("torch.")
    count = f"{len(chosen)} protocol{'s' if len(chosen) > 1 else ''}"
    by = f", {processes.size} processes" if processes.size > 1 else ""
    return f"{models} under {count}, {device.type} in {number_format}{by}"


def describe_run(
    cfg: DictConfig,
    checkpoints: dict[str, dict[str, Any]],
    missing: dict[str, str],
    device: torch.device,
    dtype: torch.dtype,
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
        "device": device.type,
        "precision": str(dtype).removeprefix("torch."),
        "command": plain(cfg),
        "checkpoints": checkpoints,
        "not_run": missing,
    }


def main() -> None:
    """Console script `depthany-evaluate`."""
    sys.exit(run_entry("evaluate", run, literal=LITERAL, aliases=ALIASES))


if __name__ == "__main__":
    main()
