"""Models for other programs: every format through its command, read by the program that it is for."""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from depthany import load_model
from depthany.config.entry import run_entry
from depthany.export import run
from depthany.models.dinov2 import Dinov2, resize_pos_embed
from depthany.models.files.onnx import OFFSET, positions_in_graph, relative_difference
from depthany.models.model import depth_anything, save_model
from depthany.system.files import staged

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
    """What was exported, and what was printed: disparity in float32, the metric model in float16."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder, found = tmp_path_factory.mktemp("graphs"), {}
    for name, dtype in (("disparity", "float32"), ("metric", "float16")):
        out = folder / f"{name}.onnx"
        ended = export(f"checkpoint={checkpoints / name}", "format=onnx", f"out={out}", f"dtype={dtype}")
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


def test_three_sizes_are_checked_and_their_differences_printed(graphs) -> None:
    for name, limit in (("disparity", 1e-4), ("metric", 0.05)):
        rows = re.findall(
            r"(\d+) x 3 x (\d+) x (\d+): .* largest difference (\S+) of .* mean (\S+)\n", graphs[name][1]
        )
        assert len({row[:3] for row in rows}) == 3
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


def test_a_graph_that_disagrees_is_not_kept(graphs, tmp_path: Path, monkeypatch) -> None:
    save_model(depth_anything("micro"), tmp_path / "another")
    wrong = graphs["disparity"][0].read_bytes()
    monkeypatch.setattr(
        "depthany.models.files.onnx.save_onnx", lambda model, path, dtype: path.write_bytes(wrong)
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
        theirs = transformers.AutoModelForDepthEstimation.from_pretrained(tmp_path / name).eval()
        ours = load_model(checkpoints / name)
        image = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))  # the stored grid
        with torch.inference_mode():
            expected = ours(image).map.numpy()
            found = theirs(pixel_values=image).predicted_depth.numpy()
        assert relative_difference(found, expected)["max"] < 1e-4


def test_official_file_loads_as_the_same_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = depth_anything("vits", "v2").eval()
    save_model(model, tmp_path / "run")
    out = tmp_path / "depth_anything_v2_vits.pth"
    ended = export(f"checkpoint={tmp_path / 'run'}", "format=official", f"out={out}")
    assert ended.code == 0, ended.err
    assert {"pretrained.cls_token", "depth_head.scratch.output_conv1.weight"} <= torch.load(out).keys()
    image = torch.randn(1, 3, 28, 42)
    with torch.inference_mode():
        assert torch.equal(load_model(out)(image).map, model(image).map)


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
    "format=tflite": "unknown format 'tflite'; choose from onnx, huggingface, official",
    "dtype=int8": "unknown dtype 'int8'; choose from float32, float16",
    "out=model.bin": "format=onnx writes a file that ends in .onnx",
    "out=a_file.txt/model.onnx": "cannot write a_file.txt/model.onnx",
    "format=huggingface": "dtype=float16 is for format=onnx",
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
            raise ValueError("it disagrees")

    with pytest.raises(ValueError, match="disagrees"):
        fail()
    assert out.read_text() == "graph"
    assert len(list(out.parent.iterdir())) == 2
