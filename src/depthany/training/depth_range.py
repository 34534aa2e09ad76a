"""The range of depth of a metric run: that of its sets, of its settings and of its head."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from depthany.data.labeled_options import LabeledOptions
from depthany.training.settings import TrainSettings
from depthany.training.stages.table import STAGES

END = "max_depth_m"  # argument of a metric head


def within_head(options: LabeledOptions, head: Mapping[str, Any]) -> LabeledOptions:
    """Returns the options without depth beyond the end of the head's range, which it cannot predict."""
    end_m = head.get(END)
    return options if end_m is None else replace(options, far_m=min(options.far_m, end_m))


def with_depth_range(settings: TrainSettings, labeled: Sequence[Any]) -> TrainSettings:
    """Returns the settings with the end of the head's range, where they leave it open.

    It is the largest depth that the labels have by their settings: `max_depth` of a set, or `stage.far_m`.

    Args:
        labeled: the labeled sets, in metres.
    """
    head, stage = settings.model.head, STAGES[settings.stage.name]
    if stage.target != "depth_m" or END not in head or head[END] is not None or not labeled:
        return settings
    far_m = getattr(settings.stage, "far_m", None)
    ends_m = [float(images.max_depth) for images in labeled]
    end_m = max(ends_m if far_m is None else [min(end, far_m) for end in ends_m])
    return replace(settings, model=replace(settings.model, head={**head, END: end_m}))
