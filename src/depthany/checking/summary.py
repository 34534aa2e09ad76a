"""The findings of a data set, added up."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from depthany.checking.inspect import BROKEN_ARCHIVE, ERRORS, FEW_VALID, GRAY, NO_PARTNER, Finding, Problem
from depthany.data.class_counts import binary_mistake, shares_of_classes
from depthany.data.counts import count_warning, passed_over_line
from depthany.data.histogram import DepthHistogram, PackedHistogram
from depthany.data.plausible import SeenLabels, doubts
from depthany.data.targets import LEAST_KNOWN, Unit

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# Kinds of warnings about a whole set
COUNT, IMPLAUSIBLE = "number of images", "implausible labels"
OF_READER, PASSED_OVER, FLAT = "its reader says", "passed over", "flat depth"
FIRST = 10  # how many images are named where naming all would be too much


@dataclass
class Trait:
    """A property that is not a defect by itself.

    images: how many images have it. first: names of the first ones. share: sum of their shares of pixels.
    """

    images: int = 0
    first: list[str] = field(default_factory=list)
    share: float = 0.0

    def add(self, name: str, share: float = 0.0) -> None:
        """Counts one more image."""
        self.images += 1
        self.share += share
        if len(self.first) < FIRST:
            self.first.append(name)


@dataclass(frozen=True)
class SetWarning:
    """A warning about a whole set. kind: a few words that are the same for all sets."""

    kind: str
    text: str


class SetSummary:
    """What the report says of one data set. Its memory grows with the problems, not with the images.

    Args:
        root: folder of the data set, for display.
        dataset: the data set; None if it cannot be opened.
        failure: why it cannot be opened.
        expected: number of images that the configuration expects, if it does.
    """

    def __init__(
        self, root: str, dataset: Any = None, failure: str | None = None, expected: int | None = None
    ) -> None:
        self.root, self.failure, self.expected = root, failure, expected
        self.dataset = dataset
        self.labeled = hasattr(dataset, "labels")
        self.unit: Unit = getattr(dataset, "unit", "m")
        self.found = 0 if dataset is None else len(dataset)
        self.unpaired: list[str] = list(getattr(dataset, "unpaired", []))
        self.left_out: dict[str, int] = dict(getattr(dataset, "left_out", {}))
        self.wanted = self.found  # fewer with a limit
        self.checked = 0
        self.notices: list[str] = list(getattr(dataset, "warnings", []))
        self.passed_over: dict[str, int] = dict(getattr(dataset, "passed_over", {}))
        self.passed_over_line = passed_over_line(dataset)
        self.problems = [Problem(NO_PARTNER, f"{root}/{name}", "no partner") for name in self.unpaired]
        self.problems += [Problem(BROKEN_ARCHIVE, *each) for each in getattr(dataset, "broken", [])]
        self.bad: set[int] = set()
        self.histogram = DepthHistogram()
        self.seen = SeenLabels()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.traits: dict[str, Trait] = defaultdict(Trait)
        self.with_depth, self.valid, self.sky, self.least_valid, self.flat = 0, 0.0, 0.0, 1.0, 0

    def add(
        self,
        indices: Sequence[int],
        findings: Sequence[Finding],
        depth: PackedHistogram,
        outside: PackedHistogram,
    ) -> None:
        """Adds the findings of the images `indices`, and the histograms of their depth; see `Chunk`."""
        self.histogram.merge(depth)
        self.seen.known.merge(depth)
        self.seen.known.merge(outside)
        for index, finding in zip(indices, findings, strict=True):
            self._add(index, finding)

    def _add(self, index: int, finding: Finding) -> None:
        self.checked += 1
        self.problems += finding.problems
        if any(problem.kind in ERRORS for problem in finding.problems):
            self.bad.add(index)
        if finding.size is not None:
            self.sizes[finding.size] += 1
        if finding.mode is not None:
            self.modes[finding.mode] += 1
        if finding.is_gray:
            self.traits[GRAY].add(finding.name)
        self.flat += finding.is_flat
        for reason, share in finding.invalid.items():
            self.traits[reason].add(finding.name, share)
        if finding.valid is not None and finding.sky is not None:
            self.with_depth += 1
            self.seen.count(finding.label_type, finding.resized)
            self.valid += finding.valid
            self.sky += finding.sky
            self.least_valid = min(self.least_valid, finding.valid)

    @property
    def kinds(self) -> Counter[str]:
        """Number of problems by kind."""
        return Counter(problem.kind for problem in self.problems)

    @property
    def errors(self) -> int:
        """Number of errors: problems of these kinds, and one if the set cannot be opened."""
        of_set = bool(self.failure) + bool(self.useless)
        return sum(count for kind, count in self.kinds.items() if kind in ERRORS) + of_set

    @property
    def is_wrong(self) -> bool:
        """Whether training would stop at this data set, if data.unreadable is not skip."""
        no_error = self.failure is None and not any(problem.kind in ERRORS for problem in self.problems)
        return not no_error or bool(self.useless)

    @property
    def useless(self) -> str:
        """Why training can learn from no image of the set; "" if it can from one, or if none has labels."""
        if not 0 < self.flat == self.with_depth:
            return ""
        return (
            f"all {self.flat} depth maps are constant or known at fewer than {LEAST_KNOWN} "
            "pixels: training leaves them out, and nothing is left"
        )

    def warnings(self) -> list[SetWarning]:
        """Returns what is unusual about the set as a whole. A new kind of warning is a new line here."""
        count = "" if self.failure else count_warning("", self.found, self.expected)
        lines = [SetWarning(COUNT, count.removeprefix(": "))] if count else []
        lines += [SetWarning(OF_READER, line) for line in self.notices]
        if self.passed_over_line:
            lines.append(SetWarning(PASSED_OVER, self.passed_over_line))
        if self.flat and not self.useless:
            text = (
                f"{self.flat} depth maps say nothing about relative depth: training leaves these images out"
            )
            lines.append(SetWarning(FLAT, text))
        if mistake := binary_mistake(self.dataset):
            lines.append(SetWarning(IMPLAUSIBLE, mistake))
        return lines + [SetWarning(IMPLAUSIBLE, line) for line in doubts(self.dataset, self.seen)]

    def notes(self) -> list[str]:
        """Returns what is worth knowing about the set but is not a warning."""
        lines = self.seen.notes()
        if self.unit == "disparity":
            lines.append("relative labels: larger must be nearer; contact_*.jpg shows it")
        if self.unit == "class":
            lines += [line for _, line in shares_of_classes({self.root: self.dataset})]
        return lines

    def warning_count(self) -> int:
        """Returns the number of warnings, about images and about the whole set."""
        about_images = sum(count for kind, count in self.kinds.items() if kind not in ERRORS)
        return about_images + len(self.warnings())

    def size_range(self) -> dict[str, list[int]]:
        """Returns width and height of the smallest, median and largest image by area; empty without
        images.
        """
        ordered = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        if not ordered:
            return {}
        left = (self.sizes.total() + 1) // 2
        for median in ordered:
            left -= self.sizes[median]
            if left <= 0:
                break
        return {"min": list(ordered[0]), "median": list(median), "max": list(ordered[-1])}

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary for report.json."""
        summary: dict[str, Any] = {
            "root": self.root,
            "failure": self.failure,
            "wrong": self.is_wrong,
            "found": self.found,
            "expected": self.expected,
            "checked": self.checked,
            "without_partner": self.unpaired,
            "left_out": self.left_out,
            "passed_over": self.passed_over,
            "problems": dict(self.kinds),
            "warnings": [warning.text for warning in self.warnings()],
            "reasons": _reasons(self.problems),
            "sizes": self.size_range() | {"distinct": len(self.sizes)},
            "stored_as": dict(sorted(self.modes.items())),
            "gray_images": _trait(self.traits[GRAY]),
        }
        return summary | (self._depth() if self.labeled else {})

    def _depth(self) -> dict[str, Any]:
        count, depth = max(self.with_depth, 1), self.histogram
        known = {name: trait for name, trait in self.traits.items() if name != GRAY}
        shares = {
            "images": self.with_depth,
            "mean": round(self.valid / count, 6),
            "min": round(self.least_valid, 6) if self.with_depth else None,
            "below_threshold": self.kinds[FEW_VALID],
        }
        invalid = {
            name: {"share": round(trait.share / count, 6), **_trait(trait)} for name, trait in known.items()
        }
        depth_range = {
            "unit": self.unit,
            "pixels": depth.total,
            "zeros": depth.zeros,
            "min": _short(depth.low) if depth.total else None,
            "max": _short(depth.high) if depth.total else None,
            "percentiles": {str(p): _short(depth.percentile(p)) for p in PERCENTILES} if depth.total else {},
            "histogram": [{"from": low, "to": high, "pixels": n} for low, high, n in depth.octaves()],
        }
        return {
            "labels_stored_as": dict(sorted(self.seen.stored_as.items())),
            "labels_resized": self.seen.resized,
            "valid_share": shares,
            "sky_share": round(self.sky / count, 6),
            "without_depth": invalid,
            "depth": depth_range,
        }


def _reasons(problems: Sequence[Problem]) -> dict[str, dict[str, int]]:
    """Returns how often each reason occurs, by kind of problem."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for problem in problems:
        found[problem.kind][problem.reason] += 1
    return {kind: dict(reasons.most_common()) for kind, reasons in found.items()}


def _trait(trait: Trait) -> dict[str, Any]:
    return {"images": trait.images, "first": trait.first}


def _short(number: float) -> float:
    """Rounds to six digits, as many as a float32 holds."""
    return float(f"{number:.6g}")
