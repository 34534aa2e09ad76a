"""The results of an evaluation on the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from depthany.evaluation.after_alignment import WORDS
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.results import Difference, ProtocolResult
from depthany.metrics.confusion import ABSENT_RULE
from depthany.metrics.table import DEFAULT_METRICS, METRICS, brief
from depthany.system.plurals import counted

MIN_WIDTH = 120  # of the output to a file or a pipe, which has no width of its own
DIFFERENCES = 2  # metrics in the table of differences; the report has all


def print_results(results: Sequence[ProtocolResult]) -> None:
    """Prints the scores, the differences between checkpoints, and what is unusual about any of them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, MIN_WIDTH))
    for task in DEFAULT_METRICS:
        if chosen := [result for result in results if result.protocol.task == task]:
            names = list(dict.fromkeys(name for result in chosen for name in brief(result.protocol.metrics)))
            console.print(_scores(chosen, names))
            if differences := _differences(chosen, names[:DIFFERENCES]):
                console.print(differences)
    for result in results:
        if result.class_names:
            console.print(_classes(result))
    for result in results:
        console.print(describe(result), markup=False, highlight=False)
        for label in result.scored:
            warnings = [f"warning: {line}" for line in result.fit_problems(label).warnings()]
            report = result.scale_report(label)
            for line in [*warnings, *([report.words()] if report else []), *result.notes(label)]:
                console.print(f"{result.protocol.name}, {label}: {line}", markup=False, highlight=False)


def describe(result: ProtocolResult) -> str:
    """Returns one line on how the scores were made; their sources are in results.json and the report."""
    protocol = result.protocol
    changed = f"; changed: {', '.join(result.changed)}" if result.changed else ""
    if protocol.task == "ordinal":
        return f"{protocol.name}: pairs in the right order, of all pairs{changed}"
    if protocol.task == "classes":
        windows = "" if protocol.window is None else f", windows of {protocol.window} pixels"
        found = len(result.class_names)
        return f"{protocol.name}: {found} classes{windows}; mIoU: {ABSENT_RULE}{changed}"
    near, far = protocol.prediction_range_m
    fit = "in metres, not fitted"
    if protocol.align != "none":
        fit = f"{protocol.align} in {protocol.space} per {protocol.align_per}"
    cut = f"crop {protocol.crop}" + (
        f", input {protocol.input_crop}" if protocol.input_crop != "none" else ""
    )
    count = len(protocol.sources)
    sources = counted(count, "source")
    return (
        f"{protocol.name}: {fit}, {cut}{_input(protocol)}, {near:g} to {far:g} m, "
        f"mean over {protocol.averaging}s{changed}; {sources} in results.json"
    )


def _classes(result: ProtocolResult) -> Table:
    """Returns a table with a line per class: its share of the pixels, and its IoU by checkpoint."""
    tables = {label: result.class_table(label) for label, scored in result.scored.items() if scored.rows}
    table = Table(title=f"{result.protocol.name}: IoU of each class")
    table.add_column("class", overflow="fold")
    for heading in ("pixels", *tables):
        table.add_column(escape(heading), justify="right", overflow="fold")
    for number, name in enumerate(result.class_names):
        scores = [found[number] for found in tables.values()]
        cells = ["absent" if each.iou is None else f"{each.iou:.4f}" for each in scores]
        table.add_row(escape(name), f"{scores[0].share:.1%}", *cells)
    return table


def _input(protocol: Protocol) -> str:
    """Returns the parts of the line on the model's input that most protocols leave as they are."""
    parts = ""
    if protocol.eval_size is not None:
        height, width = protocol.eval_size
        aspect = "aspect kept" if protocol.keep_aspect else "aspect not kept"
        parts += f", input resized to {height}x{width} ({aspect})"
    return parts + (", mean with the mirrored image" if protocol.flip else "")


def _scores(results: Sequence[ProtocolResult], names: list[str]) -> Table:
    """Returns a table with a line per protocol and checkpoint, and published figures below them."""
    means = {
        (result.protocol.name, label): result.mean(label)
        for result in results
        for label, scored in result.scored.items()
        if scored.rows
    }
    names = [name for name in names if any(name in mean for mean in means.values())] or names
    headings = [METRICS[name].heading for name in names]
    table = Table(title=f"scores, with the 95 % interval of {headings[0]}")
    for heading in ("protocol", "checkpoint", "images", headings[0], "95 %", *headings[1:]):
        table.add_column(
            heading, justify="left" if heading in ("protocol", "checkpoint") else "right", overflow="fold"
        )
    for result in results:
        protocol = result.protocol
        for label, scored in result.scored.items():
            name = protocol.name + (" (changed)" if result.changed else "")
            images = f"{len(scored.rows)}" + (f" of {result.images}" if result.is_partial(label) else "")
            mean = means.get((protocol.name, label))
            if mean is None:
                table.add_row(name, escape(label), images, "none")
                continue
            low, high = result.intervals(label).get(names[0], (None, None))
            interval = "" if low is None else f"{low:.4f} to {high:.4f}"
            first, *rest = _cells(mean, names)
            table.add_row(name, escape(label), images, first, interval, *rest)
            for scene, scores in _by_scene(mean).items():
                first, *rest = _cells(scores, names)
                table.add_row("", f"  {escape(scene)}", "", first, "", *rest)
            if report := result.scale_report(label):
                for method, aligned in report.means.items():
                    first, *rest = _cells(aligned, names)
                    table.add_row("", f"  {WORDS[method]}", "", first, "", *rest, style="dim")
        for who, figures in protocol.published.items():
            first, *rest = _cells(figures, names)
            table.add_row("", f"{escape(who)} (published)", "", first, "", *rest, style="italic")
        table.add_section()
    return table


def _cells(scores: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{scores[name]:.4f}" if name in scores else "" for name in names]


def _by_scene(mean: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Returns the scores of each kind of scene by metric, from keys such as accuracy/indoor."""
    scenes: dict[str, dict[str, float]] = {}
    for key, value in mean.items():
        metric, slash, scene = key.partition("/")
        if slash:
            scenes.setdefault(scene, {})[metric] = value
    return scenes


def _differences(results: Sequence[ProtocolResult], names: Sequence[str]) -> Table | None:
    """Returns a table of later checkpoints minus the first; None if there is only one."""
    table = Table(title="differences, paired image by image, with 95 % intervals")
    for heading in ("protocol", "checkpoints", "images", *(METRICS[name].heading for name in names)):
        table.add_column(
            heading, justify="left" if heading in ("protocol", "checkpoints") else "right", overflow="fold"
        )
    for result in results:
        for label, found in result.differences().items():
            cells = [_difference(found, name) for name in names]
            table.add_row(escape(result.protocol.name), escape(label), f"{found.images}", *cells)
    return table if table.row_count else None


def _difference(found: Difference, name: str) -> str:
    """Returns a cell such as -0.0123 [-0.0150 to -0.0101]."""
    if name not in found.values:
        return ""
    low, high = found.intervals[name]
    return f"{found.values[name]:+.4f} \\[{low:+.4f} to {high:+.4f}]"
