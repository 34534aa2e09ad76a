"""predict.json: what made the predictions of a folder, and which runs may add to them."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media import pixels, write_video
from PIL import Image

from depthany.inference import prediction_note
from depthany.inference.prediction_note import NOTE, PredictionNote, begin_note
from depthany.models.files.weights import weights_sha256
from depthany.models.model import DenseModel, depth_anything, save_model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(pixels(28, 42, seed=ord(name))).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def other(micro: str, tmp_path: Path) -> Path:
    """Another checkpoint of the same architecture."""
    return saved(tmp_path / "other", 1)


def saved(folder: Path, seed: int, max_depth_m: float | None = None) -> Path:
    torch.manual_seed(seed)
    save_model(depth_anything("micro", max_depth_m=max_depth_m, input_size=28).eval(), folder)
    return folder


def told(out: Path) -> dict:
    return json.loads((out / NOTE).read_text())


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_note_tells_what_values_depend_on(predict, photos: Path, model: DenseModel, tmp_path: Path) -> None:
    assert predict(f"images={photos}", "save=npy,ply", "near_m=1", "far_m=9", "flip=true").code == 0
    note = told(tmp_path / "out")
    assert note["settings"] == {
        "weights_sha256": weights_sha256(model),
        "model": {part: model.config[part] for part in ("encoder", "decoder", "head")},
        "input_size": 28,
        "scales": [1.0],
        "flip": True,
        "margin": 0,
        "precision": "float32",
    }
    cloud = {"near_m": 1.0, "far_m": 9.0, "focal_px": None, "fov_deg": 60.0}
    assert note["formats"] == {"npy": {}, "ply": cloud}
    assert (note["checkpoint"], note["images"]) == (str(tmp_path / "model"), str(photos))


def test_another_model_is_refused(
    predict, photos: Path, checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    assert predict(f"images={photos}", "save=npy").code == 0
    before, first = contents(tmp_path / "out"), told(tmp_path / "out")["settings"]["weights_sha256"]
    for save in ("npy", "npy,png16", "color"):
        ended = predict(f"images={photos}", f"save={save}", f"checkpoint={other}")
        second = ended.err.partition("-> ")[2][:10]
        assert (ended.code, ended.err) == (
            2,
            f"error: {tmp_path / 'out'} holds predictions made with other settings (weights {first[:10]} of "
            f"{checkpoint} -> {second} of {other}): pass another out=..., or overwrite=true to predict all "
            "of them again\n",
        )
        assert contents(tmp_path / "out") == before
    ended = predict(f"images={photos}", "save=npy", f"checkpoint={other}", "overwrite=true")
    assert (ended.code, ended.err) == (0, "")
    after = contents(tmp_path / "out")
    assert all(after[name] != before[name] for name in ("a.npy", "b.npy", NOTE))
    assert told(tmp_path / "out")["settings"]["weights_sha256"].startswith(second)


def test_checkpoint_retrained_in_place_is_noticed(predict, photos: Path, checkpoint: Path) -> None:
    assert predict(f"images={photos}", "save=npy").code == 0
    saved(checkpoint, 5)
    ended = predict(f"images={photos}", "save=npy")
    assert (ended.code, f" of {checkpoint} -> " in ended.err) == (2, True)


OTHERWISE = {
    "input_size=42": "input_size 28 -> 42",
    "flip=true": "flip false -> true",
    "scales=[1.0,1.5]": "scales [1.0] -> [1.0, 1.5]",
    "margin=1": "margin 0 -> 1",
    "precision=bf16": 'precision "float32" -> "bfloat16"',
    "far_m=20": "far_m 9.0 -> 20.0",
    "focal_px=30": "focal_px null -> 30.0, fov_deg 60.0 -> null",
}


@pytest.mark.parametrize("word, difference", OTHERWISE.items(), ids=OTHERWISE)
def test_other_settings_are_named(predict, photos: Path, word: str, difference: str) -> None:
    words = {"near_m": "near_m=1", "far_m": "far_m=9"}
    assert predict(f"images={photos}", "save=npy,ply", *words.values()).code == 0
    words |= {word.partition("=")[0]: word}
    ended = predict(f"images={photos}", "save=npy,ply", *words.values())
    assert (ended.code, ended.err.count("\n"), f"({difference})" in ended.err) == (2, 1, True), ended.err


def test_only_files_of_a_format_depend_on_it(predict, metric_checkpoint: Path, photos: Path) -> None:
    words = [f"images={photos}", f"checkpoint={metric_checkpoint}"]
    assert predict(*words, "save=npy", "colormap=magma").code == 0
    assert predict(*words, "save=color,png16", "png16_per_metre=256").code == 0
    assert predict(*words, "save=npy,color", "png16_per_metre=500", "legend=false", "fov_deg=50").code == 0
    ended = predict(*words, "save=npy,png16")
    assert (ended.code, "(png16_per_metre 256.0 -> 1000.0)" in ended.err) == (2, True)
    assert predict(*words, "save=png16", "overwrite=true").code == 0, "npy and color do not change with it"
    assert predict(*words, "save=npy,png16").code == 0


def test_formats_and_photos_are_added(predict, photos: Path, tmp_path: Path) -> None:
    assert predict(f"images={photos / 'a.png'}", "save=npy").code == 0
    assert "2 predicted" in predict(f"images={photos}", "save=npy,png16").out
    assert "2 there already" in predict(f"images={photos}", "save=npy").out
    note = told(tmp_path / "out")
    assert (list(note["formats"]), note["images"]) == (["npy", "png16"], str(photos / "a.png"))


def test_overwriting_keeps_no_result_of_others(predict, photos: Path, other: Path, tmp_path: Path) -> None:
    assert predict(f"images={photos}", "save=npy,color").code == 0
    words = [f"checkpoint={other}", "overwrite=true"]
    before = contents(tmp_path / "out")
    for images, save, kept in ((photos / "a.png", "npy,color", "b"), (photos, "npy,png16", "_color.png")):
        ended = predict(f"images={images}", f"save={save}", *words)
        assert ended.code == 2
        assert f"{tmp_path / 'out'} also holds {tmp_path / 'out'}/" in ended.err and kept in ended.err
        assert "which overwrite=true would not make again: name all images and formats" in ended.err
        assert contents(tmp_path / "out") == before, "a refusal deletes nothing"
    assert predict(f"images={photos}", "save=npy,color,png16", *words).code == 0


def test_interrupted_overwriting_mixes_no_models(
    predict, ctrl_c_at_batch: Callable, photos: Path, other: Path, tmp_path: Path
) -> None:
    assert predict(f"images={photos}", "save=npy").code == 0
    words = [f"images={photos}", "save=npy", f"checkpoint={other}", "batch_size=1"]
    with ctrl_c_at_batch(1):
        assert predict(*words, "overwrite=true").code == 130
    assert predict(*words).code == 0
    mixed = contents(tmp_path / "out")
    assert predict(*words, f"out={tmp_path / 'whole'}").code == 0
    assert all(contents(tmp_path / "whole")[name] == mixed[name] for name in ("a.npy", "b.npy"))


def test_results_without_note_are_kept_once(predict, photos: Path, other: Path, tmp_path: Path) -> None:
    words = [f"images={photos}", "save=npy", f"checkpoint={other}"]
    out = tmp_path / "out"
    assert predict(f"images={photos / 'a.png'}", "save=npy").code == 0
    (out / NOTE).unlink()
    kept = (out / "a.npy").read_bytes()
    ended = predict(*words)
    assert (ended.code, ended.err) == (
        0,
        f"warning: 1 result in {out} from before its predict.json: which model made them is not known; they "
        "are kept (overwrite=true predicts them again)\n",
    )
    assert (out / "a.npy").read_bytes() == kept
    assert told(out)["results_before_note"] == 1
    assert predict(*words).err == ""
    assert predict(*words, "overwrite=true").code == 0
    assert (out / "a.npy").read_bytes() != kept


def test_unrelated_files_stay(predict, photos: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    for name in ("notes.txt", "mine/x.json", "photo.png"):
        (out / name).write_text("mine")
    assert predict(f"images={photos}", "save=npy").err == ""
    for more in ([], ["overwrite=true"], [f"checkpoint={other}", "overwrite=true"]):
        ended = predict(f"images={photos}", "save=npy", *more)
        assert (ended.code, ended.err) == (0, "")
    assert all((out / name).read_text() == "mine" for name in ("notes.txt", "mine/x.json", "photo.png"))


@pytest.mark.parametrize("text", ['{"mine": 1}', "[1]", "no JSON", '{"settings": {}, "formats": {"npy": 1}}'])
def test_another_programs_note_is_left_alone(predict, photos: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NOTE).write_text(text)
    for more in ([], ["overwrite=true"]):
        ended = predict(f"images={photos}", *more)
        assert ended.err == (
            f"error: {tmp_path / 'out' / NOTE} is damaged, or not the note of an earlier run: move it "
            "elsewhere, or pass another out=...\n"
        )
    assert contents(tmp_path / "out") == {NOTE: text.encode()}


def test_emptied_folder_is_overwritten(predict, photos: Path, other: Path, tmp_path: Path) -> None:
    assert predict(f"images={photos}", "save=npy").code == 0
    for path in (tmp_path / "out").glob("*.npy"):
        path.unlink()
    words = [f"images={photos}", "save=npy", f"checkpoint={other}"]
    ended = predict(*words)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{tmp_path / 'out' / NOTE} is of a run with other settings (weights " in ended.err
    assert "has written nothing: pass another out=..., or, if it is not running any more" in ended.err
    assert predict(*words, "overwrite=true").code == 0
    assert told(tmp_path / "out")["checkpoint"] == str(other)


def test_run_without_results_leaves_no_note(predict, ctrl_c_at_batch: Callable, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [pixels(28, 42)] * 3, Fraction(10))
    (tmp_path / "b.png").write_text("no image")
    assert predict(f"images={tmp_path / 'b.png'}").code == 1
    assert not (tmp_path / "out" / NOTE).exists()
    with ctrl_c_at_batch(1):
        assert predict(f"images={tmp_path / 'a.mp4'}").code == 130
    assert not (tmp_path / "out" / NOTE).exists()
    assert predict(f"images={tmp_path / 'a.mp4'}", "save=npy").code == 0
    assert predict(f"images={tmp_path / 'b.png'}", "save=npy").code == 1
    assert (tmp_path / "out" / NOTE).exists()


def test_slower_of_two_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = [PredictionNote({"weights_sha256": each * 10, "flip": False}, {"npy": {}}) for each in "AB"]
    targets = {"npy": [tmp_path / "a.npy"]}
    write = prediction_note.write_shared

    def slowly(path: Path, text: str, replace: bool) -> bool:
        monkeypatch.setattr(prediction_note, "write_shared", write)
        assert begin_note(tmp_path, notes[0], targets, False, {"checkpoint": "a"}) == 0  # the faster one
        np.save(tmp_path / "a.npy", np.zeros(1))
        return write(path, text, replace)

    monkeypatch.setattr(prediction_note, "write_shared", slowly)
    with pytest.raises(ValueError, match=r"\(weights AAAAAAAAAA of a -> BBBBBBBBBB of b\)"):
        begin_note(tmp_path, notes[1], targets, False, {"checkpoint": "b"})
    assert told(tmp_path)["settings"]["weights_sha256"] == "A" * 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", NOTE]


def test_long_lists_of_differences_are_cut(tmp_path: Path) -> None:
    heads = [{"class_names": [f"{word} {i}" for i in range(30)]} for word in ("cat", "dog")]
    notes = [
        PredictionNote(
            {"weights_sha256": "A", "model": {"head": head}, **dict.fromkeys("abcdef", value)}, {"npy": {}}
        )
        for value, head in enumerate(heads)
    ]
    begin_note(tmp_path, notes[0], {"npy": []}, False, {})
    (tmp_path / "a.npy").touch()
    with pytest.raises(ValueError, match=r"\(a 0 -> 1, b 0 -> 1, c 0 -> 1, d 0 -> 1, 3 more\)"):
        begin_note(tmp_path, notes[1], {"npy": []}, False, {})
    only_head = PredictionNote({**notes[0].settings, "model": {"head": heads[1]}}, {"npy": {}})
    with pytest.raises(ValueError, match=r"\(head.class_names differs\)"):
        begin_note(tmp_path, only_head, {"npy": []}, False, {})


def test_videos_frames_are_of_one_model(
    predict, ctrl_c_at_batch: Callable, micro: str, tmp_path: Path
) -> None:
    """A metric model and the same weights with another far end differ in the settings of the head alone."""
    write_video(tmp_path / "a.mp4", [pixels(28, 42, seed) for seed in range(6)], Fraction(10))
    near, far = (saved(tmp_path / f"{end:g}", 0, end) for end in (20.0, 80.0))
    words = [f"images={tmp_path / 'a.mp4'}", "save=npy", "batch_size=1"]
    with ctrl_c_at_batch(4):
        assert predict(*words, f"checkpoint={near}").code == 130
    frames = tmp_path / "out/a_npy"
    begun = contents(frames)
    assert 1 < len(begun) < 7 and "unfinished.json" in begun
    ended = predict(*words, f"checkpoint={far}")
    assert (ended.code, "(head.max_depth_m 20.0 -> 80.0)" in ended.err) == (2, True)
    assert contents(frames) == begun
    assert predict(*words, f"checkpoint={near}").code == 0
    for number, name in enumerate(begun):
        assert number == 6 or name == "unfinished.json" or (frames / name).read_bytes() == begun[name]
    assert json.loads((frames / "frames.json").read_text())["made_with"]["model"]["head"]["max_depth_m"] == 20
    near_m = [np.load(path) for path in sorted(frames.glob("*.npy"))]
    assert predict(*words, f"checkpoint={far}", "overwrite=true").code == 0
    far_m = [np.load(path) for path in sorted(frames.glob("*.npy"))]
    assert all(np.allclose(4 * one, other, rtol=1e-5) for one, other in zip(near_m, far_m, strict=True))
    assert len(far_m) == 6
