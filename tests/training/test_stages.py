"""How a batch becomes a loss: who sees which view, what is summed, and that frozen things are frozen."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.features import feature_alignment_loss
from depthany.models.encoder import ENCODERS, Encoder
from depthany.models.model import DepthModel
from depthany.models.preprocess import normalise
from depthany.training.checkpoints.state import Parts
from depthany.training.optim import build_optimizer
from depthany.training.stages.base import trained_parameters, zero_fraction
from depthany.training.stages.student import StudentStage, to_unit_range
from depthany.training.stages.teacher import TeacherStage

THIRD = 1 / 3
WEIGHTS = {"labeled": THIRD, "unlabeled": THIRD, "feature": THIRD}
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


def network(seed: int) -> DepthModel:
    torch.manual_seed(seed)
    return DepthModel("micro")


def student_stage(perturb: Perturb = STRONG, frozen: Encoder | None = None, **changed) -> StudentStage:
    options = {
        "student_width": 24,
        "weights": WEIGHTS,
        "trim": 0.0,
        "alpha": 0.15,
        "mean_over": "kept",
        "frozen_input": "perturbed",
        "normalisation": "median_mad",
        "reduction": "batch",
        **changed,
    }
    return StudentStage(network(1), frozen, perturb=perturb, **options).train()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def far_encoder() -> Encoder:
    """An encoder whose tokens are nowhere near the student's, so that alpha leaves none out."""
    torch.manual_seed(7)
    encoder = Encoder("micro")
    nn.init.normal_(encoder.norm.bias, std=3.0)
    return encoder


def test_teacher_loss_is_the_affine_invariant_loss_of_the_labeled_images_alone() -> None:
    batch, model = make_batch(), network(2)
    output = TeacherStage("median_mad", "batch")(model, batch, generator())
    prediction = model(normalise(batch.labeled_image))
    torch.testing.assert_close(output.loss, affine_invariant_loss(prediction, batch.target, batch.mask))
    assert output.views["labeled"].seen is batch.labeled_image


def test_teacher_does_not_draw_from_the_generator() -> None:
    chance = generator()
    TeacherStage("median_mad", "batch")(network(2), make_batch(), chance)
    assert torch.equal(chance.get_state(), generator().get_state())


def test_student_loss_is_a_third_of_each_term_recomputed_from_the_views() -> None:
    batch, model, frozen = make_batch(), network(2), far_encoder()
    output = student_stage(COLOURS, frozen)(model, batch, generator())
    labeled, unlabeled = output.views["labeled"], output.views["unlabeled"]
    with torch.no_grad():
        tokens = model(normalise(torch.cat([labeled.seen, unlabeled.seen])), return_features=True)[1][2:]
        feature, kept = feature_alignment_loss(tokens, frozen(normalise(unlabeled.seen))[-1])
    by_hand = {
        "loss/labeled": affine_invariant_loss(labeled.prediction, batch.target, batch.mask),
        "loss/unlabeled": affine_invariant_loss(unlabeled.prediction, unlabeled.target, unlabeled.mask),
        "loss/feature": feature,
    }
    for name, value in by_hand.items():
        torch.testing.assert_close(output.parts[name].detach(), value, rtol=1e-4, atol=1e-5)
        assert value > 0
    torch.testing.assert_close(output.loss.detach(), sum(by_hand.values()) / 3, rtol=1e-4, atol=1e-5)
    assert output.parts["feature_tokens_kept"] == kept > 0


@pytest.mark.parametrize("alone", ["labeled", "unlabeled", "feature"])
def test_each_weight_weighs_its_own_term(alone: str) -> None:
    weights = {name: 0.25 if name == alone else 0.0 for name in WEIGHTS}
    output = student_stage(frozen=far_encoder(), weights=weights)(network(2), make_batch(), generator())
    torch.testing.assert_close(output.loss, 0.25 * output.parts[f"loss/{alone}"])
    assert output.loss > 0


def test_pseudo_label_is_the_teachers_answer_to_the_clean_image_though_the_student_sees_another() -> None:
    batch, stage = make_batch(), student_stage(COLOURS)
    view = stage(network(2), batch, generator()).views["unlabeled"]
    with torch.no_grad():
        of_clean, of_seen = (
            to_unit_range(stage.teacher(normalise(i))) for i in (batch.unlabeled_image, view.seen)
        )
    torch.testing.assert_close(view.target, of_clean)
    assert (view.seen != view.clean).float().mean() > 0.5
    assert (of_seen - of_clean).abs().mean() > 1e-3


def test_cutmix_pastes_the_partners_pseudo_label_where_it_pastes_its_pixels() -> None:
    batch, stage = make_batch(), student_stage(replace(NONE, cutmix_p=1.0))
    view = stage(network(2), batch, generator()).views["unlabeled"]
    pasted = (view.seen != view.clean).any(1)
    assert 0.01 < pasted.float().mean() < 0.5
    with torch.no_grad():
        clean_label = to_unit_range(stage.teacher(normalise(batch.unlabeled_image)))
    torch.testing.assert_close(view.target[~pasted], clean_label[~pasted])
    torch.testing.assert_close(view.target[pasted], clean_label.flip(0)[pasted])
    assert torch.equal(view.seen.movedim(1, 3)[pasted], view.clean.flip(0).movedim(1, 3)[pasted])


def test_same_generator_same_views_and_another_one_others() -> None:
    batch, stage, model = make_batch(), student_stage(), network(2)
    first, again, other = (stage(model, batch, generator(seed)).views["unlabeled"].seen for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labeled_images_are_never_perturbed() -> None:
    batch = make_batch()
    assert torch.equal(
        student_stage()(network(2), batch, generator()).views["labeled"].seen, batch.labeled_image
    )


def test_frozen_networks_stay_in_eval_mode_and_get_no_gradient() -> None:
    stage, model = student_stage(frozen=far_encoder()), network(2)
    stage.train()
    stage(model, make_batch(), generator()).loss.backward()
    for frozen in (stage.teacher, stage.frozen_encoder):
        assert not any(module.training for module in frozen.modules())
        assert all(not p.requires_grad and p.grad is None for p in frozen.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_frozen_networks_are_neither_in_the_optimizer_nor_in_the_checkpoint() -> None:
    stage, model = student_stage(frozen=far_encoder()), network(2)
    optimizer = build_optimizer(model, trained_parameters(stage), 1e-3, 10, 0.01, (0.9, 0.999))
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not learning & {id(parameter) for parameter in stage.parameters()}
    payload = Parts(model, stage, optimizer, torch.amp.GradScaler("cpu", enabled=False)).payload()
    assert payload["stage"] == {}
    assert payload["model"].keys() == model.state_dict().keys()


def test_weight_decay_and_steps_leave_the_frozen_networks_as_they_were() -> None:
    stage, model = student_stage(frozen=far_encoder()), network(2)
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    optimizer = build_optimizer(model, trained_parameters(stage), 1e-2, 10, 0.5, (0.9, 0.999))
    for k in range(2):
        stage(model, make_batch(), generator(k)).loss.backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.state_dict().items())


def test_an_encoder_equal_to_the_students_start_asks_for_nothing_of_the_same_view() -> None:
    model = network(2)
    twin = Encoder("micro")
    twin.load_state_dict(model.encoder.state_dict())
    stage = student_stage(COLOURS, twin, alpha=0.0)
    assert stage(model, make_batch(), generator()).parts["loss/feature"].abs() < 1e-5
    clean = student_stage(COLOURS, twin, alpha=0.0, frozen_input="clean")
    assert clean(model, make_batch(), generator()).parts["loss/feature"] > 1e-3


def test_tokens_of_labeled_images_are_not_aligned() -> None:
    batch, other = make_batch(), make_batch(labeled=1)
    losses = [
        student_stage(NONE, far_encoder())(network(2), each, generator()).parts["loss/feature"]
        for each in (
            batch,
            Batch(*(getattr(other, n) for n in ("labeled_image", "target", "mask")), batch.unlabeled_image),
        )
    ]
    torch.testing.assert_close(*losses)


def test_another_width_is_bridged_by_a_layer_that_learns_and_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ENCODERS, "wide", replace(ENCODERS["micro"], embed_dim=36))
    stage, model = student_stage(frozen=Encoder("wide")), network(2)
    optimizer = build_optimizer(model, trained_parameters(stage), 1e-3, 10, 0.0, (0.9, 0.999))
    before = stage.projection.weight.detach().clone()
    stage(model, make_batch(), generator()).loss.backward()
    optimizer.step()
    assert before.shape == (36, 24)
    assert not torch.equal(stage.projection.weight, before)
    payload = Parts(model, stage, optimizer, torch.amp.GradScaler("cpu", enabled=False)).payload()
    assert payload["stage"].keys() == {"projection.weight", "projection.bias"}
    fresh = student_stage(frozen=Encoder("wide"))
    target = Parts(
        network(5),
        fresh,
        build_optimizer(model, trained_parameters(fresh), 1e-3, 10, 0, (0.9, 0.999)),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    target.restore(payload)
    assert torch.equal(fresh.projection.weight, stage.projection.weight)


def test_without_a_frozen_encoder_there_is_no_feature_term() -> None:
    output = student_stage()(network(2), make_batch(), generator())
    assert not any("feature" in name for name in output.parts)
    expected: Tensor = (output.parts["loss/labeled"] + output.parts["loss/unlabeled"]) / 3
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("labeled, unlabeled", [(2, 0), (0, 4), (1, 1)])
def test_batches_that_lack_a_kind_give_a_finite_loss_and_gradient(labeled: int, unlabeled: int) -> None:
    model = network(2)
    output = student_stage(frozen=far_encoder())(model, make_batch(labeled, unlabeled), generator())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert output.loss > 0
    assert all(torch.isfinite(part) for part in output.parts.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert ("loss/labeled" in output.parts) == (labeled > 0), "a 0 would pull the mean in the log down"
    for name in ("loss/unlabeled", "loss/feature", "feature_tokens_kept"):
        assert (name in output.parts) == (unlabeled > 0)


def test_a_kind_that_is_lacking_adds_exactly_0() -> None:
    whole = student_stage(COLOURS, far_encoder())(network(2), make_batch(2, 4), generator())
    batch = make_batch(2, 4)
    batch.labeled_image, batch.target, batch.mask = (
        each[:0] for each in (batch.labeled_image, batch.target, batch.mask)
    )
    lacking = student_stage(COLOURS, far_encoder())(network(2), batch, generator())
    torch.testing.assert_close(lacking.loss, whole.loss - whole.parts["loss/labeled"] / 3)


@pytest.mark.parametrize("stage_name", ["teacher", "student"])
def test_an_empty_batch_has_loss_0_and_a_gradient_of_0_for_every_parameter(stage_name: str) -> None:
    model, batch = network(2), make_batch(0, 0)
    stage = TeacherStage("median_mad", "batch") if stage_name == "teacher" else student_stage(STRONG)
    output = stage(model, batch, generator())
    output.loss.backward()
    assert output.loss == 0
    assert not output.parts
    assert all(len(view.prediction) == 0 for view in output.views.values())
    used = [p for p in model.parameters() if p.grad is not None]
    assert used, "the scaler of fp16 needs gradients to look at"
    assert not any(p.grad.any() or p.grad.isnan().any() for p in used)


def test_trim_drops_the_largest_errors_of_pseudo_labels_but_not_of_labels() -> None:
    whole, trimmed = (
        student_stage(COLOURS, trim=trim)(network(2), make_batch(), generator()).parts for trim in (0.0, 0.2)
    )
    assert trimmed["loss/unlabeled"] < 0.95 * whole["loss/unlabeled"]
    torch.testing.assert_close(trimmed["loss/labeled"], whole["loss/labeled"])


def test_unknown_frozen_input_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'dirty'; choose from perturbed, clean"):
        student_stage(frozen_input="dirty")


def test_unit_range_by_hand_and_of_a_constant_map() -> None:
    maps = torch.tensor([[[2.0, 4.0], [6.0, 10.0]], [[3.0, 3.0], [3.0, 3.0]]])
    assert to_unit_range(maps).tolist() == [[[0, 0.25], [0.5, 1.0]], [[0, 0], [0, 0]]]


def test_share_of_zero_outputs_by_hand() -> None:
    assert zero_fraction(torch.tensor([[[0.0, 1e-9], [0.0, 5.0]]])) == 0.5
