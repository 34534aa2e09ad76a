"""How a batch becomes a loss: who sees which view, what is summed, and that frozen things are frozen."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.features import CENTERS, feature_alignment_loss
from depthany.losses.table import LOSSES
from depthany.models.dinov2 import SIZES, Dinov2
from depthany.models.encoder import patch_tokens
from depthany.models.model import DenseModel, depth_anything
from depthany.models.preprocess import Preprocessing
from depthany.training.checkpoints.state import TrainingState
from depthany.training.optim import LrFactors, OptimizerSettings, build_optimizer
from depthany.training.stages.base import (
    Stage,
    freeze,
    require_declared,
    trained_parameters,
    zero_fraction,
)
from depthany.training.stages.student import (
    FeatureAlignmentSettings,
    ImageWeights,
    StudentSettings,
    StudentStage,
    to_unit_range,
)
from depthany.training.stages.teacher import TeacherSettings, TeacherStage

THIRD = 1 / 3
TERMS = {"affine_invariant": 1.0}
LOSS_OPTIONS = {"normalisation": "median_mad", "reduction": "batch"}
normalise = Preprocessing().normalise
STRONG = Perturb(jitter_p=1.0, grayscale_p=0.5, blur_p=1.0, cutmix_p=1.0)
NONE = Perturb(jitter_p=0, grayscale_p=0, blur_p=0, cutmix_p=0)
COLOURS = replace(STRONG, cutmix_p=0)

pytestmark = pytest.mark.usefixtures("micro")


def make_batch(labeled: int = 2, unlabeled: int = 4, size: int = 28) -> Batch:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (labeled + unlabeled, 3, 4, 4), generator=draw).float()
    image = nn.functional.interpolate(image, size=size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    disparity = torch.rand(labeled, size, size, generator=draw)
    mask = torch.rand(labeled, size, size, generator=draw) < 0.8
    return Batch(image[:labeled], disparity, mask, image[labeled:])


def network(seed: int) -> DenseModel:
    torch.manual_seed(seed)
    return depth_anything("micro")


def student_settings(**changed) -> StudentSettings:
    alignment = {"alpha": 0.15, "mean_over": "kept", "frozen_input": "perturbed", "center": "none"}
    alignment |= {key: changed.pop(key) for key in alignment if key in changed}
    return StudentSettings(
        **{
            "name": "student",
            "teacher": "unused",
            "terms": TERMS,
            "ratio": [1, 2],
            "weights": ImageWeights(THIRD, THIRD, THIRD),
            "trim": 0.0,
            "feature_alignment": FeatureAlignmentSettings(**alignment),
            **changed,
        }
    )


def student_stage(perturb: Perturb = STRONG, frozen: Dinov2 | None = None, **changed) -> StudentStage:
    settings = student_settings(**changed)
    return StudentStage(settings, network(1), frozen, Dinov2("micro"), perturb, LOSS_OPTIONS).train()


def teacher_stage() -> TeacherStage:
    return TeacherStage(TeacherSettings("teacher", TERMS), LOSS_OPTIONS)


def optimizer_of(model: DenseModel, stage: Stage, lr: float = 1e-3, weight_decay: float = 0.01):
    settings = OptimizerSettings(lr, lr_factors=LrFactors(1, 10, 10), weight_decay=weight_decay)
    return build_optimizer(model, trained_parameters(stage), settings)


def state_of(model: DenseModel, stage: Stage, optimizer: torch.optim.Optimizer) -> TrainingState:
    return TrainingState(model, stage, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def far_encoder() -> Dinov2:
    """An encoder whose tokens are nowhere near the student's, so that alpha leaves none out."""
    torch.manual_seed(7)
    encoder = Dinov2("micro")
    nn.init.normal_(encoder.norm.bias, std=3.0)
    return encoder


def test_teacher_loss_is_affine_invariant_on_labeled_images() -> None:
    batch, model = make_batch(), network(2)
    output = teacher_stage()(model, batch, generator())
    prediction = model(normalise(batch.labeled_image)).map
    torch.testing.assert_close(output.loss, affine_invariant_loss(prediction, batch.target, batch.mask))
    assert output.images["labeled"].seen is batch.labeled_image


def test_teacher_does_not_draw_from_the_generator() -> None:
    chance = generator()
    teacher_stage()(network(2), make_batch(), chance)
    assert torch.equal(chance.get_state(), generator().get_state())


@pytest.mark.parametrize("center", CENTERS)
def test_student_loss_is_weighted_sum_of_terms(center: str) -> None:
    batch, model, frozen = make_batch(), network(2), far_encoder()
    output = student_stage(COLOURS, frozen, center=center)(model, batch, generator())
    labeled, unlabeled = output.images["labeled"], output.images["unlabeled"]
    with torch.no_grad():
        tokens = model(normalise(torch.cat([labeled.seen, unlabeled.seen])), with_features=True).features[2:]
        of_frozen = patch_tokens(frozen(normalise(unlabeled.seen))[-1])
        feature, kept, distance, acting = feature_alignment_loss(tokens, of_frozen, center=center)
    by_hand = {
        "loss/labeled": affine_invariant_loss(labeled.prediction, batch.target, batch.mask),
        "loss/unlabeled": affine_invariant_loss(unlabeled.prediction, unlabeled.target, unlabeled.mask),
        "loss/feature": feature,
    }
    for name, value in by_hand.items():
        torch.testing.assert_close(output.scalars[name].detach(), value, rtol=1e-4, atol=1e-5)
        assert value > 0
    torch.testing.assert_close(output.loss.detach(), sum(by_hand.values()) / 3, rtol=1e-4, atol=1e-5)
    assert output.scalars["feature_alignment/tokens_kept"] == kept > 0
    assert output.scalars["feature_alignment/steps_acting"] == acting == 1
    torch.testing.assert_close(
        output.distributions["feature_alignment/distance"], distance, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["labeled", "unlabeled", "feature"])
def test_each_weight_weighs_its_own_term(kind: str) -> None:
    weights = {"labeled": 0.25, "unlabeled": 0.5, "feature": 0.125}
    losses = list[torch.Tensor]()
    for more in (0.0, 1.0):
        changed = ImageWeights(**weights | {kind: weights[kind] + more})
        stage = student_stage(frozen=far_encoder(), weights=changed)
        output = stage(network(2), make_batch(), generator())
        losses.append(output.loss)
    torch.testing.assert_close(losses[1] - losses[0], output.scalars[f"loss/{kind}"])
    assert losses[1] > losses[0] > 0


def test_teacher_labels_the_clean_image() -> None:
    batch, stage = make_batch(), student_stage(COLOURS)
    view = stage(network(2), batch, generator()).images["unlabeled"]
    with torch.no_grad():
        of_clean, of_seen = (
            to_unit_range(stage.teacher(normalise(i)).map) for i in (batch.unlabeled_image, view.seen)
        )
    torch.testing.assert_close(view.target, of_clean)
    assert (view.seen != view.clean).float().mean() > 0.5
    assert (of_seen - of_clean).abs().mean() > 1e-3


def test_cutmix_pastes_pixels_and_pseudo_label_alike() -> None:
    batch, stage = make_batch(), student_stage(replace(NONE, cutmix_p=1.0))
    view = stage(network(2), batch, generator()).images["unlabeled"]
    pasted = (view.seen != view.clean).any(1)
    assert 0.01 < pasted.float().mean() < 0.5
    with torch.no_grad():
        clean_label = to_unit_range(stage.teacher(normalise(batch.unlabeled_image)).map)
    torch.testing.assert_close(view.target[~pasted], clean_label[~pasted])
    torch.testing.assert_close(view.target[pasted], clean_label.flip(0)[pasted])
    assert torch.equal(view.seen.movedim(1, 3)[pasted], view.clean.flip(0).movedim(1, 3)[pasted])


def test_generator_decides_the_views() -> None:
    batch, stage, model = make_batch(), student_stage(), network(2)
    first, again, other = (
        stage(model, batch, generator(seed)).images["unlabeled"].seen for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labeled_images_are_never_perturbed() -> None:
    batch = make_batch()
    assert torch.equal(
        student_stage()(network(2), batch, generator()).images["labeled"].seen, batch.labeled_image
    )


def test_frozen_networks_are_in_eval_without_gradient() -> None:
    stage, model = student_stage(frozen=far_encoder()), network(2)
    stage.train()
    stage(model, make_batch(), generator()).loss.backward()
    for frozen in (stage.teacher, stage.frozen_encoder):
        assert not any(module.training for module in frozen.modules())
        assert all(not p.requires_grad and p.grad is None for p in frozen.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_frozen_networks_are_not_optimized_nor_saved() -> None:
    stage, model = student_stage(frozen=far_encoder()), network(2)
    optimizer = optimizer_of(model, stage)
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not learning & {id(parameter) for parameter in stage.parameters()}
    payload = state_of(model, stage, optimizer).payload()
    assert payload["stage"] == {}
    assert payload["model"].keys() == model.state_dict().keys()


def test_steps_do_not_change_frozen_networks() -> None:
    stage, model = student_stage(frozen=far_encoder()), network(2)
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    optimizer = optimizer_of(model, stage, lr=1e-2, weight_decay=0.5)
    for k in range(2):
        stage(model, make_batch(), generator(k)).loss.backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.state_dict().items())


def test_equal_encoders_have_no_feature_loss() -> None:
    model = network(2)
    twin = Dinov2("micro")
    twin.load_state_dict(model.encoder.state_dict())
    stage = student_stage(COLOURS, twin, alpha=0.0)
    assert stage(model, make_batch(), generator()).scalars["loss/feature"].abs() < 1e-5
    centered = student_stage(COLOURS, twin, alpha=0.0, center="mean")
    assert centered(model, make_batch(), generator()).scalars["loss/feature"].abs() < 1e-5
    clean = student_stage(COLOURS, twin, alpha=0.0, frozen_input="clean")
    assert clean(model, make_batch(), generator()).scalars["loss/feature"] > 1e-3


def test_clean_frozen_view_has_the_same_boxes() -> None:
    model, twin = network(2), Dinov2("micro")
    twin.load_state_dict(model.encoder.state_dict())
    boxes = replace(NONE, cutmix_p=1.0, cutmix_area=(0.3, 0.4))
    clean = student_stage(boxes, twin, alpha=0.0, frozen_input="clean")
    assert clean(model, make_batch(), generator()).scalars["loss/feature"].abs() < 1e-5


def test_tokens_of_labeled_images_are_not_aligned() -> None:
    batch, other = make_batch(), make_batch(labeled=1)
    losses = [
        student_stage(NONE, far_encoder())(network(2), each, generator()).scalars["loss/feature"]
        for each in (
            batch,
            Batch(*(getattr(other, n) for n in ("labeled_image", "target", "mask")), batch.unlabeled_image),
        )
    ]
    torch.testing.assert_close(*losses)


def test_projection_between_widths_learns_and_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SIZES, "wide", replace(SIZES["micro"], embed_dim=36))
    stage, model = student_stage(frozen=Dinov2("wide")), network(2)
    optimizer = optimizer_of(model, stage, weight_decay=0.0)
    before = stage.projection.weight.detach().clone()
    stage(model, make_batch(), generator()).loss.backward()
    optimizer.step()
    assert before.shape == (36, 24)
    assert not torch.equal(stage.projection.weight, before)
    payload = state_of(model, stage, optimizer).payload()
    assert payload["stage"].keys() == {"projection.weight", "projection.bias"}
    fresh = student_stage(frozen=Dinov2("wide"))
    model = network(5)
    target = state_of(model, fresh, optimizer_of(model, fresh))
    target.restore(payload)
    assert torch.equal(fresh.projection.weight, stage.projection.weight)


def test_no_feature_term_without_frozen_encoder() -> None:
    output = student_stage()(network(2), make_batch(), generator())
    assert not any("feature" in name for name in output.scalars)
    expected: Tensor = (output.scalars["loss/labeled"] + output.scalars["loss/unlabeled"]) / 3
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("labeled, unlabeled", [(2, 0), (0, 4), (1, 1)])
def test_batch_without_one_kind_has_finite_gradient(labeled: int, unlabeled: int) -> None:
    model = network(2)
    output = student_stage(frozen=far_encoder())(model, make_batch(labeled, unlabeled), generator())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert output.loss > 0
    assert all(torch.isfinite(part) for part in output.scalars.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert ("loss/labeled" in output.scalars) == (labeled > 0), "a 0 would pull the mean in the log down"
    for name in ("loss/unlabeled", "loss/feature", "feature_alignment/tokens_kept"):
        assert (name in output.scalars) == (unlabeled > 0)
    assert ("feature_alignment/distance" in output.distributions) == (unlabeled > 0)


def test_missing_kind_adds_exactly_0() -> None:
    whole = student_stage(COLOURS, far_encoder())(network(2), make_batch(2, 4), generator())
    batch = make_batch(2, 4)
    batch.labeled_image, batch.target, batch.mask = (
        each[:0] for each in (batch.labeled_image, batch.target, batch.mask)
    )
    lacking = student_stage(COLOURS, far_encoder())(network(2), batch, generator())
    torch.testing.assert_close(lacking.loss, whole.loss - whole.scalars["loss/labeled"] / 3)


@pytest.mark.parametrize("stage_name", ["teacher", "student"])
def test_empty_batch_has_loss_and_gradient_0(stage_name: str) -> None:
    model, batch = network(2), make_batch(0, 0)
    stage = teacher_stage() if stage_name == "teacher" else student_stage(STRONG)
    output = stage(model, batch, generator())
    output.loss.backward()
    assert output.loss == 0
    assert not output.scalars
    assert all(len(view.prediction) == 0 for view in output.images.values())
    used = [p for p in model.parameters() if p.grad is not None]
    assert used, "the scaler of fp16 needs gradients to look at"
    assert not any(p.grad.any() or p.grad.isnan().any() for p in used)


def test_trim_applies_to_pseudo_labels_only() -> None:
    whole, trimmed = (
        student_stage(COLOURS, trim=trim)(network(2), make_batch(), generator()).scalars
        for trim in (0.0, 0.2)
    )
    assert trimmed["loss/unlabeled"] < 0.95 * whole["loss/unlabeled"]
    torch.testing.assert_close(trimmed["loss/labeled"], whole["loss/labeled"])


def test_tokens_of_another_stride_are_refused() -> None:
    frozen = Dinov2("micro")
    frozen.strides = (16, 16, 16, 16)
    with pytest.raises(
        ValueError, match=r"encoder=micro has one token for 16 pixels a side, .* for 14: choose"
    ):
        student_stage(frozen=frozen)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio=\[0, 0\]: expected two shares"):
        student_settings(ratio=[0, 0])
    for weights, message in (
        (ImageWeights(0, 0.5, 0.5), "weights.labeled=0 learns nothing"),
        (ImageWeights(1, 0, 0), "weights.feature=0 learn nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            student_settings(ratio=[1, 2], weights=weights)
    with pytest.raises(ValueError, match=r"terms: unknown loss 'l3'; choose from affine_invariant"):
        student_settings(terms={"l3": 1.0})


class Holder(Stage):
    """A stage that holds a network and declares it as it is told."""

    def __init__(self, network: nn.Module, frozen: bool = False, trained: bool = False) -> None:
        super().__init__()
        self.network = network
        self.declared = {"frozen": frozen, "trained": trained}

    def frozen(self) -> dict[str, nn.Module]:
        return {"network": self.network} if self.declared["frozen"] else {}

    def trained(self) -> dict[str, nn.Module]:
        return {"network": self.network} if self.declared["trained"] else {}


def test_networks_of_a_stage_must_be_declared() -> None:
    require_declared(Holder(nn.Linear(2, 2), trained=True))
    require_declared(Holder(freeze(nn.Linear(2, 2)), frozen=True))
    with pytest.raises(ValueError, match=r"Holder.network.weight has a gradient but would not be trained"):
        require_declared(Holder(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"network.weight has a gradient but would not be trained"):
        require_declared(Holder(nn.Linear(2, 2), frozen=True))
    with pytest.raises(ValueError, match=r"Holder.network.weight is frozen: return its network from frozen"):
        require_declared(Holder(freeze(nn.Linear(2, 2)), trained=True))


def test_buffers_of_trained_networks_are_saved_and_restored() -> None:
    stage, model = Holder(nn.BatchNorm1d(3), trained=True).train(), network(2)
    stage.network(torch.randn(8, 3, generator=generator()))
    payload = state_of(model, stage, optimizer_of(model, stage)).payload()
    assert "network.running_mean" in payload["stage"]
    fresh = Holder(nn.BatchNorm1d(3), trained=True)
    state_of(model, fresh, optimizer_of(model, fresh)).restore(payload)
    assert torch.equal(fresh.network.running_mean, stage.network.running_mean)
    assert fresh.network.running_mean.abs().sum() > 0


def test_several_terms_are_logged_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def mae(prediction, target, mask, *, mean_over_ranks):
        return torch.where(mask, (prediction - target).abs(), 0).sum() / mean_over_ranks(mask.sum())

    monkeypatch.setitem(LOSSES, "mae", mae)
    terms = {"affine_invariant": 1.0, "mae": 0.5}
    scalars = student_stage(terms=terms)(network(2), make_batch(), generator()).scalars
    for kind in ("labeled", "unlabeled"):
        total = scalars[f"loss/{kind}/affine_invariant"] + 0.5 * scalars[f"loss/{kind}/mae"]
        torch.testing.assert_close(scalars[f"loss/{kind}"], total)


def test_unit_range_by_hand() -> None:
    maps = torch.tensor([[[2.0, 4.0], [6.0, 10.0]], [[3.0, 3.0], [3.0, 3.0]]])
    assert to_unit_range(maps).tolist() == [[[0, 0.25], [0.5, 1.0]], [[0, 0], [0, 0]]]


def test_share_of_zero_outputs_by_hand() -> None:
    assert zero_fraction(torch.tensor([[[0.0, 1e-9], [0.0, 5.0]]])) == 0.5
