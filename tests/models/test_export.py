"""Models for other programs: every format through its command, read by the program that it is for."""

import contextlib
import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from depthany import load_model
from depthany.config.entry import run_entry
from depthany.export import run
from depthany.models.dinov2 import SIZES, Dinov2, resize_pos_embed
from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.official import check_official, released_stem
from depthany.models.files.onnx import OFFSET, positions_in_graph, relative_difference
from depthany.models.model import depth_anything, save_model
from depthany.system.files import staged

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
KINDS = {
    "disparity": {"pos_interpolation": "official"},
    "metric": {"pos_interpolation": "size", "max_depth_m": 20.0},
}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def micro_is_known(with_micro: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The tiny encoder can be chosen in every test here."""
    with with_micro():
        yield


def export(*arguments: str) -> Ended:
    """`python -m depthany.export` with these arguments, in this process."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["export", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_entry("export", run)
    finally:
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model of each of KINDS."""
    folder = tmp_path_factory.mktemp("models")
    for name, arguments in KINDS.items():
        torch.manual_seed(0)
        model = depth_anything("micro", **arguments)
        torch.nn.init.normal_(model.encoder.pos_embed)  # large enough to matter
        save_model(model, folder / name)
    return folder


@pytest.fixture(scope="module")
def graphs(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """What was exported, and what was printed: disparity in float32 for any size, and the metric model in
    float16 for one.
    """
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder, found = tmp_path_factory.mktemp("graphs"), {}
    fixed = ("dtype=float16", "size=[28,42]", "batch=1", "opset=17")
    for name, more in (("disparity", ()), ("metric", fixed)):
        out = folder / f"{name}.onnx"
        ended = export(f"checkpoint={checkpoints / name}", "format=onnx", f"out={out}", *more)
        assert ended.code == 0, ended.err
        found[name] = out, ended.out
    return found


@pytest.mark.parametrize("interpolation", ["official", "size"])
def test_graph_positions_equal_the_encoders(interpolation: str) -> None:
    pos_embed = torch.randn(1, 1 + 5 * 5, 8, generator=torch.Generator().manual_seed(0))
    for p, q in ((5, 5), (5, 4), (1, 1), (1, 9), (12, 3), (37, 50)):
        found = positions_in_graph(pos_embed, p, q, OFFSET[interpolation])
        assert torch.allclose(found, resize_pos_embed(pos_embed, p, q, interpolation), atol=2e-5), (p, q)


def test_every_interpolation_of_the_encoder_has_its_offset(micro: str) -> None:
    for interpolation in OFFSET:
        Dinov2(micro, "v1", interpolation)
    with pytest.raises(ValueError, match=", ".join(OFFSET)):
        Dinov2(micro, "v1", "none of them")


def test_graph_takes_new_batches_and_sizes(graphs, checkpoints: Path) -> None:
    import onnxruntime

    model = load_model(checkpoints / "disparity")
    session = onnxruntime.InferenceSession(str(graphs["disparity"][0]))
    for batch, height, width in ((1, 28, 28), (1, 14, 14), (4, 42, 98), (3, 126, 14)):
        image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            expected = model(image).map.numpy()
        (found,) = session.run(["disparity"], {"image": image.numpy()})
        assert relative_difference(found, expected)["max"] < 1e-4, (batch, height, width)


def test_graph_refuses_sides_that_are_no_multiple(graphs) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graphs["disparity"][0]))
    for shape in ((1, 3, 100, 100), (1, 3, 28, 50)):
        with pytest.raises(Exception, match="reshape"):
            session.run(None, {"image": np.zeros(shape, np.float32)})


def test_example_script_equals_infer_without_torch(
    graphs, checkpoints: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    source = SCRIPTS / "onnx_example.py"
    assert not re.search(r"^(import|from) (torch|depthany)", source.read_text(), re.MULTILINE)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("onnx_example")
    draw = np.random.default_rng(0)
    for name, width, height in (("disparity", 90, 61), ("disparity", 20, 33), ("metric", 84, 56)):
        # the metric graph takes 28 x 42 alone, which is what `infer` makes of this photo
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        photo = coarse.resize((width, height), Image.Resampling.BICUBIC)
        photo.save(tmp_path / "photo.png")
        words = [str(graphs[name][0]), str(tmp_path / "photo.png"), str(tmp_path / "depth.npy")]
        monkeypatch.setattr(sys, "argv", ["onnx_example.py", *words])
        script.main()
        assert ("metres" if name == "metric" else "larger is nearer") in capsys.readouterr().out
        found, model = np.load(tmp_path / "depth.npy"), load_model(checkpoints / name)
        expected = model.infer(np.asarray(photo), 28 if name == "metric" else None)
        limit = 0.05 if name == "metric" else 1e-3  # that graph has float16 weights
        assert relative_difference(found, expected)["max"] < limit, (name, width, height)


@pytest.mark.parametrize("align_corners", [True, False])
def test_example_script_enlarges_logits_before_the_classes(align_corners: bool, monkeypatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("onnx_example")
    logits = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    about = {"quantity": "classes", "class_names": ["a", "b", "c"], "batch": None, "size": [28, 42]}
    about |= {"mean": [0] * 3, "std": [1] * 3, "resize_output": {"align_corners": align_corners}}

    class Session:
        def get_modelmeta(self) -> SimpleNamespace:
            texts = {f"depthany.{key}": json.dumps(value) for key, value in about.items()}
            return SimpleNamespace(custom_metadata_map=texts)

        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert (outputs, inputs["image"].shape) == (["classes"], (1, 3, 28, 42))
            return [logits[None]]

    found = script.predict(Session(), np.zeros((9, 7, 3), np.uint8))
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], (9, 7), mode="bilinear", align_corners=align_corners
    )
    assert found.dtype == np.uint8
    assert np.array_equal(found, enlarged[0].argmax(0).numpy())


def test_graph_of_one_size_takes_no_other(graphs) -> None:
    import onnx

    graph = onnx.load(graphs["metric"][0])
    (image,) = graph.graph.input
    assert [each.dim_value for each in image.type.tensor_type.shape.dim] == [1, 3, 28, 42]
    assert [each.version for each in graph.opset_import if not each.domain] == [17]
    free = onnx.load(graphs["disparity"][0])
    assert [each.version for each in free.opset_import if not each.domain] == [18]
    assert all(
        each.dim_param for each in free.graph.input[0].type.tensor_type.shape.dim if not each.dim_value
    )


def test_three_sizes_are_checked_and_their_differences_printed(graphs) -> None:
    for name, limit in (("disparity", 1e-4), ("metric", 0.05)):
        rows = re.findall(
            r"(\d+) x 3 x (\d+) x (\d+): .* largest difference (\S+) of .* mean (\S+)\n", graphs[name][1]
        )
        assert len({row[:3] for row in rows}) == (3 if name == "disparity" else 1)
        assert any(height != width for _, height, width, *_ in rows)
        assert all(0 < float(mean) <= float(largest) <= limit for *_, largest, mean in rows)


def test_float16_graph_keeps_float32_input_and_output(graphs) -> None:
    import onnx

    kinds = {}
    for name, (path, _) in graphs.items():
        graph = onnx.load(path).graph
        kinds[name] = {onnx.TensorProto.DataType.Name(weight.data_type) for weight in graph.initializer}
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "FLOAT16" in kinds["metric"] and "FLOAT16" not in kinds["disparity"]
    largest = {
        name: max(float(number) for number in re.findall(r"largest difference (\S+)", text))
        for name, (_, text) in graphs.items()
    }
    assert largest["metric"] > 3 * largest["disparity"]


def test_graph_metadata_names_quantity_and_preprocessing(graphs) -> None:
    import onnx

    graph = onnx.load(graphs["metric"][0])
    assert [output.name for output in graph.graph.output] == ["depth_m"]
    told = {each.key: json.loads(each.value) for each in graph.metadata_props if each.key[:9] == "depthany."}
    assert told["depthany.max_depth_m"] == 20.0
    assert told["depthany.mean"] == [0.485, 0.456, 0.406]
    assert (told["depthany.unit"], told["depthany.larger_is_nearer"]) == ("m", False)
    assert (told["depthany.size"], told["depthany.batch"], told["depthany.multiple"]) == ([28, 42], 1, 14)
    assert told["depthany.resize"] == {
        "kernel": "bicubic",
        "a": -0.75,
        "antialias": False,
        "align_corners": False,
    }
    assert told["depthany.resize_output"] == {"kernel": "bilinear", "align_corners": True}


def test_torchscript_equals_the_model_at_new_sizes(checkpoints: Path, tmp_path: Path) -> None:
    ended = export(f"checkpoint={checkpoints / 'disparity'}", "format=torchscript", f"out={tmp_path}/a.pt")
    assert ended.code == 0, ended.err
    assert ended.out.count("float32 in TorchScript against float32 in PyTorch") == 3
    told = {"depthany.json": ""}
    loaded, model = (
        torch.jit.load(tmp_path / "a.pt", _extra_files=told),
        load_model(checkpoints / "disparity"),
    )
    assert json.loads(told["depthany.json"])["quantity"] == "disparity"
    for batch, height, width in ((1, 14, 14), (4, 42, 98), (3, 126, 14)):
        image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            expected, found = model(image).map.numpy(), loaded(image).numpy()
        assert relative_difference(found, expected)["max"] < 1e-4, (batch, height, width)
    with pytest.raises(torch.jit.Error, match="not a multiple of the patch size"):
        loaded(torch.zeros(1, 3, 100, 100))


def test_torchscript_of_one_size_is_half_as_large(checkpoints: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        words = ("format=torchscript", f"dtype={dtype}", "size=28", f"out={tmp_path / dtype}.pt")
        ended = export(f"checkpoint={checkpoints / 'metric'}", *words)
        assert ended.code == 0, ended.err
    half, whole = (tmp_path / f"{dtype}.pt" for dtype in ("float16", "float32"))
    assert half.stat().st_size < whole.stat().st_size
    image = torch.zeros(1, 3, 28, 28)
    with torch.inference_mode():
        expected, found = load_model(checkpoints / "metric")(image).map, torch.jit.load(half)(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.01)
    with pytest.raises(torch.jit.Error, match="another size"):
        torch.jit.load(half)(torch.zeros(1, 3, 42, 28))


def test_trace_that_fails_elsewhere_is_not_kept(checkpoints: Path, tmp_path: Path, monkeypatch) -> None:
    def broken(path: Path) -> Callable[[torch.Tensor], np.ndarray]:
        raise RuntimeError("Traceback:\nsizes differ")

    monkeypatch.setattr("depthany.models.files.exports.in_torchscript", lambda path: broken)
    ended = export(f"checkpoint={checkpoints / 'disparity'}", "format=torchscript", f"out={tmp_path}/a.pt")
    assert ended.code == 2
    assert "TorchScript cannot run the graph at another size (sizes differ)" in ended.err
    assert "pass size=[height,width]" in ended.err
    assert not list(tmp_path.iterdir())


def test_a_graph_that_disagrees_is_not_kept(graphs, tmp_path: Path, monkeypatch) -> None:
    save_model(depth_anything("micro"), tmp_path / "another")
    wrong = graphs["disparity"][0].read_bytes()
    monkeypatch.setattr(
        "depthany.models.files.exports.save_onnx", lambda model, path, *_: path.write_bytes(wrong)
    )
    out = tmp_path / "exports" / "model.onnx"
    ended = export(f"checkpoint={tmp_path / 'another'}", "format=onnx", f"out={out}", "dtype=float32")
    assert ended.code == 2
    assert "disagrees with the model by" in ended.err and ended.err.count("\n") == 1
    assert not list(out.parent.iterdir())


def test_no_number_counts_as_an_infinite_difference() -> None:
    expected = np.array([0.0, 2.0], np.float32)
    assert relative_difference(np.array([0.5, 2.0], np.float32), expected) == {"max": 0.25, "mean": 0.125}
    assert relative_difference(np.array([np.nan, 2.0], np.float32), expected)["max"] == np.inf


def test_transformers_computes_our_map_from_an_exported_folder(checkpoints: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name in KINDS:
        ended = export(f"checkpoint={checkpoints / name}", "format=huggingface", f"out={tmp_path / name}")
        assert ended.code == 0, ended.err
        assert ("resamples position embeddings" in ended.out) == (name == "disparity")
        assert f"from_pretrained('{tmp_path / name}/exact', trust_remote_code=True)" in ended.out
        theirs = transformers.AutoModelForDepthEstimation.from_pretrained(tmp_path / name).eval()
        ours = load_model(checkpoints / name)
        image = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))  # the stored grid
        with torch.inference_mode():
            expected = ours(image).map.numpy()
            found = theirs(pixel_values=image).predicted_depth.numpy()
        assert relative_difference(found, expected)["max"] < 1e-4


def test_exact_processor_makes_pipeline_equal_infer(checkpoints: Path, tmp_path: Path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    for module in ("dynamic_module_utils", "utils.hub"):
        monkeypatch.setattr(f"transformers.{module}.HF_MODULES_CACHE", str(tmp_path / "cache"), raising=False)
    model = load_model(checkpoints / "metric")
    model.input_size = 28
    save_huggingface(model, tmp_path / "hf")
    exact = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf/exact", trust_remote_code=True)
    by_infer = {"image_processor": exact}
    draw = np.random.default_rng(0)
    for width, height in ((90, 61), (28, 28), (20, 33)):  # 20: smaller than the input
        photo = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for more in ({}, by_infer):
            pipe = transformers.pipeline("depth-estimation", model=str(tmp_path / "hf"), device="cpu", **more)
            found = pipe(Image.fromarray(photo))["predicted_depth"].squeeze().numpy()
            difference = relative_difference(found, model.infer(photo))["max"]
            assert (difference < 1e-4) == (bool(more) or width == 28), (width, height, difference)


OFFICIAL = {  # size, taps, metres -> the released name
    ("vits", "v1", None): "depth_anything_vits14",
    ("vitl", "v2", None): "depth_anything_v2_vitl",
    ("vitb", "v2", 20.0): "depth_anything_v2_metric_hypersim_vitb",
    ("vits", "v2", 80.0): "depth_anything_v2_metric_vkitti_vits",
    ("vits", "v2", 10.0): None,
}


@pytest.mark.parametrize("kind, expected", OFFICIAL.items(), ids=map(str, OFFICIAL))
def test_official_name_of_another_model_is_refused(kind: tuple, expected: str | None) -> None:
    size, taps, metres = kind
    with torch.device("meta"):
        model = depth_anything(size, taps, max_depth_m=metres)
    assert released_stem(model) == expected
    check_official(model, Path("of_my_own.pth"))
    for name in filter(None, OFFICIAL.values()):
        if name == expected:
            check_official(model, Path(f"{name}.pth"))
            continue
        remedy = f"pass out=exports/{expected}.pth" if expected else "pass a name of your own"
        with pytest.raises(ValueError, match=f"out=exports/{name}.pth is the released name .* {remedy}"):
            check_official(model, Path(f"exports/{name}.pth"))


def test_official_code_has_no_metric_v1() -> None:
    with torch.device("meta"):
        model = depth_anything("vits", "v1", max_depth_m=20.0)
    with pytest.raises(ValueError, match="no metric model with taps=v1, only with v2"):
        check_official(model, Path("mine.pth"))


def test_official_file_loads_as_the_same_model(checkpoints: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(SIZES, "vits", SIZES["micro"])
    torch.manual_seed(0)
    model = depth_anything("vits").eval()
    save_model(model, tmp_path / "run")
    command = [f"checkpoint={tmp_path / 'run'}", "format=official"]
    out = tmp_path / "exports/depth_anything_v2_vits.pth"
    ended = export(*command, f"out={out}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"pass out={out.with_name('depth_anything_vits14.pth')}" in ended.err
    assert not out.parent.exists(), "refused before anything was written"
    for name in ("depth_anything_vits14", "mine"):
        out = tmp_path / f"exports/{name}.pth"
        ended = export(*command, f"out={out}")
        assert ended.code == 0, ended.err
        assert ("load it here with taps=v1" in ended.out) == (name == "mine")
        assert {"pretrained.cls_token", "depth_head.scratch.output_conv1.weight"} <= torch.load(out).keys()
        image, taps = torch.randn(1, 3, 28, 42), "v1" if name == "mine" else None
        monkeypatch.delitem(SIZES, "micro", raising=False)  # of two sizes of one width the first is taken
        with torch.inference_mode():
            assert torch.equal(load_model(out, taps=taps)(image).map, model(image).map)


def test_overwrite_never_replaces_a_foreign_folder(checkpoints: Path, tmp_path: Path) -> None:
    command = [f"checkpoint={checkpoints / 'disparity'}", "format=huggingface", f"out={tmp_path / 'hf'}"]
    assert export(*command).code == 0
    assert "pass overwrite=true" in export(*command).err
    assert export(*command, "overwrite=true").code == 0
    (tmp_path / "hf" / "thesis.txt").write_text("years of work")
    ended = export(*command, "overwrite=true")
    assert ended.code == 2 and "thesis.txt" in ended.err
    assert (tmp_path / "hf" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


MISTAKES = {
    "checkpoint=no/such": "no/such",
    "format=tflite": "unknown format 'tflite'; choose from onnx, coreml, torchscript, huggingface, official",
    "dtype=int8": "unknown dtype 'int8'; choose from float32, float16",
    "out=model.bin": "format=onnx writes a file that ends in .onnx",
    "out=a_file.txt/model.onnx": "cannot write a_file.txt/model.onnx",
    "format=huggingface": "dtype=float16 is for format=onnx or torchscript; leave it out for format=hugg",
    "size=[28,30]": "both sides must be multiples of 14, the patch size of micro: the nearest is size=[28,28",
    "size=large": "size=large: expected a number of pixels, [height,width], or null for any size",
    "opset=16": "opset=16: expected 17 to 25",
    "formatt=onnx": "unknown setting 'formatt'; did you mean format?",
    "overwrite=maybe": "overwrite: Value 'maybe'",
    "out=???": "these settings need a value: out=...",
    "out=folder.onnx": "out=folder.onnx is a folder",
}


@pytest.mark.parametrize("mistake, expected", MISTAKES.items(), ids=MISTAKES)
def test_mistake_ends_in_one_line(
    checkpoints: Path, tmp_path: Path, monkeypatch, mistake: str, expected: str
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file.txt").touch()
    (tmp_path / "folder.onnx").mkdir()
    settings = {
        "checkpoint": str(checkpoints / "metric"),
        "format": "onnx",
        "out": "x.onnx",
        "dtype": "float16",
    }
    key, _, value = mistake.partition("=")
    ended = export(*(f"{each}={text}" for each, text in {**settings, key: value}.items()))
    assert ended.code == 2
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert expected in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_file.txt", "folder.onnx"]


def test_named_file_is_placed_last(tmp_path: Path) -> None:
    out = tmp_path / "new" / "model.onnx"
    with staged(out) as place:
        place.write_text("graph")
        place.with_name("model.onnx.data").write_text("weights")
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "model.onnx.data"]

    def fail() -> None:
        with staged(out) as place:
            place.write_text("half a graph")
            raise ValueError(f"{place}: it disagrees")

    with pytest.raises(ValueError, match=f"{out}: it disagrees$"):
        fail()
    assert out.read_text() == "graph"
    assert len(list(out.parent.iterdir())) == 2
