"""Start from trained weights, whole or in part; frozen parts stay as they are."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from depthany.config.entry import config_dir
from depthany.models.files.loading import load_model
from depthany.models.files.names import official_name
from depthany.models.files.official import save_official
from depthany.models.model import DenseModel, depth_anything, save_model
from depthany.training.build import build_model
from depthany.training.optim import OptimizerSettings, build_optimizer
from depthany.training.settings import ModelSettings
from depthany.training.starting_weights import INIT_PARTS

pytestmark = pytest.mark.usefixtures("micro")

IMAGE = torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
PARTS = ("encoder", "decoder", "head")


def settings(size: str = "micro", taps: str = "v1", head: dict | None = None, **changed) -> ModelSettings:
    encoder = {"name": "dinov2", "size": size, "taps": taps}
    values = {"pretrained": False, "weights": None, "init": None, "init_parts": "all", "freeze": "none"}
    return ModelSettings(encoder, {"name": "dpt"}, head or {"name": "relative"}, **{**values, **changed})


def trained(tmp_path: Path, **arguments) -> DenseModel:
    """A model with its own weights, saved in tmp_path/trained."""
    torch.manual_seed(7)
    model = depth_anything("micro", input_size=28, **arguments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(model, tmp_path / "trained")
    return model


def equal(left: DenseModel, right: DenseModel, part: str) -> bool:
    states = [model.get_submodule(part).state_dict() for model in (left, right)]
    return all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.parametrize("init_parts", INIT_PARTS)
def test_init_takes_the_named_parts(tmp_path: Path, init_parts: str) -> None:
    source = trained(tmp_path)
    model = build_model(settings(init=str(tmp_path / "trained"), init_parts=init_parts), 28)
    assert [part for part in PARTS if equal(model, source, part)] == list(INIT_PARTS[init_parts])


def test_other_taps_of_init_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path)
    with caplog.at_level("INFO"):
        build_model(settings(taps="v2", init=str(tmp_path / "trained")), 28)
    assert "the encoder is that of model.init=" in caplog.text and "warning" not in caplog.text


def test_only_the_sample_starts_from_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(config_dir()), version_base=None):
        words = ["stage=segmentation", "experiment=none", "model=vits", "data=voc"]
        assert compose("train", words).model.init is None
        assert compose("train", ["stage=segmentation"]).model.init == "outputs/student"


@pytest.mark.parametrize("name", ["metric_bins", "metric_bins_nk", "metric_sigmoid"])
def test_metric_head_starts_from_the_relative_one(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, init = trained(tmp_path), str(tmp_path / "trained")
    head = {"name": name} | ({"max_depth_m": 10.0} if name != "metric_bins_nk" else {})
    with caplog.at_level("INFO"):
        model = build_model(settings(head=head, init=init), 28)
    assert [part for part in PARTS[:2] if equal(model, source, part)] == ["encoder", "decoder"]
    taken = [f"head.conv{n}" for n in (1, 2, 3) if equal(model, source, f"head.conv{n}")]
    hidden = ["head.conv1", "head.conv2"]
    assert taken == (hidden if name == "metric_sigmoid" else [*hidden, "head.conv3"])  # conv3 gives disparity
    assert f"the head {name} starts from conv1, conv2" in caplog.text
    random = build_model(settings(head=head, init=init, init_parts="encoder"), 28)
    assert not any(equal(random, source, part) for part in ("decoder", "head.conv1"))
    assert random.quantity.kind == "depth_m"


def test_official_file_is_fine_tuned(
    start, tiny_world, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(3)
    official = depth_anything("vits", "v2")
    path = save_official(official, tmp_path / "depth_anything_v2_vits.pth")
    more = [f"model.init={path}", "steps=1", "optimizer.lr=0", "batch_size=1", "data.val.mine.root=null"]
    more += ["model.pretrained=true"]  # what init replaces is not downloaded
    with caplog.at_level("INFO"):
        ended = start(tiny_world.settings("teacher", tmp_path / "run", *more))
    assert ended.code == 0, ended.err
    assert "warning: the encoder is that of model.init=" in caplog.text
    assert "size=vits instead of micro taps=v2 instead of v1; model.init=null starts" in caplog.text
    found = load_model(tmp_path / "run")
    assert all(equal(found, official, part) for part in PARTS)
    assert found.config["encoder"]["taps"] == "v2"


def test_metric_file_lends_encoder_and_decoder(start, tiny_world, tmp_path: Path) -> None:
    source = trained(tmp_path, max_depth_m=20.0)
    more = [f"model.init={tmp_path / 'trained'}", "steps=1", "optimizer.lr=0"]
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *more))
    assert ended.code == 2
    assert "predicts depth in metres up to 20 m, expected disparity: stage=teacher learns it" in ended.err
    assert "model.init_parts=encoder+decoder" in ended.err
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *more, "model.init_parts=encoder+decoder"))
    assert ended.code == 0, ended.err
    found = load_model(tmp_path / "run")
    assert found.quantity.kind == "disparity"
    assert [part for part in PARTS[:2] if equal(found, source, part)] == ["encoder", "decoder"]


def test_missing_init_is_refused(start, tiny_world, tmp_path: Path) -> None:
    ended = start(tiny_world.settings("teacher", tmp_path / "run", "model.init=/no/such"))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "/no/such" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("freeze, frozen", [("encoder", PARTS[:1]), ("encoder+decoder", PARTS[:2])])
def test_frozen_parts_have_no_gradient(freeze: str, frozen: tuple[str, ...]) -> None:
    model = build_model(settings(freeze=freeze), 28).train()
    model(IMAGE).map.sum().backward()
    for part in PARTS:
        parameters = list(model.get_submodule(part).parameters())
        assert all(parameter.grad is None for parameter in parameters) is (part in frozen)
        assert any(parameter.grad is not None for parameter in parameters) is (part not in frozen)


def test_frozen_parts_stay_in_eval_mode() -> None:
    model = build_model(settings(freeze="encoder"), 28).train()
    assert not any(module.training for module in model.encoder.modules())
    assert model.decoder.training and model.head.training
    assert not any(module.training for module in model.eval().modules())


def test_frozen_parts_are_not_in_the_optimizer() -> None:
    model = build_model(settings(freeze="encoder+decoder"), 28)
    optimizer = build_optimizer(model, [], OptimizerSettings(1e-3))
    grouped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.head.parameters()}


def test_frozen_encoder_keeps_no_graph() -> None:
    def saved_bytes(model: DenseModel) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            levels = model.encoder(IMAGE)
        assert all((level.grad_fn is None) is bool(model.frozen_parts) for level in levels)
        return sum(sizes.values())

    assert saved_bytes(build_model(settings(freeze="encoder"), 28)) == 0
    assert saved_bytes(build_model(settings(), 28)) > 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_run_with_frozen_encoder_changes_the_rest(
    start, tiny_world, teacher_run: Path, tmp_path: Path, checkpointing: bool
) -> None:
    more = (f"model.init={teacher_run}", "model.freeze=encoder", f"activation_checkpointing={checkpointing}")
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *more))
    assert ended.code == 0, ended.err
    assert "micro (encoder frozen) on 4 labeled images" in ended.out
    models = [load_model(run) for run in (teacher_run, tmp_path / "run")]
    assert [part for part in PARTS if equal(*models, part)] == ["encoder"]


def test_frozen_encoder_cannot_be_aligned(start, tiny_world, teacher_run: Path, tmp_path: Path) -> None:
    more = [f"stage.teacher={teacher_run}", "model.freeze=encoder"]
    ended = start(tiny_world.settings("student", tmp_path / "run", *more))
    assert ended.code == 2
    assert "set stage.weights.feature=0" in ended.err
    ended = start(tiny_world.settings("student", tmp_path / "run", *more, "stage.weights.feature=0"))
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("kind", ["run", "official"])
def test_encoder_of_whole_model_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    source = trained(tmp_path)
    path = tmp_path / "trained"
    if kind == "official":
        path = tmp_path / "whole.pth"
        torch.save({official_name(name): tensor for name, tensor in source.state_dict().items()}, path)
    with caplog.at_level("WARNING"):
        model = build_model(settings(pretrained=True, weights=str(path)), 28)
    assert [part for part in PARTS if equal(model, source, part)] == ["encoder"]
    assert f"model.weights={path} is a whole depth model: only its encoder is taken" in caplog.text
    caplog.clear()
    torch.save(source.encoder.state_dict(), tmp_path / "encoder.pth")
    build_model(settings(pretrained=True, weights=str(tmp_path / "encoder.pth")), 28)
    assert not caplog.text


def test_official_file_of_any_name_starts_and_teaches(start, tiny_world, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    source = trained(tmp_path)
    torch.save({official_name(name): tensor for name, tensor in source.state_dict().items()}, path)
    quick = ["steps=1", "data.val.mine.root=null", "optimizer.lr=0"]
    named = f"{{source:{path},taps:v1}}"
    ended = start(tiny_world.settings("teacher", tmp_path / "a", *quick, f"model.init={named}"))
    assert ended.code == 0, ended.err
    assert all(equal(load_model(tmp_path / "a"), source, part) for part in PARTS)
    ended = start(tiny_world.settings("student", tmp_path / "b", *quick, f"stage.teacher={named}"))
    assert ended.code == 0, ended.err
    assert "source:" in (tmp_path / "b" / "settings.yaml").read_text()
    ended = start(tiny_world.settings("student", tmp_path / "c", *quick, f"stage.teacher={path}"))
    assert ended.code == 2
    assert f"such as stage.teacher='{{source: {path}, taps: v2}}'" in ended.err


def test_hub_id_is_looked_up_as_teacher(
    start, tiny_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(repository: str, file_name: str) -> str:
        raise ConnectionError(f"no {file_name} of {repository}")

    monkeypatch.setattr("depthany.models.files.hub._cached_or_downloaded", offline)
    monkeypatch.chdir(tmp_path)  # a checkout may have outputs/teacher
    for teacher, looked_up in (("some/model-hf", True), ("outputs/teacher", False)):
        ended = start(tiny_world.settings("student", tmp_path / "run", f"stage.teacher={teacher}"))
        assert ended.code == 2
        assert f"no teacher at stage.teacher={teacher}: train one first" in ended.err
        assert ("no config.json of some/model-hf" in ended.err) is looked_up
    assert not (tmp_path / "run").exists()
