"""One way to name a model: a path, a hub id, or a mapping."""

import logging
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from depthany import load_model
from depthany.models.files.model_source import ModelSource
from depthany.models.files.names import official_name
from depthany.models.files.weights import weights_sha256
from depthany.models.model import DenseModel, depth_anything, save_model

pytestmark = pytest.mark.usefixtures("micro")


def save_as_official(path: Path, max_depth_m: float | None = None, last_bias: float = 1.0) -> DenseModel:
    """Writes a tiny model under official names; `last_bias` moves its map up or down."""
    torch.manual_seed(0)
    model = depth_anything("micro", max_depth_m=max_depth_m).eval()
    torch.nn.init.constant_(model.head.conv3.bias, last_bias)
    torch.save({official_name(name): tensor for name, tensor in model.state_dict().items()}, path)
    return model


def test_text_and_mapping_name_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    mapping = {"source": str(path), "taps": "v1", "max_depth": 20.0}
    expected = ModelSource(str(path), "v1", 20.0, "stage.teacher")
    written = f"{{source: {path}, taps: v1, max_depth: 20.0}}"
    for value in (mapping, OmegaConf.create(mapping), written, written.replace(": ", ":")):
        assert ModelSource.of("stage.teacher", value) == expected
    assert ModelSource.of("stage.teacher", str(path), "v1", 20.0) == expected
    assert str(expected) == f"stage.teacher={path}"


def test_hash_is_of_weights_not_of_files(tmp_path: Path) -> None:
    model, paths = (
        save_as_official(tmp_path / "a.pth"),
        [tmp_path / name for name in ("a.pth", "b.safetensors")],
    )
    save_file(torch.load(paths[0]), paths[1], {"note": "other bytes"})
    hashes = {ModelSource.of("model.init", path, taps="v1").weights_sha256() for path in paths}
    assert len(hashes) == 1
    save_model(model, tmp_path / "run")
    before = ModelSource.of("model.init", str(tmp_path / "run")).weights_sha256()
    assert before == weights_sha256(model)
    torch.nn.init.constant_(model.head.conv3.bias, 2.0)
    save_model(model, tmp_path / "run")
    assert ModelSource.of("model.init", str(tmp_path / "run")).weights_sha256() != before


def test_several_models_have_taps_of_their_own() -> None:
    names = ["outputs/student", {"source": "mine.pth", "taps": "v2"}]
    found = ModelSource.several("checkpoint", OmegaConf.create(names))
    assert found == [ModelSource("outputs/student"), ModelSource("mine.pth", "v2")]
    assert [each.source for each in ModelSource.several("checkpoint", "a, b")] == ["a", "b"]
    assert ModelSource.several("checkpoint", "{source: a, taps: v1}") == [ModelSource("a", "v1")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"taps": "v2"}, "a mapping with source"),
        ({"source": "a", "tap": "v2"}, "model.init={'source': 'a', 'tap': 'v2'}: expected a path"),
        ({"source": "a", "taps": "v3"}, "unknown taps 'v3'; choose from v1, v2"),
        ({"source": "a", "max_depth": -1}, "max_depth=-1: expected metres above 0"),
        ("{source: [a}", "expected a path, a hub id, or a mapping with source"),
        ("", "model.init= is empty"),
    ],
)
def test_wrong_names_of_models_are_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError) as failure:
        ModelSource.of("model.init", value)
    assert message in str(failure.value)


def test_missing_generation_is_asked_for_by_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    save_as_official(path)
    with pytest.raises(ValueError) as failure:
        ModelSource.of("stage.teacher", str(path)).load()
    assert f"such as stage.teacher='{{source: {path}, taps: v2}}'" in str(failure.value)
    assert "for a metric file also max_depth=20" in str(failure.value)
    assert (
        ModelSource.of("stage.teacher", {"source": str(path), "taps": "v1"}).load().encoder.label == "micro"
    )


def test_hub_ids_may_exist_and_typos_do_not(tmp_path: Path) -> None:
    assert ModelSource("depth-anything/Depth-Anything-V2-Small-hf").may_exist
    assert ModelSource(str(tmp_path)).exists
    for source in ("/no/such", "my/file.pth", str(tmp_path / "x")):
        assert not ModelSource(source).may_exist


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_as_official(tmp_path / "mine.pth")
    assert load_model("~/mine.pth", taps="v1").encoder.label == "micro"


def test_metric_file_read_as_relative_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_as_official(tmp_path / "mine.pth", 20.0, last_bias=-5.0)
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path / "mine.pth", taps="v1")
        assert "mine.pth predicts 0 everywhere" in caplog.text
        assert "if it is a metric file, pass max_depth=20 (metres: Hypersim, indoors) or 80" in caplog.text
        caplog.clear()
        assert load_model(tmp_path / "mine.pth", taps="v1", max_depth_m=20.0).quantity.max_depth_m == 20.0
        assert not caplog.text


def test_relative_file_read_as_metric_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_as_official(tmp_path / "mine.pth", last_bias=200.0)
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path / "mine.pth", taps="v1")
        assert not caplog.text
        load_model(tmp_path / "mine.pth", taps="v1", max_depth_m=20.0)
    assert "mine.pth predicts 20 everywhere" in caplog.text
    assert "leave max_depth out" in caplog.text


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("x/depth_anything_v2_vitb.pth", "huggingface.co/depth-anything/Depth-Anything-V2-Base"),
        ("depth_anything_v2_metric_vkitti_vitl.pth", "Depth-Anything-V2-Metric-VKITTI-Large"),
        ("depth_anything_v2_metric_hypersim_vits.pth", "Depth-Anything-V2-Metric-Hypersim-Small"),
        ("depth_anything_vitl14.pth", "huggingface.co/spaces/LiheYoung/Depth-Anything"),
        ("depth_anything_v2_vitg.pth", "official files: huggingface.co/depth-anything"),  # never released
        ("mine.safetensors", "correct the path"),
    ],
)
def test_missing_file_says_where_to_download(name: str, page: str) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(page)):
        ModelSource(name).load()
