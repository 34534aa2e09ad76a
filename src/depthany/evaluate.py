"""Score models and predictions: `python -m depthany.evaluate checkpoint=... protocol=...`."""

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
    ModelPredictor,
    Predictor,
    holds_predictions,
    weights_sha256,
)
from depthany.evaluation.protocol_files import Chosen, choose
from depthany.evaluation.results import ProtocolResult, write_per_image, write_results
from depthany.evaluation.run import Scored, UnreadableImage, score_set
from depthany.models.fast import prepare_for_inference
from depthany.models.files.loading import load_model
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

    predictors = build_predictors(cfg, device, dtype)
    for one in chosen:
        for predictor in predictors:
            one.protocol.require_fits(predictor.quantity, predictor.label)
    sets = [one.open() for one in chosen]  # all of them now: what is wrong with the last is found first
    if processes.is_main:
        told = f", {processes.size} processes" if processes.size > 1 else ""
        print(f"{describe(predictors, chosen, device, dtype)}{told}", flush=True)
    about = describe_run(cfg, predictors, missing, device, dtype)
    return evaluate_all(cfg, predictors, chosen, sets, about, out, processes)


def evaluate_all(
    cfg: DictConfig,
    predictors: Sequence[Predictor],
    chosen: Sequence[Chosen],
    sets: Sequence[Any],
    about: dict[str, Any],
    out: Path,
    processes: Processes,
) -> int:
    """Run the protocols one by one; what is whole is on the disk and on the screen however it ends.

    All processes score, the first one alone makes files and tables of it.
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
    """Write every file and print the tables."""
    write_results(out, about, results)
    write_per_image(out, results)
    if report is not None:
        report.write(out, about)
    print_results(results)
    names = "results.json, per_image.csv" + (", report.html" if report is not None else "")
    print(f"{out}: {names}", flush=True)


def score(
    cfg: DictConfig, predictors: Sequence[Predictor], one: Chosen, dataset: Any, processes: Processes
) -> ProtocolResult:
    """Every checkpoint under one protocol."""
    asked = len(dataset) if cfg.limit is None else min(cfg.limit, len(dataset))
    indices = [k * len(dataset) // asked for k in range(asked)]
    result = ProtocolResult(one.protocol, one.dataset, one.changed, len(dataset), asked)
    for predictor in predictors:
        with bar_of_all(processes, f"{one.protocol.name}, {predictor.label}", asked) as advance:
            scored = score_one(cfg, predictor, one, dataset, indices, advance, processes)
            advance(0)  # what the others have done since
        result.scored[predictor.label] = scored
    return result


def score_one(
    cfg: DictConfig,
    predictor: Predictor,
    one: Chosen,
    dataset: Any,
    indices: Sequence[int],
    tick: Callable[[], object],
    processes: Processes,
) -> Scored:
    """One checkpoint under one protocol."""
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
    """Why no checkpoint has a score."""
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


def build_predictors(cfg: DictConfig, device: torch.device, dtype: torch.dtype) -> list[Predictor]:
    """All checkpoints, loaded now: a wrong one is found before hours of work."""
    paths = words(cfg.checkpoint, "checkpoint")
    folders = [path for path in paths if holds_predictions(Path(path))]
    quantities = _quantities(cfg, folders)
    predictors: list[Predictor] = []
    for path, label in zip(paths, labels_of(paths), strict=True):
        if path in folders:
            about = {"source": path, "quantity": quantities[path]}
            predictors.append(
                FolderPredictor(Path(path), quantities[path], cfg.stored_per_unit, label, about)
            )
        else:
            predictors.append(build_model_predictor(cfg, path, label, device, dtype))
    return predictors


def build_model_predictor(
    cfg: DictConfig, path: str, label: str, device: torch.device, dtype: torch.dtype
) -> ModelPredictor:
    """A model, ready; its quantity is its own: metres if it has a largest depth, else disparity."""
    model = load_model(path, device, cfg.taps, cfg.max_depth)
    quantity = "disparity" if model.quantity.larger_is_nearer else "depth"
    about = {"source": path, "quantity": quantity, "model": model.config}
    about["weights_sha256"] = weights_sha256(model)
    model = prepare_for_inference(model, dtype)
    return ModelPredictor(model, model.input_size, device, quantity, None, label, about)


def _quantities(cfg: DictConfig, folders: Sequence[str]) -> dict[str, str]:
    """What each folder of predictions holds, as the user says."""
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
    """Last parts of the paths, as many as make them differ."""
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(paths)


def describe(
    predictors: Sequence[Predictor], chosen: Sequence[Chosen], device: torch.device, dtype: torch.dtype
) -> str:
    """One line on what is about to happen."""
    models = ", ".join(f"{each.label} ({each.quantity})" for each in predictors)
    number_format = str(dtype).removeprefix("torch.")
    count = f"{len(chosen)} protocol{'s' if len(chosen) > 1 else ''}"
    return f"{models} under {count}, {device.type} in {number_format}"


def describe_run(
    cfg: DictConfig,
    predictors: Sequence[Predictor],
    missing: dict[str, str],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What results.json says besides results."""
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
        "checkpoints": {each.label: each.about for each in predictors},
        "not_run": missing,
    }


def main() -> None:
    """Console script `depthany-evaluate`."""
    sys.exit(run_entry("evaluate", run, literal=LITERAL, aliases=ALIASES))


if __name__ == "__main__":
    main()
