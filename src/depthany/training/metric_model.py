"""What a metric model takes from its labeled sets: the range of its head, its domains, and their camera."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from depthany.data.labeled_options import LabeledOptions
from depthany.data.transforms import crop_shape
from depthany.models.model import DenseModel
from depthany.models.trained_on import TrainedOn
from depthany.training.checks import rooted
from depthany.training.settings import TrainSettings
from depthany.training.stages.table import STAGES
from depthany.training.starting_weights import require_chosen_head

END, DOMAINS = "max_depth_m", "domains"  # arguments of metric heads


def learns_metres(settings: TrainSettings) -> bool:
    """Whether the stage learns depth in metres."""
    return STAGES[settings.stage.name].target == "depth_m"


def with_metric_head(settings: TrainSettings, labeled: Sequence[Any]) -> TrainSettings:
    """Returns the settings with the range of a metric head as `metric_head` fills it in."""
    return replace(settings, model=replace(settings.model, head=metric_head(settings, labeled)))


def metric_head(settings: TrainSettings, labeled: Sequence[Any]) -> dict[str, Any]:
    """Returns the arguments of the head, with the range of a metric head where the settings leave it open.

    The end of the range is the largest depth that labels have by their settings: `max_depth` of a set, or
    `stage.far_m`. Without domains each labeled set is one.

    Args:
        labeled: the labeled sets that have a root, in their order.

    Raises:
        ValueError: the head tells domains apart, and there is one set.
    """
    head = dict(settings.model.head)
    if not learns_metres(settings) or not labeled:
        return head
    far_m = getattr(settings.stage, "far_m", None)
    ends_m = [float(images.max_depth) for images in labeled]
    ends_m = ends_m if far_m is None else [min(end, far_m) for end in ends_m]
    if END in head and head[END] is None:
        head[END] = max(ends_m)
    if DOMAINS in head and head[DOMAINS] is None:
        if len(labeled) < 2:
            raise ValueError(
                f"model.head.name={head['name']} tells domains apart, but there is one labeled set: add "
                "another domain, or choose head=bins"
            )
        head[DOMAINS] = dict(zip(rooted(settings.data.labeled), ends_m))
    return head


def labeled_options(settings: TrainSettings, labeled: Sequence[Any]) -> LabeledOptions:
    """Returns how the stage wants labeled images, with the range and the domains of the head.

    Raises:
        ValueError: a set is in none of the domains of the head, or the stage names domains and the head has
            none.
    """
    names = rooted(settings.data.labeled)
    options = STAGES[settings.stage.name].labeled_options(settings.stage, names)
    if not learns_metres(settings):
        return options
    head = metric_head(settings, labeled)
    end_m, domains = head.get(END), head.get(DOMAINS)
    if end_m is not None:  # beyond it, the head cannot predict
        options = replace(options, far_m=min(options.far_m, end_m))
    of_set = getattr(settings.stage, "domains", None) or {}
    if domains is None and of_set:
        raise ValueError(f"stage.domains: model.head.name={head['name']} has no domains: choose head=bins_nk")
    if domains is None:
        return options
    numbers = [_number(name, of_set.get(name, name), list(domains)) for name in names]
    return replace(options, domains=numbers)


def _number(name: str, domain: str, domains: Sequence[str]) -> int:
    if domain not in domains:
        raise ValueError(
            f"labeled set {name} is in domain {domain!r}, but those of the head are {', '.join(domains)}: "
            f"set +stage.domains.{name}=..."
        )
    return domains.index(domain)


def require_trained_head(model: DenseModel, settings: TrainSettings, labeled: Sequence[Any]) -> None:
    """Raises ValueError if the head came with `model.init` and is of another kind, has other arguments or
    domains, or a nearer end than the labels.

    Args:
        labeled: the labeled sets that have a root, in their order.
    """
    if not learns_metres(settings) or not labeled:
        return
    wanted, trained = metric_head(settings, labeled), model.config["head"]
    require_chosen_head(model, wanted, settings.model.init)
    remedy = "or start a new head: model.init_parts=encoder+decoder"
    chosen = {} if settings.model.init is None else wanted
    for name, value in chosen.items():
        if name not in (END, DOMAINS) and trained.get(name) != value:
            raise ValueError(
                f"model.init={settings.model.init} was trained with {name}={trained.get(name)}, but "
                f"model.head.{name}={value} was chosen: set model.head.{name}={trained.get(name)}, {remedy}"
            )
    if (end_m := trained.get(END)) is not None and wanted.get(END, end_m) > end_m:
        raise ValueError(
            f"the head of model.init={settings.model.init} is for depth up to {end_m:g} m, but labels go to "
            f"{wanted[END]:g} m: set stage.far_m={end_m:g}, {remedy}"
        )
    theirs, ours = (list(head.get(DOMAINS) or {}) for head in (trained, wanted))
    if theirs != ours:
        raise ValueError(
            f"the domains of model.init={settings.model.init} are {', '.join(theirs) or 'none'}, but those "
            f"of the settings {', '.join(ours) or 'none'}: set head, model.head.domains and stage.domains as "
            f"in that model, {remedy}"
        )


def require_cameras(settings: TrainSettings, val_sets: Mapping[str, Any]) -> None:
    """Raises ValueError if depth is scaled to a canonical camera and a validation set has no camera."""
    canonical = getattr(settings.stage, "canonical_focal", None)
    for name, images in val_sets.items():
        if canonical is not None and getattr(images, "focal", None) is None:
            raise ValueError(
                f"{name}.focal is null, but stage.canonical_focal={canonical:g} scales depth by it: set it "
                f"(pixels), or leave the set out: {name}.root=null"
            )


def trained_on(settings: TrainSettings, labeled: Sequence[Any]) -> TrainedOn | None:
    """Returns the names of the labeled sets and their camera, for the checkpoint; None without metres.

    The camera is that of all sets, or the canonical one at the width of the crop; None where sets differ.
    """
    if not learns_metres(settings) or not labeled:
        return None
    sets, canonical = tuple(rooted(settings.data.labeled)), getattr(settings.stage, "canonical_focal", None)
    if canonical is not None:
        return TrainedOn(sets, float(canonical), crop_shape(settings.crop_size)[1])
    cameras = {(getattr(each, "focal", None), getattr(each, "focal_width", None)) for each in labeled}
    focal_px, width = cameras.pop() if len(cameras) == 1 else (None, None)
    if focal_px is None or width is None:
        return TrainedOn(sets)
    return TrainedOn(sets, float(focal_px), int(width))
