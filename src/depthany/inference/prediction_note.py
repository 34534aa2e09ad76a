"""What made the predictions of a folder: noted beside them, and compared before more of them are written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from depthany.data.folders import walk
from depthany.inference.canonical import CanonicalPredictor
from depthany.inference.outputs import CLOUDS, FORMATS, OutputSettings
from depthany.inference.predictor import Predictor
from depthany.inference.video_frames import FRAME_ENDINGS, INDEX_NAME, UNFINISHED_NAME
from depthany.inference.video_out import MOVIE_ENDINGS
from depthany.system.files import write_shared

NOTE = "predict.json"
_SHOWN, _LONGEST = 4, 60  # differences that a message names, and letters of one


@dataclass(frozen=True)
class PredictionNote:
    """What the values of a folder of predictions depend on.

    Not noted are the colours and legends of pictures: no value depends on them, and a picture tells its own.

    settings: what all files depend on: weights, model, its input and its views.
    formats: for each format, what its files depend on besides.
    """

    settings: Mapping[str, Any]
    formats: Mapping[str, Mapping[str, Any]]

    def with_formats_of(self, other: "PredictionNote") -> "PredictionNote":
        """Returns the note with the formats of another one too."""
        return PredictionNote(self.settings, {**other.formats, **self.formats})

    def differing_formats(self, noted: "PredictionNote") -> tuple[str, ...]:
        """Returns the formats whose files in a folder do not fit those that this note would add."""
        if noted.settings != self.settings:
            return tuple({**noted.formats, **self.formats})
        return tuple(
            name for name in self.formats if noted.formats.get(name, self.formats[name]) != self.formats[name]
        )


def note_of(
    predictor: Predictor, weights_sha256: str, precision: str, settings: OutputSettings, save: Sequence[str]
) -> PredictionNote:
    """Returns what the predictions of a run depend on.

    Args:
        weights_sha256: hash of the weights as they were stored.
        precision: number format of the model's matrix products.
        save: formats.
    """
    near_m, far_m = settings.range_m or (None, None)
    fov_deg = settings.fov_deg if settings.focal_px is None else None
    camera = {"near_m": near_m, "far_m": far_m, "focal_px": settings.focal_px, "fov_deg": fov_deg}
    own = dict[str, Mapping[str, Any]](dict.fromkeys(CLOUDS, camera))
    if settings.quantity.is_metric:
        own["png16"] = {"png16_per_metre": settings.per_metre}
    focal_px = {"focal_px": predictor.focal} if isinstance(predictor, CanonicalPredictor) else {}
    made_by = {
        "weights_sha256": weights_sha256,
        "model": {part: predictor.model.config[part] for part in ("encoder", "decoder", "head")},
        "input_size": predictor.input_size,
        "scales": predictor.scales,
        "flip": predictor.flip,
        "margin": predictor.margin,
        "precision": precision,
        **focal_px,  # to which the metres are scaled
    }
    formats = {name: own.get(name, {}) for name in save}
    return PredictionNote(*json.loads(json.dumps([made_by, formats])))  # as it is read again


def begin_note(
    out: Path,
    note: PredictionNote,
    targets: Mapping[str, Sequence[Path]],
    overwrite: bool,
    about: Mapping[str, Any],
) -> int:
    """Notes what makes the predictions to come, or checks that it made those that are in the folder.

    With `overwrite`, targets that were made otherwise are deleted before the note says anything else: if the
    run ends early, none of them is taken for one of these.

    Args:
        out: folder of the predictions.
        targets: for each format, all files that this run writes or keeps.
        about: what else the note tells; its "checkpoint" names the model in messages.

    Returns:
        The number of targets that exist and are kept although no note says what made them.

    Raises:
        ValueError: the folder holds predictions that were made otherwise, and would keep some of them; or its
            note cannot be read.
    """
    if not (out / NOTE).exists():
        if overwrite:
            _delete(targets, list(targets))
        existing = sum(path.exists() for paths in targets.values() for path in paths)
        if _write(out, note, {**about, "results_before_note": existing}, replace=False):
            return existing
    noted, told = _read(out / NOTE)
    differing = note.differing_formats(noted)
    if differing:
        words = ", ".join(
            _differences(noted, note, str(told.get("checkpoint")), str(about.get("checkpoint")))
        )
        _require_none_kept(out, words, differing, targets, overwrite)
        _delete(targets, differing)
    is_same = noted.settings == note.settings
    merged = note.with_formats_of(noted) if is_same else note
    if merged != noted:
        _write(out, merged, told if is_same else about, replace=True)
    return 0


def _require_none_kept(
    out: Path, words: str, formats: Sequence[str], targets: Mapping[str, Sequence[Path]], overwrite: bool
) -> None:
    """Raises ValueError if files of the formats, which were made otherwise, would stay in the folder, or if
    another run may be about to write some.
    """
    again = {path for name in formats for path in targets.get(name, ())} if overwrite else set[Path]()
    kept = next((path for path in results_in(out, formats) if path not in again), None)
    if kept is None and overwrite:
        return
    if kept is None:
        raise ValueError(
            f"{out / NOTE} is of a run with other settings ({words}) that has written nothing: pass another "
            "out=..., or, if it is not running any more, overwrite=true"
        )
    if overwrite:
        raise ValueError(
            f"{out} also holds {kept}, made with other settings ({words}), which overwrite=true would not "
            "make again: name all images and formats, or pass another out=..."
        )
    raise ValueError(
        f"{out} holds predictions made with other settings ({words}): pass another out=..., or "
        "overwrite=true to predict all of them again"
    )


def drop_unused_note(out: Path, note: PredictionNote) -> None:
    """Deletes the note of a run that ended before its first result, so that the next one may differ."""
    if next(results_in(out, list(note.formats)), None) is None:
        (out / NOTE).unlink(missing_ok=True)


def results_in(out: Path, formats: Sequence[str]) -> Iterator[Path]:
    """Yields the files below a folder whose names are those of results; of frames the file that completes
    their folder.
    """
    endings = tuple(
        ending for name in formats for ending in (FORMATS[name][0], MOVIE_ENDINGS.get(name)) if ending
    )
    of_frames = tuple(FRAME_ENDINGS[name].partition("/")[0] for name in formats if name in FRAME_ENDINGS)
    for folder, _, names in walk(out):
        if of_frames and folder.endswith(of_frames) and not {INDEX_NAME, UNFINISHED_NAME}.isdisjoint(names):
            yield Path(folder, INDEX_NAME)
        else:
            yield from (Path(folder, name) for name in names if name.endswith(endings))


def _delete(targets: Mapping[str, Sequence[Path]], formats: Sequence[str]) -> None:
    """Deletes the targets of formats; a folder of frames without its description is begun anew."""
    for path in (path for name in formats for path in targets.get(name, ())):
        if path.is_file():
            path.unlink()


def _differences(noted: PredictionNote, note: PredictionNote, noted_name: str, name: str) -> list[str]:
    """Returns texts such as "flip false -> true", the first ones of what differs; weights come first."""
    texts = dict[str, None]()
    if (old := str(noted.settings.get("weights_sha256"))) != (new := str(note.settings["weights_sha256"])):
        texts[f"weights {old[:10]} of {noted_name} -> {new[:10]} of {name}"] = None
    both = [(noted.settings, note.settings)]
    if noted.settings == note.settings:
        both = [(noted.formats[each], note.formats[each]) for each in note.formats if each in noted.formats]
    for before, now in both:
        before, now = dict(_flat(before)), dict(_flat(now))
        for key in sorted((before.keys() | now.keys()) - {"weights_sha256"}):
            if before.get(key) != now.get(key):
                text = f"{key} {json.dumps(before.get(key))} -> {json.dumps(now.get(key))}"
                texts[text if len(text) <= _LONGEST else f"{key} differs"] = None
    more = len(texts) - _SHOWN
    return [*list(texts)[:_SHOWN], *([f"{more} more"] if more > 0 else [])]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields keys such as "head.max_depth_m" and their values."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, "" if key == "model" else f"{above}{key}.")
        else:
            yield above + key, value


def _read(path: Path) -> tuple[PredictionNote, Mapping[str, Any]]:
    """Returns a note, and all that its file tells; raises ValueError if it is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        note = PredictionNote(told["settings"], told["formats"])
        if all(isinstance(each, dict) for each in (note.settings, note.formats, *note.formats.values())):
            return note, told
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"{path} is damaged, or not the note of an earlier run: move it elsewhere, or pass another out=..."
    )


def _write(out: Path, note: PredictionNote, about: Mapping[str, Any], replace: bool) -> bool:
    """Writes a note; returns whether it was written. Without `replace`, a note that exists stays."""
    text = json.dumps({**asdict(note), **about, **asdict(note)}, indent=2) + "\n"
    return write_shared(out / NOTE, text, replace)
