"""What a metric model takes from its labeled sets: the range of its head, its domains, and their camera."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from depthany.data.labeled_options import LabeledOptions
from depthany.data.transforms import crop_shape
from depthany.models.heads.metric_bins_nk import require_domains
from depthany.models.model import DenseModel
from depthany.models.output import require_max_depth
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
    `stage.far_m`. Without domains each labeled set is one, or in that of `stage.domains`.

    Args:
        labeled: the labeled sets that have a root, in their order.

    Raises:
        ValueError: the head tells domains apart, and there is one; or a range is no number of metres.
    """
    head = dict(settings.model.head)
    if not learns_metres(settings) or not labeled:
        return head
    far_m = getattr(settings.stage, "far_m", None)
    ends_m = [float(images.max_depth) for images in labeled]
    ends_m = ends_m if far_m is None else [min(end, far_m) for end in ends_m]
    if END in head:
        head[END] = max(ends_m) if head[END] is None else head[END]
        require_max_depth(head[END], f"model.head.{END}")
    if DOMAINS in head:
        head[DOMAINS] = _ends_of_domains(settings, ends_m) if head[DOMAINS] is None else head[DOMAINS]
        require_domains(head[DOMAINS], key=f"model.head.{DOMAINS}")
    return head


def _ends_of_domains(settings: TrainSettings, ends_m: Sequence[float]) -> dict[str, float]:
    """Returns the far end of each domain: the farthest of its sets, whose ends are `ends_m`."""
    names, of_set = rooted(settings.data.labeled), getattr(settings.stage, "domains", None) or {}
    domains = dict[str, float]()
    for name, end_m in zip(names, ends_m):
        domain = of_set.get(name, name)
        domains[domain] = max(end_m, domains.get(domain, 0.0))
    if len(domains) < 2:
        those = "is one labeled set" if len(ends_m) < 2 else f"are only labeled sets of {next(iter(domains))}"
        raise ValueError(
            f"model.head.name={settings.model.head['name']} tells domains apart, but there {those}: add "
            "another domain, or choose head=bins"
        )
    return domains


def labeled_options(settings: TrainSettings, labeled: Sequence[Any]) -> LabeledOptions:
    """Returns how the stage wants labeled images, with the range and the domains of the head.

    Raises:
        ValueError: a set is in none of the domains of the head, the stage names domains and the head has
            none, or no depth of a set can count.
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
    if domains is not None:
        numbers = [_number(name, of_set.get(name, name), list(domains)) for name in names]
        ends_m = list(domains.values())
        options = replace(options, domains=numbers, ends_m=[float(ends_m[number]) for number in numbers])
    for part, (name, images) in enumerate(zip(names, labeled)):
        _require_depth(name, images, options, part)
    return options


def _require_depth(name: str, images: Any, options: LabeledOptions, part: int) -> None:
    """Raises ValueError if the range of a labeled set and that of the stage and the head have no overlap."""
    near = {"stage.near_m": options.near_m}
    far = {"the end of stage.far_m and the head": options.far_end_m(part)}
    if options.focal_px is None:  # else the ranges are of two cameras
        near["min_depth of the set"], far["max_depth of the set"] = images.min_depth, images.max_depth
    nearest, farthest = max(near, key=lambda key: near[key]), min(far, key=lambda key: far[key])
    if near[nearest] >= far[farthest]:
        raise ValueError(
            f"labeled set {name}: no depth counts, from {near[nearest]:g} m ({nearest}) to "
            f"{far[farthest]:g} m ({farthest}): lower the one, or raise the other"
        )


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
    theirs, ours = (head.get(DOMAINS) or {} for head in (trained, wanted))
    if list(theirs) != list(ours):
        raise ValueError(
            f"the domains of model.init={settings.model.init} are {', '.join(theirs) or 'none'}, but those "
            f"of the settings {', '.join(ours) or 'none'}: set head, model.head.domains and stage.domains as "
            f"in that model, {remedy}"
        )
    for domain, end_m in theirs.items():
        if ours[domain] > end_m:
            raise ValueError(
                f"{domain} of model.init={settings.model.init} is for depth up to {end_m:g} m, but labels go "
                f"to {ours[domain]:g} m: set model.head.domains.{domain}={end_m:g}, {remedy}"
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

    The camera is that of all sets, or the canonical one at the width of the crop; None where sets differ or
    have no `focal_width`.
    """
    if not learns_metres(settings) or not labeled:
        return None
    sets, canonical = tuple(rooted(settings.data.labeled)), getattr(settings.stage, "canonical_focal", None)
    if canonical is not None:
        return TrainedOn(sets, float(canonical), crop_shape(settings.crop_size)[1], canonical=True)
    cameras = {(getattr(each, "focal", None), getattr(each, "focal_width", None)) for each in labeled}
    focal_px, width = cameras.pop() if len(cameras) == 1 else (None, None)
    if focal_px is None or width is None:
        return TrainedOn(sets)
    return TrainedOn(sets, float(focal_px), int(width))


def metric_notes(settings: TrainSettings, labeled: Sequence[Any]) -> list[str]:
    """Returns a line if the sets have a camera that the checkpoint cannot store."""
    about = trained_on(settings, labeled)
    if (
        about is None
        or about.focal_px is not None
        or not any(getattr(each, "focal", None) for each in labeled)
    ):
        return []
    return ["the checkpoint stores no camera: that takes the same focal and focal_width for all labeled sets"]


def learned_ends_m(
    settings: TrainSettings, labeled: Sequence[Any], options: LabeledOptions
) -> dict[str, float]:
    """Returns the metres up to which the labels of each set are learned, by its name in the configuration;
    infinity where they are scaled to another camera, and nothing for a stage that learns no metres.
    """
    names = (
        [f"data.labeled.{name}" for name in rooted(settings.data.labeled)] if learns_metres(settings) else []
    )
    scaled = options.focal_px is not None
    return {
        name: math.inf if scaled else min(float(images.max_depth), options.far_end_m(part))
        for part, (name, images) in enumerate(zip(names, labeled))
    }
