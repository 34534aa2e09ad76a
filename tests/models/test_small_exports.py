"""Small ONNX files and Core ML packages: what is stored, how they are judged, and their sizes."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from depthany.config.entry import run_entry
from depthany.evaluation.export_scores import Score, require_small_loss, score_on_images
from depthany.evaluation.small_files import size_of
from depthany.export import run
from depthany.models.files.coreml import put_weights
from depthany.models.files.exports import FORMATS, ExportOptions, one_size
from depthany.models.files.folding import fold_batch_norm
from depthany.models.files.onnx import GraphModel, description
from depthany.models.files.small_onnx import save_int8, strip
from depthany.models.model import DenseModel, build_model, depth_anything
from depthany.models.output import Prediction, Quantity

CLASSES = [f"class {index}" for index in range(21)]


def deeplab(model: str, input_size: int) -> DenseModel:
    torch.manual_seed(0)
    return build_model(
        {"name": "atrous", "model": model},
        {"name": "levels"},
        {"name": "classes_deeplab", "class_names": CLASSES},
        input_size=input_size,
    ).eval()


def test_folded_batch_norm_changes_no_logit() -> None:
    model = deeplab("mobilenetv2_035", 65)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    image = torch.randn(1, 3, 65, 80)
    with torch.no_grad():
        expected = model(image).map
        names = fold_batch_norm(model, torch.zeros(1, 3, 64, 64))
        torch.testing.assert_close(model(image).map, expected, atol=1e-4, rtol=1e-4)
    assert len(names) == 51 + 3 and not any(isinstance(each, nn.BatchNorm2d) for each in model.modules())


def test_graph_of_fixed_odd_size_needs_no_padding_nodes() -> None:
    model, image = deeplab("mobilenetv2_035", 65), torch.randn(1, 3, 65, 65)
    graph = GraphModel(model, size=(65, 65)).eval()
    with torch.no_grad():
        torch.testing.assert_close(graph(image), model(image).map, atol=1e-4, rtol=1e-4)
        program = torch.export.export(graph, (image,))
    assert not any("pad" in str(node.target) for node in program.graph.nodes)


def test_one_size_is_chosen_where_a_graph_has_one(micro: str) -> None:
    cnn, vit, options = deeplab("mobilenetv2_035", 65), depth_anything(micro, input_size=30), ExportOptions()
    int8 = ExportOptions(precision="int8")
    assert one_size(cnn, "onnx", options).size == (65, 65)
    assert one_size(vit, "onnx", options).size is None
    assert one_size(vit, "onnx", int8).size == one_size(vit, "coreml", options).size == (42, 42)
    assert one_size(vit, "onnx", ExportOptions(precision="int8", size=(28, 42))).size == (28, 42)
    assert one_size(vit, "huggingface", options).size is None


def test_description_of_classes_has_their_names() -> None:
    about = description(deeplab("mobilenetv2_035", 65), (65, 65))
    assert about["class_names"] == CLASSES and about["quantity"] == "classes"
    assert about["resize_output"]["align_corners"] is True and about["std"] == (0.5, 0.5, 0.5)
    assert "class_names" not in description(depth_anything("vitt"))


@pytest.fixture
def convolution(tmp_path: Path) -> Path:
    """An ONNX file of a depthwise convolution whose channels differ a thousandfold."""
    onnx = pytest.importorskip("onnx")
    weight = np.ones((2, 1, 3, 3), np.float32) * np.array([1, 1e-3], np.float32)[:, None, None, None]
    weight *= np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
    value, tensor = onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    node = onnx.helper.make_node("Conv", ["image", "weight", "bias"], ["map"], doc_string="x" * 500, group=2)
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [value("image", onnx.TensorProto.FLOAT, [1, 2, 8, 8])],
        [value("map", onnx.TensorProto.FLOAT, [1, 2, 6, 6])],
        [tensor(weight, "weight"), tensor(np.zeros(2, np.float32), "bias")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {"depthany.quantity": json.dumps("disparity")})
    onnx.save(model, tmp_path / "float32.onnx")
    return tmp_path / "float32.onnx"


def test_int8_file_has_a_scale_per_channel(convolution: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    draw = np.random.default_rng(0)
    images = [draw.normal(size=(1, 2, 8, 8)).astype(np.float32) for _ in range(4)]
    path = convolution.with_name("int8.onnx")
    save_int8(convolution, path, images)
    graph = onnx.load(path)
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.graph.initializer}
    (weight,) = (each for each in stored.values() if each.dtype == np.int8 and each.ndim == 4)
    assert weight.min() == -127 and (weight[0] == weight[1]).all(), "the small channel uses the whole range"
    kinds = {node.op_type for node in graph.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds and "ConvInteger" not in kinds
    assert {each.key: each.value for each in graph.metadata_props} == {"depthany.quantity": '"disparity"'}
    compute = [onnxruntime.InferenceSession(each).run for each in (str(convolution), str(path))]
    expected, found = (each(None, {"image": images[0]})[0] for each in compute)
    for channel in range(2):
        span = np.ptp(expected[0, channel])
        assert np.abs(found - expected)[0, channel].max() < 0.6 * span  # one scale for both: all of it
    assert np.abs(found - expected)[0, 0].max() < 0.03 * np.ptp(expected[0, 0])


def test_strip_keeps_what_is_computed(convolution: Path) -> None:
    onnx = pytest.importorskip("onnx")
    before = convolution.stat().st_size
    strip(convolution)
    graph = onnx.load(convolution)
    assert convolution.stat().st_size < before - 400
    assert graph.metadata_props[0].key == "depthany.quantity" and graph.graph.node[0].op_type == "Conv"


def test_loss_above_the_limit_or_nan_is_refused() -> None:
    require_small_loss([Score("mIoU of x", 0.701, 0.71, 0.9), Score("AbsRel of x", 0.05, 0.06, -1.0)], 1.0)
    with pytest.raises(
        ValueError, match=r"mIoU of x: 0\.6900 instead of 0\.7100, 2\.00 points lost, more than"
    ):
        require_small_loss([Score("mIoU of x", 0.69, 0.71, 2.0)], 1.0)
    with pytest.raises(ValueError, match="nan points"):
        require_small_loss([Score("mIoU of x", float("nan"), 0.71, float("nan"))], 1.0)


@pytest.mark.parametrize(
    "quantity, values, found, expected",
    [
        (
            Quantity("classes", class_names=("a", "b")),
            [[[2.0, 2.0]], [[1.0, 1.0]]],
            [[[2, 0]], [[1, 1]]],
            50.0,
        ),
        (Quantity("disparity"), [[0.0, 4.0]], [[1, 4]], 12.5),
        (Quantity("depth_m"), [[1.0, 4.0]], [[1.1, 4.4]], 10.0),
    ],
)
def test_loss_on_images_counts_what_changed(
    quantity: Quantity, values: list, found: list, expected: float
) -> None:
    def model(image: torch.Tensor) -> Prediction:
        return Prediction(torch.tensor(values)[None])

    stand_in: Any = type("Model", (), {"quantity": quantity, "__call__": lambda self, image: model(image)})()
    score = score_on_images(stand_in, lambda image: np.array(found)[None], [torch.zeros(1, 3, 1, 2)])
    assert score.lost == pytest.approx(expected)
    assert "1 image" in score.name


def test_weights_of_a_package_go_to_their_places() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 4, 1))
    names = {"p_net_0_weight_to_fp16_palettized": 0, "p_net_1_weight": 1, "1_bias_to_fp16": 2, "0_bias": 3}
    shapes = [(4, 3), (4, 2, 1, 1), (4,), (4,)]
    weights = {name: np.full(shapes[index], index, np.float16) for name, index in names.items()}
    put_weights(net, {**weights, "conv2d_pad_0": np.zeros(4)})
    assert [each.unique().tolist() for each in net.parameters()] == [[0.0], [3.0], [1.0], [2.0]]
    del weights["p_net_0_weight_to_fp16_palettized"]
    with pytest.raises(ValueError, match="12 of 28 weights are not in the package"):
        put_weights(net, weights)


def test_size_counts_folders_and_weights_beside(tmp_path: Path) -> None:
    (tmp_path / "a.mlpackage/Data").mkdir(parents=True)
    (tmp_path / "a.mlpackage/Data/weight.bin").write_bytes(b"12345")
    (tmp_path / "a.onnx").write_bytes(b"12")
    (tmp_path / "a.onnx.data").write_bytes(b"345")
    assert size_of(tmp_path / "a.mlpackage") == size_of(tmp_path / "a.onnx") == 5


MISTAKES = {
    "precision=int8": "pass calibration=FOLDER, such as calibration=data/sample/labeled/train/images",
    "precision=fp64": "unknown precision 'fp64'; choose from fp32, fp16, int8",
    "precision=fp16 dtype=float16": "dtype=float16 precision=fp16: give only one of them",
    "precision=fp16 calibration=photos": "calibration=photos is for format=onnx precision=int8",
    "images=photos": "images=photos scores a file of precision=fp32, fp16 or int8: pass precision",
    "format=torchscript precision=fp16 out=x.pt": "precision=fp16 is for format=onnx or coreml",
    "format=coreml": "out=x.onnx: format=coreml writes a folder that ends in .mlpackage",
    "format=coreml out=x.mlpackage batch=2": "batch=2 is for format=onnx",
    "max_loss=-1": "max_loss=-1.0: expected 0 or more",
}


@pytest.mark.parametrize("words, expected", MISTAKES.items(), ids=MISTAKES)
def test_mistake_in_settings_of_small_files(
    words: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"checkpoint": "none", "format": "onnx", "out": "x.onnx"} | dict(
        each.split("=") for each in words.split()
    )
    err, argv = io.StringIO(), sys.argv
    monkeypatch.setattr(sys, "argv", ["export", *(f"{key}={value}" for key, value in given.items())])
    with contextlib.redirect_stderr(err):
        assert run_entry("export", run) == 2
    assert expected in err.getvalue() and err.getvalue().count("\n") == 1
    assert argv is not sys.argv


def test_missing_coremltools_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from depthany.models.files import coreml

    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(
        ValueError, match=r"format=coreml needs the package coremltools: pip install 'depthany\[coreml\]'"
    ):
        coreml.coremltools()


@pytest.mark.slow
def test_deeplab_files_are_as_small_as_stated(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime"), pytest.importorskip("coremltools")
    model = deeplab("mobilenetv2_100", 513)
    images = [np.random.default_rng(0).uniform(-1, 1, (1, 3, 513, 513)).astype(np.float32)]
    for precision, most_mb in (("fp32", 8.6), ("fp16", 4.4), ("int8", 2.4)):
        options = ExportOptions(precision=precision, size=(513, 513), batch=1, calibration=lambda: images)
        for name, form in FORMATS.items():
            if name in ("onnx", "coreml"):
                path = tmp_path / f"{precision}{form.suffix}"
                form.write(model, path, options)
                assert 0.95 * most_mb - 0.15 < size_of(path) / 1e6 <= most_mb, (precision, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "depth"])
def test_weights_read_back_are_within_a_step(kind: str, micro: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from depthany.models.files import coreml

    model = (
        deeplab("mobilenetv2_035", 65) if kind == "classes" else depth_anything(micro, input_size=56).eval()
    )
    size = (model.input_size, model.input_size)
    for precision in ("fp32", "int8"):
        path = tmp_path / f"{precision}.mlpackage"
        coreml.save_coreml(model, path, precision, size)
        graph, whole = (GraphModel(model, size=size).eval() for _ in range(2))
        coreml.put_weights(graph, coreml.read_weights(path))
        for (name, found), expected in zip(graph.named_parameters(), whole.parameters(), strict=True):
            step = (expected.max() - expected.min()) / 255 if expected.numel() >= coreml.LEAST_WEIGHTS else 0
            rounding = 1e-3 * expected.abs().max() + 1e-7  # of fp16
            limit = 0 if precision == "fp32" else step + rounding  # half a step, but for fp16 in coremltools
            assert (found - expected).abs().max() <= limit + 1e-6, (precision, name)
