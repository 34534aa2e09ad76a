"""What `torch.compile` makes of a run: no break, nothing compiled twice, the numbers and names of before.

`fullgraph=True` refuses whatever has no graph of fixed shapes: a shape or a branch that depends on data, and
every wait for a device.
"""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.data.perturb_whole import change_colours
from depthany.losses.table import LOSSES, OF, weighted_terms
from depthany.models.dinov2 import Dinov2
from depthany.models.half_weights import hold_weights
from depthany.models.model import DenseModel, build_model
from depthany.system.distributed import ALONE
from depthany.training.regional import (
    LONG_STEPS,
    UsualSize,
    choose_compile,
    compile_run,
    regions_of,
    uncompiled,
)
from depthany.training.stages.base import Stage, freeze
from depthany.training.stages.student import (
    FeatureAlignmentSettings,
    ImageWeights,
    StudentSettings,
    StudentStage,
)
from depthany.training.stages.teacher import TeacherStage

pytestmark = pytest.mark.usefixtures("micro")

PLAIN = {"normalisation": "median_mad", "reduction": "batch"}
NO_COLOUR = Perturb(jitter_p=0, grayscale_p=0, blur_p=0, cutmix_p=1.0)
# torch.compile calls the cached function itself, which has the same result for the same arguments
CACHE = pytest.mark.filterwarnings("ignore:.*functools.lru_cache:UserWarning")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Each test begins with nothing compiled, and leaves nothing."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def network(seed: int, **head: Any) -> DenseModel:
    torch.manual_seed(seed)
    return build_model({"name": "dinov2", "size": "micro"}, head=head or None, input_size=28)


def student_stage() -> StudentStage:
    alignment = FeatureAlignmentSettings(0.15, "kept", "perturbed")
    terms, weights = {"affine_invariant": 1.0}, ImageWeights(1, 1, 1)
    settings = StudentSettings("student", terms, "unused", [1, 2], weights, 0.1, alignment)
    torch.manual_seed(7)
    frozen = Dinov2("micro")
    return StudentStage(settings, network(1), frozen, Dinov2("micro"), NO_COLOUR, PLAIN, ALONE.mean).train()


def batch_of(labeled: int, unlabeled: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (labeled + unlabeled, 3, 28, 28), generator=draw).to(torch.uint8)
    disparity = torch.rand(labeled, 28, 28, generator=draw)
    return Batch(images[:labeled], disparity, disparity > 0.2, images[labeled:])


def step(model: nn.Module, stage: Stage, batch: Batch, usual_size: UsualSize) -> tuple[Tensor, list[Tensor]]:
    """Returns loss and gradients."""
    with usual_size(batch):
        loss = stage(model, batch, torch.Generator().manual_seed(3)).loss
        loss.backward()
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    return loss.detach(), gradients


@CACHE
@pytest.mark.parametrize(
    "backend, checkpointing",
    [
        ("eager", False),
        pytest.param("aot_eager", False, marks=pytest.mark.slow),
        pytest.param("aot_eager", True, marks=pytest.mark.slow),
    ],
)
def test_student_step_is_compiled_once(backend: str, checkpointing: bool) -> None:
    model, stage, batch = network(2), student_stage(), batch_of(2, 4)
    names, usual_size = list(model.state_dict()), UsualSize(True)
    loss, gradients = step(model, stage, batch, usual_size)
    compile_run(model, stage, backend=backend, fullgraph=True)
    model.encoder.activation_checkpointing = checkpointing
    for stance in ("default", "fail_on_recompile"):
        with torch.compiler.set_stance(stance):
            compiled = step(model, stage, batch, usual_size)
        torch.testing.assert_close(compiled[0], loss)
        torch.testing.assert_close(compiled[1], gradients, rtol=1e-4, atol=1e-5)
    # block, decoder and head with and without gradient; losses of labeled and unlabeled images; features
    assert (graphs := torch._dynamo.utils.counters["stats"]["unique_graphs"]) == 2 * 3 + 2 + 1
    step(model, stage, batch_of(1, 2), usual_size)  # the smaller rest of a run
    uncompiled(model)(torch.zeros(1, 3, 42, 28))  # an image of a validation
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert list(model.state_dict()) == names
    copy = deepcopy(model)  # as EMA makes it
    assert all(module._compiled_call_impl is None for module in copy.modules())


@CACHE
@pytest.mark.parametrize("mixed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_one_graph(name: str, mixed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    target, kept = 0.1 + torch.rand(2, 14, 14, generator=draw), torch.rand(2, 14, 14, generator=draw) > 0.2
    prediction = torch.rand(2, 14, 14, generator=draw)
    box = torch.zeros_like(kept)
    box[:, 2:12, 3:10] = True
    options: dict[str, Any] = {"box_mask": box, "trim": 0.1, "scales": 2} if mixed else {}
    if name in OF["classes"]:
        prediction, target = torch.randn(2, 3, 14, 14, generator=draw), (3 * target).long().clamp(max=2)
        options = {"ohem_least": 50} if mixed else {}
    compiled = torch.compile(weighted_terms, backend="eager", fullgraph=True)
    arguments = ({name: 1.0}, prediction, target, kept)
    expected = weighted_terms(*arguments, **options)[0]
    assert compiled(*arguments, mean_over_ranks=ALONE.mean, **options)[0] == pytest.approx(float(expected))


def test_colours_of_a_batch_are_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depthany.data.perturb.changes_whole_batch", lambda _: True)
    aot = torch.compile(change_colours, backend="eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr("depthany.data.perturb.compiled_colours", lambda: aot)
    images = batch_of(0, 4).unlabeled_image
    plain, compiled = (
        Perturb(blur_radius=(0.1, 1.0)).colour(images, torch.Generator().manual_seed(1), None, is_compiled)
        for is_compiled in (False, True)
    )
    assert torch.equal(plain, compiled)
    assert not torch.equal(plain, images)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_block_of_inductor_gives_the_gradients() -> None:
    torch.manual_seed(0)
    block, found = Dinov2("micro").blocks[0], []
    for is_compiled in (False, True):
        if is_compiled:
            block.compile(dynamic=False, fullgraph=True)
        tokens = torch.linspace(-1, 1, 2 * 5 * 24).view(2, 5, 24).requires_grad_()
        found.append(
            [block(tokens), *torch.autograd.grad(block(tokens).square().sum(), [tokens, *block.parameters()])]
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        {"name": "metric_sigmoid", "max_depth_m": 10.0},
        {"name": "metric_bins", "max_depth_m": 10.0},
        {"name": "classes_linear", "class_names": ["a", "b"]},
        {"name": "classes_dpt", "class_names": ["a", "b"]},
    ],
    ids=lambda head: head["name"],
)
def test_head_is_one_graph(head: dict[str, Any]) -> None:
    levels = {"decoder": {"name": "levels"}} if head["name"] == "classes_linear" else {}
    torch.manual_seed(0)
    model = build_model({"name": "dinov2", "size": "micro"}, head=head, input_size=28, **levels).eval()
    image = torch.rand(1, 3, 28, 28)
    expected = model(image).map
    for region in regions_of(model):
        region.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model(image).map, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "choice, device, steps, deterministic, compiles, why",
    [
        ("auto", "cuda", LONG_STEPS, False, True, f"{LONG_STEPS} steps on cuda"),
        ("auto", "cuda", LONG_STEPS - 1, False, False, f"{LONG_STEPS - 1} steps are fewer than the"),
        ("auto", "cuda", LONG_STEPS, True, False, "deterministic=true"),
        ("auto", "cpu", 10**6, False, False, "the device is cpu"),
        (True, "cpu", 1, True, True, ""),
        (False, "cuda", 10**6, False, False, ""),
    ],
)
def test_auto_compiles_long_runs_on_gpu(
    choice: str | bool,
    device: str,
    steps: int,
    deterministic: bool,
    compiles: bool,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    chosen, line = choose_compile(choice, torch.device(device), steps, deterministic)
    assert chosen is compiles
    assert why in line and bool(line) is bool(why)


@pytest.mark.parametrize(
    "capability, triton, why", [((6, 1), object(), "too old"), ((9, 0), None, "not installed")]
)
def test_auto_needs_triton(capability, triton, why, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: triton)
    assert why in choose_compile("auto", torch.device("cuda"), LONG_STEPS)[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_give_the_bits_of_autocast(dtype: torch.dtype) -> None:
    model, image = freeze(network(0)), torch.rand(2, 3, 28, 42)
    held = deepcopy(model)
    hold_weights([held], dtype)
    with torch.autocast("cpu", dtype):
        expected, found = (each(image, with_features=True) for each in (model, held))
    assert torch.equal(expected.map, found.map)
    assert torch.equal(expected.features, found.features)
    assert held.encoder.blocks[0].mlp.fc1.weight.dtype == held.decoder.projects[0].weight.dtype == dtype
    assert held.head.conv3.weight.dtype == held.encoder.norm.weight.dtype == torch.float32


def test_out_of_memory_names_the_settings(
    start: Any, tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[int]()

    def forward(self: TeacherStage, *arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(self, *arguments)

    plain = TeacherStage.forward
    words = tiny_world.settings("teacher", tmp_path, "eval_every=0")
    with monkeypatch.context() as patch:
        patch.setattr(TeacherStage, "forward", forward)
        ended = start(words)
    assert ended.code == 2
    assert ended.err.strip() == (
        "error: memory ran out after step 3, with 6 images of 28 x 28 in a micro-batch; the step was not "
        "taken. activation_checkpointing=true (now false) takes less and continues this run; with "
        "accumulate=2 (now 1), or a smaller batch_size (now 6) or crop_size (now 28 x 28), start a new run"
    )
    assert [path.name for path in (tmp_path / "checkpoints").glob("step*")] == ["step_00000002.pt"]
    assert not (tmp_path / "model.safetensors").exists()
    assert start([*words, "activation_checkpointing=true"]).code == 0


def test_networks_alone_become_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict[str, list[Any]]()
    note = lambda self, **options: seen.setdefault("networks", []).append(options.get("options"))  # noqa: E731
    monkeypatch.setattr(nn.Module, "compile", note)

    def compiled(function: Any, **options: Any) -> Any:
        seen.setdefault("stage", []).append(options.get("options"))
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    compile_run(network(2), student_stage(), cuda_graphs=True)
    assert {option["triton.cudagraphs"] for option in seen["networks"]} == {True}
    assert set(seen["stage"]) == {None}
