"""report.html: one file that needs no network, with scores, sources of all choices, and pictures."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from depthany.display.class_pictures import confusion_picture
from depthany.evaluation.after_alignment import WORDS
from depthany.evaluation.predictors import ScoredPredictor
from depthany.evaluation.results import ProtocolResult
from depthany.evaluation.run import ScoredSet
from depthany.evaluation.score import Row
from depthany.evaluation.tiles import Tile, tiles_of
from depthany.metrics.confusion import ABSENT_RULE
from depthany.metrics.table import METRICS, brief
from depthany.system.files import write_atomically

REPORT_FILE = "report.html"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1380px; padding: 0 1rem;
  color: #222 }
h2 { border-top: 2px solid #ddd; padding-top: 1.2rem; margin-top: 2.5rem }
h3 { margin: 1.6rem 0 .3rem }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }
table { display: block; max-width: 100%; overflow-x: auto }
th, td { padding: .25rem .4rem; border-bottom: 1px solid #e4e4e4; text-align: right; vertical-align: top }
th { background: #f5f5f5 } td:first-child, th:first-child { text-align: left }
td small { color: #777; display: block; white-space: nowrap; font-size: 11px }
.aligned td { color: #777 }
.published td { font-style: italic; color: #555 }
.settings td, .settings th { text-align: left }
.settings td:nth-child(2) { overflow-wrap: anywhere; min-width: 12rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere } .note { color: #9a4b00; margin: .2rem 0 }
.warning { background: #fdecea; border-left: 4px solid #c0392b; margin: .5rem 0; padding: .4rem .8rem }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 320px)); gap: 8px; margin: .3rem 0 1rem }
figure { margin: 0; max-width: 320px } figure img { width: 100%; display: block; image-rendering: auto }
figcaption { font-size: 12px; color: #555 } .scores { font-size: 13px; color: #333 }
"""


class Report:
    """Gathers the sections of protocols and writes them as one page.

    Args:
        pictures: how many best, how many median and how many worst images to show.
        zooms: how many places with strong true edges are enlarged below each image.
    """

    def __init__(self, pictures: int, zooms: int = 0) -> None:
        self._pictures, self._zooms, self._sections = pictures, zooms, list[str]()

    def add(self, result: ProtocolResult, predictors: Sequence[ScoredPredictor], dataset: ScoredSet) -> None:
        """Adds a protocol with its pictures, chosen by the first checkpoint that has scores."""
        section = [f"<h2>{escape(result.protocol.name)}{' (changed)' if result.changed else ''}</h2>"]
        section += [
            *_warnings(result),
            _scores(result),
            _differences(result),
            *_classes(result),
            *_notes(result),
            _settings(result),
        ]
        first = next(label for label, scored in result.scored.items() if scored.rows)
        metric = result.protocol.metrics[0]
        for title, rows in best_median_worst(result.scored[first].rows, metric, self._pictures).items():
            heading = METRICS[metric].heading
            section.append(f"<h3>{title}, by {escape(heading)} of {escape(first)}</h3>")
            section += [self._image(row.index, result, predictors, dataset) for row in rows]
        self._sections.append("\n".join(section))

    def _image(
        self, index: int, result: ProtocolResult, predictors: Sequence[ScoredPredictor], dataset: ScoredSet
    ) -> str:
        rows = {
            label: row for label, scored in result.scored.items() for row in scored.rows if row.index == index
        }
        name = next(iter(rows.values())).name
        scores = " · ".join(f"{escape(label)} {_row_scores(row)}" for label, row in rows.items())
        tiles = tiles_of(index, rows, predictors, dataset, result.protocol, self._zooms)
        figures = "".join(_figure(tile) for tile in tiles)
        return f'<div class="scores"><b>{escape(name)}</b> · {scores}</div><div class="tiles">{figures}</div>'

    def write(self, out: Path, about: Mapping[str, Any]) -> None:
        """Writes report.html."""
        command = escape(json.dumps(about, indent=2))
        missing = "".join(
            f'<p class="note">{escape(name)}: not run, {escape(why)}</p>'
            for name, why in about["not_run"].items()
        )
        whole = "" if about["complete"] else '<p class="note">Interrupted: not all protocols were run.</p>'
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
            f"<style>{_STYLE}</style></head><body><h1>Evaluation</h1>{whole}{missing}"
            f"{''.join(self._sections)}<h2>What was run</h2><details><summary>command, versions, checkpoints"
            f"</summary><pre>{command}</pre></details></body></html>\n"
        )
        write_atomically(out / REPORT_FILE, lambda path: path.write_text(page, encoding="utf-8"))


def best_median_worst(rows: Sequence[Row], metric: str, count: int) -> dict[str, list[Row]]:
    """Returns the best, median and worst rows by a metric, each row once and at most `count` of a kind."""
    rows = [row for row in rows if metric in row.scores]
    higher = METRICS[metric].better == "higher"
    best_first = sorted(rows, key=lambda row: row.scores[metric], reverse=higher)
    middle = max(0, (len(rows) - count) // 2)
    places = {
        "best": range(min(count, len(rows))),
        "median": range(middle, min(middle + count, len(rows))),
        "worst": range(len(rows) - 1, max(-1, len(rows) - 1 - count), -1),
    }
    chosen: dict[str, list[Row]] = {}
    seen = set[int]()
    for title, numbers in places.items():
        fresh = [number for number in numbers if number not in seen]
        seen.update(fresh)
        if fresh:
            chosen[title] = [best_first[number] for number in fresh]
    return chosen


def _row_scores(row: Row) -> str:
    scores = ", ".join(f"{METRICS[name].heading} {row.scores[name]:.4f}" for name in brief(row.scores))
    fitted = "" if row.fitted is None else f", scale {row.fitted.scale:.4g}, shift {row.fitted.shift:.4g}"
    return escape(scores + fitted)


def _figure(tile: Tile) -> str:
    caption = escape(tile.caption)
    place = f' style="grid-column: {tile.column}"' if tile.column else ""
    image = f'<img src="{tile.data_uri()}" alt="{caption}">'
    return f"<figure{place}>{image}<figcaption>{caption}</figcaption></figure>"


def _cells(cells: Sequence[str], kind: str = "td", style: str = "") -> str:
    return f"<tr{style}>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"


def _scores(result: ProtocolResult) -> str:
    """Returns a table of scores with their 95 % intervals, and published figures below them."""
    found = {
        label: (result.mean(label), result.intervals(label))
        for label, scored in result.scored.items()
        if scored.rows
    }
    names = list(dict.fromkeys(name for values, _ in found.values() for name in values))
    lines = [_cells(["checkpoint", "images", *(escape(_heading(name)) for name in names)], "th")]
    for label, (values, ends) in found.items():
        images = f"{len(result.scored[label].rows)} of {result.images}"
        cells = [_with_interval(values.get(name), ends.get(name)) for name in names]
        lines.append(_cells([escape(label), images, *cells]))
        if report := result.scale_report(label):
            for method, means in report.means.items():
                cells = [_with_interval(means.get(name), None) for name in names]
                lines.append(_cells([f"&emsp;{WORDS[method]}", "", *cells], style=' class="aligned"'))
    for who, figures in result.protocol.published.items():
        cells = [f"{figures[name]:.4g}" if name in figures else "" for name in names]
        lines.append(_cells([f"{escape(who)} (published)", "", *cells], style=' class="published"'))
    legend = "Below a score: its 95 % interval, bootstrap over images."
    return f"<table>{''.join(lines)}</table><small>{legend}</small>"


def _heading(name: str) -> str:
    """Returns the heading of a metric, or of a metric on one kind of scene, such as accuracy/indoor."""
    metric, _, scene = name.partition("/")
    return f"{METRICS[metric].heading} {scene}".strip()


def _with_interval(value: float | None, ends: tuple[float, float] | None, form: str = ".4f") -> str:
    if value is None:
        return ""
    return f"{value:{form}}" + (f"<small>{ends[0]:{form}} to {ends[1]:{form}}</small>" if ends else "")


def _differences(result: ProtocolResult) -> str:
    found = result.differences()
    if not found:
        return ""
    names = list(next(iter(found.values())).values)
    headings = [escape(_heading(name)) for name in names]
    lines = [_cells(["difference, paired by image", "images", *headings], "th")]
    for label, difference in found.items():
        values, ends = difference.values, difference.intervals
        cells = [_with_interval(values.get(name), ends.get(name), "+.4f") for name in names]
        lines.append(_cells([escape(label), str(difference.images), *cells]))
    return f"<table>{''.join(lines)}</table>"


def _classes(result: ProtocolResult) -> list[str]:
    """Returns the scores of each class, and the confusion matrix of each checkpoint."""
    if not result.class_names:
        return []
    found = {label: result.class_table(label) for label, scored in result.scored.items() if scored.rows}
    lines = [_cells(["class", "pixels", *(f"IoU, {escape(label)}" for label in found)], "th")]
    for number, name in enumerate(result.class_names):
        scores = [table[number] for table in found.values()]
        cells = ["absent" if each.iou is None else f"{each.iou:.4f}" for each in scores]
        lines.append(_cells([escape(name), f"{scores[0].share:.1%}", *cells]))
    parts = [f"<table>{''.join(lines)}</table><small>mIoU: {escape(ABSENT_RULE)}.</small>"]
    for label in found:
        picture = Tile(confusion_picture(result.confusion(label), result.class_names), "")
        caption = f"{escape(label)}: true classes down, predicted across; percent of the true class's pixels"
        image = f'<img style="max-width: 100%" src="{picture.data_uri(width=1200)}" alt="confusion matrix">'
        parts.append(f"<h3>confusion matrix</h3><div>{image}</div><figcaption>{caption}</figcaption>")
    return parts


def _warnings(result: ProtocolResult) -> list[str]:
    return [
        f'<p class="warning">{escape(label)}: {escape(line)}</p>'
        for label in result.scored
        for line in result.fit_problems(label).warnings()
    ]


def _notes(result: ProtocolResult) -> list[str]:
    notes = list[tuple[str, str]]()
    for label in result.scored:
        report = result.scale_report(label)
        notes += [(label, note) for note in ([report.words()] if report else []) + result.notes(label)]
    return [f'<p class="note">{escape(label)}: {escape(note)}</p>' for label, note in notes]


def _settings(result: ProtocolResult) -> str:
    """Returns every setting of the protocol with its source."""
    protocol, lines = result.protocol, [_cells(["setting", "value", "source"], "th")]
    for key, value in vars(protocol).items():
        if key in ("name", "sources", "published"):
            continue
        source = "set by the user" if key in result.changed else protocol.source_of(key)
        words = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        lines.append(_cells([key, escape("not set" if value is None else words), escape(source)]))
    known = {*vars(protocol), "dataset"}
    others = [key for key in protocol.sources if not known & set(key.split(", "))]
    lines += [_cells([escape(key), "", escape(protocol.sources[key])]) for key in others]
    dataset = escape(json.dumps(result.dataset))
    lines.append(_cells(["dataset", dataset, escape(protocol.source_of("dataset"))]))
    return (
        f'<details open><summary>protocol</summary><table class="settings">{"".join(lines)}</table></details>'
    )
