"""The first line of a run: what it does, and where its results go."""

from pathlib import Path

import torch

from depthany.data.dataset import TrainingSet
from depthany.system.plurals import counted
from depthany.training.checkpoints.state import TrainingState
from depthany.training.parallel import is_sharded

KINDS = {"teacher": "a teacher", "student": "a student", "metric": "metric depth"}


def first_line(
    stage: str,
    state: TrainingState,
    dataset: TrainingSet,
    total_steps: int,
    device: torch.device,
    amp: torch.dtype | None,
    processes: int,
) -> str:
    """Returns one line on what is about to happen.

    Args:
        stage: its name.
    """
    step = state.progress.step
    counts = {"labeled": dataset.labeled_count, "unlabeled": dataset.unlabeled_count}
    kinds = [f"{count} {kind}" for kind, count in counts.items() if count]
    images = f"{' + '.join(kinds)} {'image' if sum(counts.values()) == 1 else 'images'}"
    number_format = str(amp or torch.float32).removeprefix("torch.")
    steps = counted(total_steps, "step")
    begun = f"continuing at step {step} of {total_steps}" if step else steps
    where = f"{device.type} in {number_format}"
    if processes > 1:
        where += f", {processes} processes ({'FSDP' if is_sharded(state.model) else 'DDP'})"
    frozen = f" ({' and '.join(state.model.frozen_parts)} frozen)" if state.model.frozen_parts else ""
    what = f"training {KINDS.get(stage, stage)}: {state.model.encoder.label}{frozen}"
    return f"{what} on {images}, {begun}, {where}"


def places_line(run_dir: Path, curves: str) -> str:
    """Returns one line on where the results of a run go.

    Args:
        curves: how to look at its curves; empty if no log draws them.
    """
    return f"results in {run_dir}" + (f"    curves: {curves}" if curves else "")
