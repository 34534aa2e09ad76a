"""report.html: one file, without network, with the scores, where each choice comes from, and pictures."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from depthany.evaluation.predictors import ScoredPredictor
from depthany.evaluation.results import ProtocolResult
from depthany.evaluation.run import ScoredSet
from depthany.evaluation.score import Row
from depthany.evaluation.table import HEADS
from depthany.evaluation.tiles import Tile, tiles_of
from depthany.system.files import write_atomically

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1380px; padding: 0 1rem;
  color: #222 }
h2 { border-top: 2px solid #ddd; padding-top: 1.2rem; margin-top: 2.5rem }
h3 { margin: 1.6rem 0 .3rem }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: right; vertical-align: top }
th { background: #f5f5f5 } td:first-child, th:first-child { text-align: left }
td small { color: #777; display: block; white-space: nowrap; font-size: 11px }
.published td { font-style: italic; color: #555 }
.settings td, .settings th { text-align: left } .note { color: #9a4b00; margin: .2rem 0 }
.tiles { display: grid; grid-template-columns: repeat(4, 320px); gap: 8px; margin: .3rem 0 1rem }
figure { margin: 0; width: 320px } figure img { width: 100%; display: block; image-rendering: auto }
figcaption { font-size: 12px; color: #555 } .scores { font-size: 13px; color: #333 }
"""


class Report:
    """Gathers the pages of protocols, then writes them.

    Args:
        pictures: best, median and worst images, so many of each.
    """

    def __init__(self, pictures: int) -> None:
        self._pictures, self._parts = pictures, list[str]()

    def add(self, result: ProtocolResult, predictors: Sequence[ScoredPredictor], dataset: ScoredSet) -> None:
        """A protocol with its pictures, chosen by the first checkpoint that has scores."""
        part = [f"<h2>{escape(result.protocol.name)}{' (changed)' if result.changed else ''}</h2>"]
        part += [_scores(result), _differences(result), *_notes(result), _settings(result)]
        first = next(label for label, scored in result.scored.items() if scored.rows)
        for title, rows in picked(result.scored[first].rows, self._pictures).items():
            part.append(f"<h3>{title}, by {HEADS[_key(rows[0])]} of {escape(first)}</h3>")
            part += [self._image(row.index, result, predictors, dataset) for row in rows]
        self._parts.append("\n".join(part))

    def _image(
        self, index: int, result: ProtocolResult, predictors: Sequence[ScoredPredictor], dataset: ScoredSet
    ) -> str:
        rows = {
            label: row for label, scored in result.scored.items() for row in scored.rows if row.index == index
        }
        name = next(iter(rows.values())).name
        told = " · ".join(f"{escape(label)} {_row_scores(row)}" for label, row in rows.items())
        tiles = tiles_of(index, rows, predictors, dataset, result.protocol)
        figures = "".join(_figure(tile) for tile in tiles)
        return f'<div class="scores"><b>{escape(name)}</b> · {told}</div><div class="tiles">{figures}</div>'

    def write(self, out: Path, about: Mapping[str, Any]) -> None:
        """Write report.html."""
        told = escape(json.dumps(about, indent=2))
        missing = "".join(
            f'<p class="note">{escape(name)}: not run, {escape(why)}</p>'
            for name, why in about["not_run"].items()
        )
        whole = "" if about["complete"] else '<p class="note">Interrupted: not all protocols were run.</p>'
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation of depth</title>'
            f"<style>{_STYLE}</style></head><body><h1>Evaluation of depth</h1>{whole}{missing}"
            f"{''.join(self._parts)}<h2>What was run</h2><details><summary>command, versions, checkpoints"
            f"</summary><pre>{told}</pre></details></body></html>\n"
        )
        write_atomically(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def picked(rows: Sequence[Row], count: int) -> dict[str, list[Row]]:
    """Best, median and worst rows, each row once and at most `count` of a kind."""
    key = _key(rows[0])
    best_first = sorted(rows, key=lambda row: row.scores[key], reverse=key == "accuracy")
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


def _key(row: Row) -> str:
    return "accuracy" if "accuracy" in row.scores else "abs_rel"


def _row_scores(row: Row) -> str:
    names = [
        name for name in ("abs_rel", "delta1", "accuracy", "boundary_f1") if name in row.scores | row.extra
    ]
    told = ", ".join(f"{HEADS[name]} {(row.scores | row.extra)[name]:.4f}" for name in names)
    if row.fitted is None:
        return told
    return f"{told}, scale {row.fitted.scale:.4g}, shift {row.fitted.shift:.4g}"


def _figure(tile: Tile) -> str:
    words = escape(tile.caption)
    place = f' style="grid-column: {tile.column}"' if tile.column else ""
    return (
        f'<figure{place}><img src="{tile.data_uri()}" alt="{words}"><figcaption>{words}</figcaption></figure>'
    )


def _cells(cells: Sequence[str], kind: str = "td", style: str = "") -> str:
    return f"<tr{style}>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"


def _scores(result: ProtocolResult) -> str:
    """Scores of each checkpoint with 95 % intervals beneath them, then published figures."""
    found = {
        label: (result.mean(label), result.intervals(label))
        for label, scored in result.scored.items()
        if scored.rows
    }
    names = list(dict.fromkeys(name for values, _ in found.values() for name in values))
    heads = [HEADS.get(name, name.removeprefix("accuracy/")) for name in names]
    lines = [_cells(["checkpoint", "images", *map(escape, heads)], "th")]
    for label, (values, ends) in found.items():
        images = f"{len(result.scored[label].rows)} of {result.images}"
        cells = [_with_interval(values.get(name), ends.get(name)) for name in names]
        lines.append(_cells([escape(label), images, *cells]))
    for who, figures in result.protocol.published.items():
        cells = [f"{figures[name]:.4g}" if name in figures else "" for name in names]
        lines.append(_cells([f"{escape(who)} (published)", "", *cells], style=' class="published"'))
    below = "Beneath each score: its 95 % interval, bootstrap over images."
    return f"<table>{''.join(lines)}</table><small>{below}</small>"


def _with_interval(value: float | None, ends: tuple[float, float] | None, form: str = ".4f") -> str:
    if value is None:
        return ""
    return f"{value:{form}}" + (f"<small>{ends[0]:{form}} to {ends[1]:{form}}</small>" if ends else "")


def _differences(result: ProtocolResult) -> str:
    found = result.differences()
    if not found:
        return ""
    names = list(next(iter(found.values())).values)
    lines = [_cells(["difference, paired by image", "images", *(HEADS[name] for name in names)], "th")]
    for label, each in found.items():
        cells = [_with_interval(each.values[name], each.intervals[name], "+.4f") for name in names]
        lines.append(_cells([escape(label), str(each.images), *cells]))
    return f"<table>{''.join(lines)}</table>"


def _notes(result: ProtocolResult) -> list[str]:
    return [
        f'<p class="note">{escape(label)}: {escape(note)}</p>'
        for label in result.scored
        for note in result.notes(label)
    ]


def _settings(result: ProtocolResult) -> str:
    """Every setting of the protocol with where it comes from."""
    protocol, lines = result.protocol, [_cells(["setting", "value", "source"], "th")]
    for key, value in vars(protocol).items():
        if key in ("name", "sources", "published"):
            continue
        source = "set by the user" if key in result.changed else protocol.source_of(key)
        told = "not set" if value is None else str(value)
        lines.append(_cells([key, escape(told), escape(source)]))
    known = {*vars(protocol), "dataset"}
    others = [key for key in protocol.sources if not known & set(key.split(", "))]
    lines += [_cells([escape(key), "", escape(protocol.sources[key])]) for key in others]
    dataset = escape(json.dumps(result.dataset))
    lines.append(_cells(["dataset", dataset, escape(protocol.source_of("dataset"))]))
    return (
        f'<details open><summary>protocol</summary><table class="settings">{"".join(lines)}</table></details>'
    )
