"""Ends a run whose score no longer improves."""

from dataclasses import dataclass

from depthany.metrics.table import METRICS
from depthany.system.rules import setting
from depthany.training.checkpoints.state import Progress


@dataclass
class EarlyStoppingSettings:
    """The group `early_stopping` of configs/train.yaml."""

    patience: int | None = setting(None, least=1)
    min_delta: float = setting(0.0, least=0)


def note_score(progress: Progress, score: float, metric: str, min_delta: float) -> None:
    """Counts a validation as one without improvement, or resets the count.

    Args:
        score: value of the metric, which all ranks have alike.
        metric: name in `depthany.metrics.table.METRICS`.
        min_delta: the score improves if it is better than `progress.score_to_beat` by more than this.
    """
    towards_worse = min_delta if METRICS[metric].better == "lower" else -min_delta
    if METRICS[metric].is_better(score + towards_worse, progress.score_to_beat):
        progress.score_to_beat, progress.validations_without_gain = score, 0
    else:
        progress.validations_without_gain += 1


def has_run_out(progress: Progress, settings: EarlyStoppingSettings) -> bool:
    """Whether `patience` validations, one after the other, have brought no improvement."""
    return settings.patience is not None and progress.validations_without_gain >= settings.patience
