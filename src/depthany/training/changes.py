"""Which settings of a run may change when it continues, and which would make it another run."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

import omegaconf
from omegaconf import OmegaConf

from depthany.config.entry import flat
from depthany.models.files.model_source import ModelSource
from depthany.system.files import checkout_dir
from depthany.training.optim import ScheduleSettings, lr_factor

PLACE = "place"  # where the folder of the run lies: no change
FREE = "free"  # where and how fast it computes, what it reports and keeps: at most the rounding changes
LENGTH = "length"  # how many steps the run has
MOVED = "moved"  # where a data set lies; its files must be the same
REFUSED = "refused"  # the order of the images, or what is learned from them

# Setting, or group of settings, and what its change means. What is not named here, such as a setting of a
# plugin's stage, must not change.
MAY_CHANGE = {
    "run_dir": PLACE,
    "overwrite": PLACE,
    "device": FREE,
    "precision": FREE,
    "threads": FREE,
    "workers": FREE,
    "parallel": FREE,
    "compile": FREE,
    "cuda_graphs": FREE,
    "deterministic": FREE,
    "channels_last": FREE,
    "activation_checkpointing": FREE,
    "loggers": FREE,
    "log_every": FREE,
    "image_every": FREE,
    "eval_every": FREE,
    "eval_metrics": FREE,
    "save_every": FREE,
    "keep_checkpoints": FREE,
    "early_stopping": FREE,
    "if_save_fails": FREE,
    "data.val": FREE,
    "data.max_unreadable_share": FREE,
    "data.read_timeout": FREE,
    "data.index_dir": FREE,
    "data.unlabeled_root": FREE,  # the roots below it are compared
    "data.*labeled.*.index_dir": FREE,
    "data.*labeled.*.expected": FREE,
    "steps": LENGTH,
    "epochs": LENGTH,
    "passes": LENGTH,
    "data.*labeled.*.root": MOVED,
    "data.*labeled.*.list_file": MOVED,
    "data.*labeled.*.exclude_file": MOVED,
}
VALIDATION = "data.val"
SHOWN = 5  # changes in a message
# What `inputs.saved_settings` adds to the settings
COUNTS, NAMES, CLASSES, WEIGHTS = "images_found", "files_found", "classes_found", "weights_found"


@dataclass(frozen=True)
class Change:
    """A setting with another value than the run began with.

    kind: FREE, LENGTH, MOVED or REFUSED.
    set_added: True if it belongs to a data set that is new, False if to one that is left out, else None.
    words: what has changed, where that is not the value of a setting.
    """

    key: str
    before: Any
    now: Any
    kind: str
    set_added: bool | None = field(default=None, compare=False)
    words: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.words:
            return self.words
        if self.key.startswith(f"{NAMES}."):
            return f"data.{self.key.removeprefix(f'{NAMES}.')}: other file names"
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"


@dataclass(frozen=True)
class Changes:
    """All changes of a run that continues.

    names_known: whether the run noted the names of its files; runs of older versions noted their number.
    weights_unknown: settings of whose weights the run noted no hash, as those of older versions.
    """

    all: tuple[Change, ...] = ()
    names_known: bool = True
    weights_unknown: tuple[str, ...] = ()

    def of(self, *kinds: str) -> list[Change]:
        """Returns the changes of some kinds, sorted by setting."""
        return [each for each in self.all if each.kind in kinds]

    @property
    def validation(self) -> bool:
        """Whether the validation sets are others."""
        return any(each.key.startswith(f"{VALIDATION}.") or each.key == VALIDATION for each in self.all)


def listed(changes: list[Change]) -> str:
    """Returns changes in words, as in "seed: 0 -> 1; batch_size: 6 -> 12"."""
    return "; ".join(map(str, changes))


def summarised(changes: list[Change]) -> str:
    """Returns changes in words, sets that were added or left out by name alone, the first `SHOWN` of all."""
    lines = list(dict.fromkeys(_of_set(change) or str(change) for change in changes))
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def _of_set(change: Change) -> str | None:
    """Returns a line about the whole set that a change belongs to, if only one side has that set."""
    parts = change.key.split(".")
    if change.set_added is None or len(parts) < 3:
        return None
    return f"data.{parts[1]}.{parts[2]}: {'added' if change.set_added else 'left out'}"


def kind_of(key: str) -> str:
    """Returns what a change of a setting means: the row of `MAY_CHANGE` for it or its group, else REFUSED."""
    for pattern, kind in MAY_CHANGE.items():
        if fnmatchcase(key, pattern) or key.startswith(f"{pattern}."):
            return kind
    return REFUSED


def find_changes(began: Mapping[str, Any], settings: Mapping[str, Any], older: Mapping[str, Any]) -> Changes:
    """Compares the settings that a run began with, and its data, to those that it is started with now.

    Args:
        began: nested settings of settings.yaml or config.json, with the data found where it is noted.
        settings: the same as they are now. Without the data found, only the settings are compared.
        older: values of settings that a run of an older version may lack, see `defaults_of`.
    """
    began, settings = (_plain(each) for each in (began, settings))
    _leave_out_unused(began, settings)
    noted_then, found_now = (
        {key: each.pop(key, {}) for key in (CLASSES, WEIGHTS)} for each in (began, settings)
    )
    noted = [key for key in (COUNTS, NAMES) if key in began and key in settings]
    before, now = (
        flat({key: value for key, value in each.items() if key in noted or key not in (COUNTS, NAMES)})
        for each in (began, settings)
    )
    changes = [
        Change(key, before.get(key, older.get(key)), now.get(key), kind_of(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key, older.get(key)) != now.get(key) and kind_of(key) != PLACE
    ]
    changes = [_from_path_to_path(change) for change in changes if not _is_newer(change, before, older)]
    changes = [replace(each, set_added=_set_added(each.key, began, settings)) for each in changes]
    others = (
        *_reordered(began, settings),
        *_other_classes(noted_then[CLASSES], found_now[CLASSES]),
        *_other_weights(noted_then[WEIGHTS], found_now[WEIGHTS], settings, changes),
    )
    unknown = tuple(sorted(found_now[WEIGHTS].keys() - noted_then[WEIGHTS].keys()))
    return Changes((*changes, *others), NAMES in began, unknown)


def _set_added(key: str, began: Mapping[str, Any], settings: Mapping[str, Any]) -> bool | None:
    """Returns whether the data set that a key is of is new (True) or left out (False), else None."""
    parts = key.split(".")
    if parts[0] not in ("data", NAMES) or len(parts) < 3:
        return None
    before, now = (parts[2] in (each.get("data", {}).get(parts[1]) or {}) for each in (began, settings))
    return None if before == now else now


def defaults_of(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the defaults of a settings dataclass and of those in it, by dotted key.

    A run of an older version lacks a newer setting, and did what its default does.
    """
    found = dict[str, Any]()
    for each in fields(settings):
        key, value = f"{prefix}{each.name}", getattr(settings, each.name)
        if is_dataclass(value):
            found |= defaults_of(value, f"{key}.")
        elif each.default is not MISSING and each.default != omegaconf.MISSING:
            found[key] = each.default
        elif each.default_factory is not MISSING:
            found[key] = each.default_factory()
    return found


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as settings.yaml would give them back, paths in the checkout relative to it."""
    container = OmegaConf.to_container(OmegaConf.create(dict(settings)))
    checkout = checkout_dir()
    return _without_prefix(container, f"{checkout}/") if checkout else container  # type: ignore[return-value]


def _without_prefix(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {key: _without_prefix(each, prefix) for key, each in value.items()}
    return value.removeprefix(prefix) if isinstance(value, str) else value


def _leave_out_unused(began: dict[str, Any], settings: dict[str, Any]) -> None:
    """Leaves out the sets of a kind of image that the stage does not draw; older versions noted them."""
    for kind in ("labeled", "unlabeled"):
        if not settings.get("data", {}).get(kind, True):
            for each in (began, settings):
                each.get("data", {})[kind] = {}
                each.get(COUNTS, {})[kind] = 0


def _is_newer(change: Change, before: Mapping[str, Any], older: Mapping[str, Any]) -> bool:
    """Whether a setting that may change is newer than the run, and is not an added validation set."""
    is_set = change.key.startswith(f"{VALIDATION}.")
    return change.kind == FREE and not is_set and change.key not in before and change.key not in older


def _from_path_to_path(change: Change) -> Change:
    """Returns a moved set as it is, and one that had or has no path as a refused change."""
    if change.kind == MOVED and not (change.before and change.now):
        return Change(change.key, change.before, change.now, REFUSED)
    return change


def _reordered(began: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Change]:
    """Yields a change where the same sets come in another order: images are numbered through all sets."""
    for kind in ("labeled", "unlabeled"):
        before, now = (list(each.get("data", {}).get(kind, ())) for each in (began, settings))
        if before != now and sorted(before) == sorted(now):
            yield Change(f"data.{kind}", ", ".join(before), ", ".join(now), REFUSED)


def _other_classes(began: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Change]:
    """Yields a change for each set whose masks mean other classes; of sets on one side the settings tell."""
    for name in sorted(began.keys() & found.keys()):
        before, now = began[name], found[name]
        pairs = zip_longest(before["classes"], now["classes"], fillvalue="none")
        lines = [f"class {i}: {old} -> {new}" for i, (old, new) in enumerate(pairs) if old != new]
        if before["ignored"] != now["ignored"]:
            lines.append(f"ignored values: {before['ignored']} -> {now['ignored']}")
        if lines:
            more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
            words = f"the classes of data.labeled.{name}: {lines[0]}{more}"
            yield Change(f"{CLASSES}.{name}", before, now, REFUSED, words=words)


def _other_weights(
    began: Mapping[str, Any], found: Mapping[str, Any], settings: Mapping[str, Any], changes: list[Change]
) -> Iterator[Change]:
    """Yields a change for each setting that is the same and names other weights: a model was trained anew."""
    for key in sorted(began.keys() & found.keys()):
        before, now = began[key], found[key]
        if before == now or any(f"{each.key}.".startswith(f"{key}.") for each in changes):
            continue
        value: Any = settings
        for part in key.split("."):
            value = value[part]
        words = f"{ModelSource.of(key, value)}: the weights there have changed since the run began"
        yield Change(f"{WEIGHTS}.{key}", before, now, REFUSED, words=words)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def continued(changes: Changes, step: int, total_steps: int, schedule: ScheduleSettings) -> list[str]:
    """Returns lines about what is different from now on in a run that continues at `step`."""
    lines = list[str]()
    if step == 0:
        return lines
    if changes.weights_unknown:
        which = ", ".join(changes.weights_unknown)
        lines.append(f"warning: the run noted no hash of its weights: no change of {which} is noticed")
    if not changes.all:
        return lines
    lines.append(f"continuing with other settings: {listed(list(changes.all))}")
    if changes.of(MOVED) and not changes.names_known:
        lines.append("warning: the run noted no names of its files: only their number was compared")
    if changes.of(LENGTH) and schedule.name != "constant" and step < total_steps:
        factor = lr_factor(step, total_steps, schedule)
        lines.append(
            f"schedule={schedule.name} spans all {total_steps} steps: the learning rate goes on at "
            f"{factor:.3g} of its largest; earlier steps followed a schedule of another length"
        )
    return lines
