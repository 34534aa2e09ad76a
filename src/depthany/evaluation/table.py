"""The results on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from depthany.evaluation.results import Difference, ProtocolResult

LEAST_WIDTH = 120  # of what goes to a file or a pipe, where no terminal says
HEADS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse": "RMSE",
    "rmse_log": "RMSElog",
    "log10": "log10",
    "silog": "SILog",
    "delta1": "delta1",
    "delta2": "delta2",
    "delta3": "delta3",
    "boundary_f1": "bound. F1",
    "accuracy": "accuracy",
}
SHOWN = ("abs_rel", "delta1", "rmse", "log10", "silog", "boundary_f1")


def print_results(results: Sequence[ProtocolResult]) -> None:
    """Tables of scores, of differences between checkpoints, and what is unusual about any of them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, LEAST_WIDTH))
    for task, names in (("depth", SHOWN), ("ordinal", ("accuracy",))):
        chosen = [result for result in results if result.protocol.task == task]
        if chosen:
            console.print(_scores(chosen, names))
            if compared := _differences(chosen, names[:2]):
                console.print(compared)
    for result in results:
        console.print(told_protocol(result), markup=False, highlight=False)
        for label in result.scored:
            for note in result.notes(label):
                console.print(f"{result.protocol.name}, {label}: {note}", markup=False, highlight=False)


def told_protocol(result: ProtocolResult) -> str:
    """What was done, in a line; where each choice comes from is in results.json and the report."""
    protocol = result.protocol
    changed = f"; changed: {', '.join(result.changed)}" if result.changed else ""
    if protocol.task == "ordinal":
        return f"{protocol.name}: pairs in the right order, of all pairs{changed}"
    near, far = protocol.prediction_range_m
    fit = "in metres, not fitted"
    if protocol.align != "none":
        fit = f"{protocol.align} in {protocol.space} per {protocol.align_per}"
    cut = f"crop {protocol.crop}" + (
        f", input {protocol.input_crop}" if protocol.input_crop != "none" else ""
    )
    return (
        f"{protocol.name}: {fit}, {cut}, {near:g} to {far:g} m, mean over {protocol.averaging}s{changed}; "
        f"{len(protocol.sources)} sources in results.json"
    )


def _scores(results: Sequence[ProtocolResult], names: Sequence[str]) -> Table:
    """One line for each protocol and checkpoint; published figures beneath, marked."""
    found = {
        (result.protocol.name, label): result.mean(label)
        for result in results
        for label, scored in result.scored.items()
        if scored.rows
    }
    names = [name for name in names if any(name in each for each in found.values())] or list(names[:2])
    table = Table(title=f"scores, with the 95 % interval of {HEADS[names[0]]}")
    for head in ("protocol", "checkpoint", "images", HEADS[names[0]], "95 %"):
        table.add_column(head, justify="left" if head in ("protocol", "checkpoint") else "right")
    for name in names[1:]:
        table.add_column(HEADS[name], justify="right")
    for result in results:
        protocol = result.protocol
        for label, scored in result.scored.items():
            told = protocol.name + (" (changed)" if result.changed else "")
            images = f"{len(scored.rows)}" + (f" of {result.images}" if result.is_partial(label) else "")
            values = found.get((protocol.name, label))
            if values is None:
                table.add_row(told, label, images, "none")
                continue
            low, high = result.intervals(label)[names[0]]
            rest = [f"{values[name]:.4f}" if name in values else "" for name in names[1:]]
            table.add_row(told, label, images, f"{values[names[0]]:.4f}", f"{low:.4f} to {high:.4f}", *rest)
            for key, value in values.items():
                if key.startswith("accuracy/"):
                    table.add_row("", f"  {key.removeprefix('accuracy/')}", "", f"{value:.4f}")
        for who, figures in protocol.published.items():
            cells = [f"{figures[name]:.4f}" if name in figures else "" for name in names]
            table.add_row("", f"{who} (published)", "", cells[0], "", *cells[1:], style="italic")
        table.add_section()
    return table


def _differences(results: Sequence[ProtocolResult], names: Sequence[str]) -> Table | None:
    """Later checkpoints minus the first; None where there is only one."""
    table = Table(title="differences, paired image by image, with 95 % intervals")
    for head in ("protocol", "checkpoints", "images", *(HEADS[name] for name in names)):
        table.add_column(head, justify="left" if head in ("protocol", "checkpoints") else "right")
    for result in results:
        for label, each in result.differences().items():
            table.add_row(
                result.protocol.name,
                label,
                f"{each.images}",
                *(told_difference(each, name) for name in names),
            )
    return table if table.row_count else None


def told_difference(each: Difference, name: str) -> str:
    """Such as -0.0123 [-0.0150 to -0.0101]."""
    low, high = each.intervals[name]
    return f"{each.values[name]:+.4f} \\[{low:+.4f} to {high:+.4f}]"
