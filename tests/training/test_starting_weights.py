"""Start from trained weights, whole or in part; frozen parts stay as they are."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from depthany.models.files.loading import load_model
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


def test_official_file_is_fine_tuned(start, tiny_world, tmp_path: Path) -> None:
    torch.manual_seed(3)
    official = depth_anything("vits", "v2")
    path = save_official(official, tmp_path / "depth_anything_v2_vits.pth")
    more = ["model.encoder.size=vits", f"model.init={path}", "steps=1", "optimizer.lr=0", "batch_size=1"]
    more += ["data.val.mine.root=null"]
    ended = start(tiny_world.settings("teacher", tmp_path / "wrong", *more))
    assert ended.code == 2
    assert "model.encoder.taps=v2; set that, or take less with model.init_parts=encoder" in ended.err
    more += ["model.encoder.taps=v2", "model.pretrained=true"]  # what init replaces is not downloaded
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *more))
    assert ended.code == 0, ended.err
    found = load_model(tmp_path / "run")
    assert all(equal(found, official, part) for part in PARTS)
    assert found.config["encoder"]["taps"] == "v2"


def test_encoder_alone_ignores_other_taps(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = depth_anything("vitt", "v2")
    save_model(source, tmp_path / "trained")
    model = build_model(settings("vitt", "v1", init=str(tmp_path / "trained"), init_parts="encoder"), 28)
    assert equal(model, source, "encoder")
    assert model.config["encoder"]["taps"] == "v1"


def test_init_of_another_size_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    for parts in INIT_PARTS:
        with pytest.raises(
            ValueError, match=r"its encoder differs: it has model.encoder.size=micro; set that"
        ):
            build_model(settings("vitt", init=str(tmp_path / "trained"), init_parts=parts), 28)


def test_init_with_another_head_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, max_depth_m=20.0)
    path = str(tmp_path / "trained")
    message = (
        r"its head predicts depth in metres up to 20 m: it has model.head.name=metric_sigmoid "
        r"model.head.max_depth_m=20.0; set that, or take less with model.init_parts=encoder\+decoder"
    )
    with pytest.raises(ValueError, match=message):
        build_model(settings(init=path), 28)
    assert build_model(settings(init=path, init_parts="encoder+decoder"), 28).quantity.kind == "disparity"


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
