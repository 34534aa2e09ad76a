"""Predictions of classes: windows, palette PNGs, overlays, what is refused, and masks of the sky."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthany import sky
from depthany.data.folder_depth import FolderDepth
from depthany.inference.averaging import average_classes, window_starts
from depthany.inference.outputs import OutputSettings, check_formats
from depthany.inference.predictor import Predictor, PreparedImage
from depthany.inference.segmenters import (
    class_probability,
    open_segmenter,
    processed,
    require_class,
    require_whole_images,
)
from depthany.inference.sky_masks import (
    SkyJob,
    SkySettings,
    delete_masks,
    require_same_note,
    write_mask,
    write_note,
)
from depthany.models.files.mobilenet_v2 import save_mobilenet_v2
from depthany.models.files.model_source import ModelSource
from depthany.models.model import build_model, save_model
from depthany.models.output import Quantity
from depthany.system.device import prepare_compute

NAMES = ["dark", "middle", "sky"]


@pytest.fixture
def classes(micro: str) -> Any:
    """A model of three classes with random weights, whose logits vary."""
    torch.manual_seed(0)
    head = {
        "name": "classes_linear",
        "class_names": NAMES,
        "class_colours": [[9, 9, 9], [1, 2, 3], [7, 8, 9]],
    }
    model = build_model({"name": "dinov2", "size": micro}, {"name": "levels"}, head, 28).eval()
    torch.nn.init.normal_(model.head.conv.weight)  # type: ignore[union-attr, arg-type]
    return model


@pytest.fixture
def folder(classes: Any, tmp_path: Path) -> Path:
    save_model(classes, tmp_path / "classes")
    return tmp_path / "classes"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("a", "day/b"):
        path = tmp_path / "set/images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (35, 50, 3), dtype=np.uint8)).save(path)
        depth = tmp_path / "set/depth" / f"{name}.npy"
        depth.parent.mkdir(parents=True, exist_ok=True)
        np.save(depth, np.full((35, 50), 5.0, np.float32))
    return tmp_path / "set/images"


def prepared(predictor: Predictor, hw: tuple[int, int]) -> PreparedImage:
    image = np.random.default_rng(1).integers(0, 256, (*hw, 3), dtype=np.uint8)
    return PreparedImage("a", predictor.prepare(image, "a"), hw)


def test_window_that_covers_the_image_changes_nothing(classes: Any) -> None:
    whole, windows = Predictor(classes, 28), Predictor(classes, 28, window=70, stride=14)
    image = prepared(whole, (40, 60))
    assert torch.equal(whole.predict([image]), windows.predict([image]))


def test_windows_are_averaged_where_they_overlap(classes: Any) -> None:
    predictor = Predictor(classes, 28, window=28, stride=14)
    image = prepared(predictor, (28, 42))
    logits, pixels = predictor.predict([image]), image.inputs[0][None]  # [1 3 28 42]
    with torch.inference_mode():
        left, right = classes(pixels[..., :28]).map, classes(pixels[..., 14:]).map
    torch.testing.assert_close(logits[..., :14], left[..., :14])
    torch.testing.assert_close(logits[..., 14:28], (left[..., 14:] + right[..., :14]) / 2)


def test_last_window_ends_at_the_edge() -> None:
    assert window_starts(100, 40, 30) == [0, 30, 60]
    assert window_starts(101, 40, 30) == [0, 30, 60, 61]
    assert window_starts(30, 40, 30) == [0]


def test_views_are_averaged_as_probabilities() -> None:
    views = [torch.tensor([4.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)]
    mean = average_classes(views, False).softmax(1)
    torch.testing.assert_close(mean, (views[0].softmax(1) + views[1].softmax(1)) / 2)


def test_palette_png_and_overlay_are_written(
    predict: Any, folder: Path, photos: Path, tmp_path: Path
) -> None:
    ended = predict(f"checkpoint={folder}", f"images={photos}")
    assert ended.code == 0, ended.err
    with Image.open(tmp_path / "out/day/b_color.png") as file:
        assert (file.mode, file.size, file.text["classes"]) == ("P", (50, 35), "dark, middle, sky")
        assert np.asarray(file).max() < 3
        assert file.getpalette()[:9] == [9, 9, 9, 1, 2, 3, 7, 8, 9]
    with Image.open(tmp_path / "out/a_overlay.png") as file:
        assert (file.mode, file.size) == ("RGB", (50, 35))
    assert "constant" not in ended.err


def test_formats_and_videos_of_depth_are_refused(
    predict: Any, folder: Path, photos: Path, tmp_path: Path
) -> None:
    ended = predict(f"checkpoint={folder}", f"images={photos}", "save=png16")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "save=png16: the model predicts 3 classes; choose from color, overlay, side, npy" in ended.err
    (tmp_path / "a.mp4").touch()
    ended = predict(f"checkpoint={folder}", f"images={tmp_path / 'a.mp4'}")
    assert "a.mp4 is a video, but the model predicts 3 classes" in ended.err
    with pytest.raises(ValueError, match=r"save=overlay: the model predicts disparity"):
        check_formats(["overlay"], OutputSettings(Quantity("disparity")))


def run_sky(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: str) -> tuple[int, str, str]:
    own = ["device=cpu", "threads=1"]
    monkeypatch.setattr(sys, "argv", ["sky", *words, *own])
    with pytest.raises(SystemExit) as end:
        sky.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_sky_masks_are_written_noted_and_read(
    folder: Path, photos: Path, classes: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = photos.parent / "sky"
    words = [f"checkpoint={folder}", f"images={photos}", f"out={out}", "threshold=0.34"]
    code, said, err = run_sky(monkeypatch, capsys, *words, "limit=1")
    assert code == 0, err
    assert "1 mask written" in said
    (out / "a.png").write_bytes(kept := (out / "a.png").read_bytes())
    code, said, _ = run_sky(monkeypatch, capsys, *words)
    assert "1 mask written" in said
    assert "1 there already" in said
    assert f"\n  sky_masks={out.absolute()}\n" in said
    assert (out / "a.png").read_bytes() == kept
    with Image.open(out / "day/b.png") as file:
        mask = np.asarray(file)
        assert file.mode == "1"
    image = np.asarray(Image.open(photos / "day/b.png"))
    prepared_image = PreparedImage("b", Predictor(classes, 28).prepare(image, "b"), (35, 50))
    logits = Predictor(classes, 28).predict([prepared_image])[0]
    enlarged = torch.nn.functional.interpolate(logits[None], (35, 50), mode="bilinear", align_corners=False)[
        0
    ]
    expected = (enlarged.softmax(0)[2] >= 0.34).numpy()
    assert 0 < expected.mean() < 1
    assert (mask == expected).mean() > 0.999
    note = json.loads((out / "sky.json").read_text())["settings"]
    assert (note["threshold"], note["sky_class"], note["model"]) == (0.34, "sky", str(folder))
    assert note["revision"].startswith("sha256:")
    assert (out / "contact.jpg").is_file()
    code, _, err = run_sky(monkeypatch, capsys, *words[:3], "threshold=0.6")
    assert code == 2
    assert "holds masks with threshold=0.34, not 0.6" in err
    labels = FolderDepth(str(photos.parent), sky_masks="sky").labels(1)
    assert (labels.sky == expected).mean() > 0.999
    assert (labels.disparity[labels.sky] == 0).all(), "infinitely far"
    assert labels.mask.all()


def test_other_input_size_or_precision_is_not_continued(tmp_path: Path) -> None:
    settings = SkySettings("m", "sha256:1", "sky", 0.5, 0, input_size=28, precision="float32")
    write_note(tmp_path, settings, {})
    for key, value in (("input_size", 14), ("precision", "bfloat16")):
        with pytest.raises(ValueError, match=rf"holds masks with {key}=.*, not {value}: pass another out"):
            require_same_note(tmp_path, replace(settings, **{key: value}), [])
    require_same_note(tmp_path, settings, [])


def test_masks_without_a_note_are_refused(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.ones((2, 2), bool))
    job = SkyJob(tmp_path / "photos/a.png", tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png exists, but no .*sky\.json says how it was made"):
        require_same_note(tmp_path, SkySettings("m", "r", "sky", 0.5, 0), [job])


def test_overwriting_leaves_no_older_mask(tmp_path: Path) -> None:
    old, new = (SkySettings("m", "r", "sky", threshold, 0) for threshold in (0.5, 0.9))
    jobs = [SkyJob(tmp_path / f"photos/{name}.png", tmp_path / f"{name}.png") for name in "ab"]
    for job in jobs:
        write_mask(job.target, np.ones((2, 2), bool))
    write_note(tmp_path, old, {})
    with pytest.raises(ValueError, match=r"also holds .*b\.png, which overwrite=true would not make again"):
        delete_masks(tmp_path, new, jobs[:1])
    assert jobs[0].target.exists(), "a refusal deletes nothing"
    delete_masks(tmp_path, old, jobs[:1])  # the settings are those of the mask that stays
    assert [job.target.exists() for job in jobs] == [False, True]
    delete_masks(tmp_path, new, jobs)
    assert not any(job.target.exists() for job in jobs)


def test_masks_never_replace_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    photo = tmp_path / "photos/a.png"
    photo.parent.mkdir()
    Image.fromarray(np.full((28, 42, 3), 90, np.uint8)).save(photo)
    (tmp_path / "list.txt").write_text(f"{photo}\n")
    before = photo.read_bytes()
    for images in (photo, tmp_path / "list.txt"):
        words = [f"checkpoint={folder}", f"images={images}", f"out={photo.parent}", "overwrite=true"]
        code, _, err = run_sky(monkeypatch, capsys, *words)
        assert (code, "would replace an image" in err) == (2, True), err
        assert photo.read_bytes() == before


def test_limit_with_overwrite_is_refused_in_one_line(
    folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (photos / "c.mp4").touch()
    words = [f"checkpoint={folder}", f"images={photos}", f"out={tmp_path / 'sky'}"]
    code, said, err = run_sky(monkeypatch, capsys, *words)
    assert code == 0, err
    assert "1 video left out" in said
    code, _, err = run_sky(monkeypatch, capsys, *words, "input_size=42")
    assert (code, "holds masks with input_size=28, not 42" in err) == (2, True), err
    code, _, err = run_sky(monkeypatch, capsys, *words, "input_size=42", "overwrite=true", "limit=1")
    assert (code, "leave out limit" in err) == (2, True), err
    assert json.loads((tmp_path / "sky/sky.json").read_text())["settings"]["input_size"] == 28


def test_masks_survive_damaged_and_replaced_images(
    folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = [f"checkpoint={folder}", f"images={photos}", f"out={tmp_path / 'sky'}"]
    assert run_sky(monkeypatch, capsys, *words)[0] == 0
    masks = {name: (tmp_path / "sky" / name).read_bytes() for name in ("a.png", "day/b.png")}
    images = {name: (photos / name).read_bytes() for name in masks}
    (photos / "a.png").write_bytes(images["a.png"][:200])
    Image.new("RGB", (60, 40)).save(photos / "day/b.png")
    Image.new("RGB", (50, 35)).save(photos / "new.png")
    code, said, err = run_sky(monkeypatch, capsys, *words)
    assert (code, "1 mask written" in said, "look at" in said) == (1, True, True), err
    damaged, replaced = err.splitlines()
    assert damaged.startswith(f"error: {photos / 'a.png'}: cannot read the image")
    assert replaced == (
        f"error: {tmp_path / 'sky/day/b.png'} is a mask of 50x35 pixels, but {photos / 'day/b.png'} has "
        "60x40, as if it was replaced after the mask was made: delete it, or pass overwrite=true to make all "
        "masks again"
    )
    assert masks == {name: (tmp_path / "sky" / name).read_bytes() for name in masks}
    for name, stored in images.items():
        (photos / name).write_bytes(stored)
    assert run_sky(monkeypatch, capsys, *words)[0] == 0


def test_damaged_mask_is_named_with_remedy(
    folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = [f"checkpoint={folder}", f"images={photos / 'a.png'}", f"out={tmp_path / 'sky'}"]
    assert run_sky(monkeypatch, capsys, *words)[0] == 0
    (tmp_path / "sky/a.png").write_bytes(b"no mask")
    code, said, err = run_sky(monkeypatch, capsys, *words)
    assert (code, "look at" in said, err.count("\n")) == (1, False, 1)
    assert (
        f"{tmp_path / 'sky/a.png'}: cannot read the mask" in err
        and "delete it, or pass overwrite=true" in err
    )
    assert run_sky(monkeypatch, capsys, *words, "overwrite=true")[0] == 0


def test_label_set_without_sky_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no class 'sky' among its 2 classes .cat, dog.: pass a model"):
        require_class(["cat", "dog"], "sky", "checkpoint=x")


def test_probability_is_the_softmax_of_enlarged_logits() -> None:
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)) * 20
    whole = torch.nn.functional.interpolate(logits[None], (9, 8), mode="bilinear", align_corners=False)[0]
    found = class_probability(logits, 2, (9, 8), False)
    np.testing.assert_allclose(found, whole.softmax(0)[2].numpy(), atol=1e-6)


def test_erosion_keeps_the_sky_at_the_edge_of_the_image() -> None:
    probability = np.zeros((6, 6), np.float32)
    probability[:4] = 1
    mask = SkySettings("m", "r", "sky", 0.5, erode=1).mask(probability)
    assert mask.sum(1).tolist() == [6, 6, 6, 0, 0, 0]


@pytest.mark.slow  # the import of transformers
def test_huggingface_segmenter_finds_its_sky(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "decoder_hidden_size": 8}
    sizes |= {"num_attention_heads": [1] * 4, "mlp_ratios": [1] * 4}
    names = {0: "wall", 1: "sky"}
    config = transformers.SegformerConfig(id2label=names, label2id={"wall": 0, "sky": 1}, **sizes)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "hf")
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "hf")
    out = tmp_path / "masks"
    words = [f"checkpoint={tmp_path / 'hf'}", f"images={photos}", f"out={out}"]
    code, _, err = run_sky(monkeypatch, capsys, *words)
    assert code == 0, err
    with Image.open(out / "a.png") as file:
        assert (file.mode, file.size) == ("1", (50, 35))
    note = json.loads((out / "sky.json").read_text())["settings"]
    assert note["sky_class"] == "sky"
    torch.manual_seed(1)  # other weights in the same folder are another segmenter
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "hf")
    code, _, err = run_sky(monkeypatch, capsys, *words)
    assert (code, f"holds masks with revision={note['revision']}" in err) == (2, True), err
    source, compute = ModelSource(str(tmp_path / "hf")), prepare_compute("cpu", "bf16", 1)
    segmenter = open_segmenter(source, compute, None)
    image = segmenter.prepare(np.zeros((8, 8, 3), np.uint8), "x")
    dtypes = set[torch.dtype]()
    network: Any = segmenter.model  # type: ignore[attr-defined]
    network.register_forward_hook(lambda _, __, output: dtypes.add(output.logits.dtype))
    list(segmenter.probabilities([PreparedImage("x", image, (8, 8))], 1))
    assert dtypes == {torch.bfloat16}, "precision= acts"


@pytest.mark.slow  # the import of transformers
def test_cropping_image_processors_see_whole_photos() -> None:
    transformers = pytest.importorskip("transformers")
    crops = transformers.MobileNetV2ImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    )
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, :20] = 255
    assert processed(crops, image).shape == (3, 64, 128)
    assert len(processed(crops, image)[0, 0].unique()) > 1, "the white edge is seen"
    require_whole_images(crops, "checkpoint=x")
    for other in (
        transformers.DPTImageProcessor(do_pad=True, size_divisor=100),
        *(transformers.DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=k) for k in (14, 16, 32)),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.5),
    ):
        with pytest.raises(ValueError, match=r"checkpoint=x: its image processor .* crops or pads images"):
            require_whole_images(other, "checkpoint=x")


@pytest.mark.parametrize("multiple", [1, 14, 16, 32, None])
def test_padding_of_either_side_is_refused(multiple: int | None) -> None:
    def pad(images: np.ndarray, **_: Any) -> dict[str, torch.Tensor]:
        height, width, _ = images.shape
        square = max(height, width)
        rows, columns = (
            (square if multiple is None else -(-side // multiple) * multiple) for side in (height, width)
        )
        padded = np.pad(images, ((0, rows - height), (0, columns - width), (0, 0)))
        return {"pixel_values": torch.from_numpy(padded).permute(2, 0, 1)[None] / 255}

    if multiple == 1:  # pads nothing
        require_whole_images(pad, "checkpoint=x")
        return
    with pytest.raises(ValueError, match="crops or pads images"):
        require_whole_images(pad, "checkpoint=x")


@pytest.mark.slow  # the import of transformers
def test_mobilenet_of_huggingface_is_read_as_ours(tmp_path: Path) -> None:
    encoder = {"name": "atrous", "model": "mobilenetv2_035"}
    head = {"name": "classes_deeplab", "class_names": ["a", "sky"]}
    save_mobilenet_v2(build_model(encoder, {"name": "levels"}, head, 65).eval(), tmp_path)
    segmenter = open_segmenter(ModelSource(str(tmp_path)), prepare_compute("cpu", "fp32", 1), None)
    assert segmenter.predictor.align_corners and segmenter.input_size == 65  # type: ignore[attr-defined]
