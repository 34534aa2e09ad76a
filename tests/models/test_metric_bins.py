"""Metric bins: the router's decision, number formats, and what a model remembers."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from depthany import load_model
from depthany.commands.export_command import notes
from depthany.models.dpt import Pyramid
from depthany.models.fast import cast_weights
from depthany.models.files.torchscript import in_torchscript, save_torchscript
from depthany.models.heads.metric_bins import MetricBinsHead
from depthany.models.heads.metric_bins_nk import MetricBinsNKHead
from depthany.models.heads.router import DomainRouter
from depthany.models.model import DenseModel, build_model, save_model
from depthany.models.output import Quantity
from depthany.models.trained_on import TrainedOn

RANGES = {"rooms": 10.0, "streets": 65.0}
HEADS = {
    "softplus": {"name": "metric_bins", "max_depth_m": 10.0},
    "normed": {"name": "metric_bins", "max_depth_m": 10.0, "bin_centers": "normed"},
    "nk": {"name": "metric_bins_nk", "domains": RANGES},
    "nk normed": {"name": "metric_bins_nk", "domains": RANGES, "bin_centers": "normed"},
}


def bins_model(head: str, **arguments) -> DenseModel:
    """A model with the tiny encoder `micro`, whose centres are spread by random weights."""
    torch.manual_seed(0)
    model = build_model({"name": "dinov2", "size": "micro"}, head=HEADS[head] | arguments, input_size=28)
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return model.eval()


def images(count: int = 2, height: int = 28, width: int = 42) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def pyramid(count: int, features: int, p: int = 2, q: int = 3) -> Pyramid:
    draw = torch.Generator().manual_seed(2)
    sizes = [(scale * p, scale * q) for scale in (8, 4, 2, 1)]
    first, second, third, fourth = (torch.randn(count, features, *size, generator=draw) for size in sizes)
    bottleneck = torch.randn(count, features, (p + 1) // 2, (q + 1) // 2, generator=draw)
    return Pyramid(bottleneck, (first, second, third, fourth))


@pytest.mark.parametrize("features, count", [(64, 244_481), (128, 314_177), (256, 478_145)])
def test_bins_have_the_released_number_of_weights(features: int, count: int) -> None:
    def own(**arguments) -> list[Tensor]:
        with torch.device("meta"):
            head = MetricBinsHead(features, **arguments)
        return [
            t
            for name, t in head.state_dict().items()
            if name.split(".")[0] not in ("conv1", "conv2", "conv3")
        ]

    assert (sum(t.numel() for t in own()), len(own())) == (count, 46)
    assert sum(t.numel() for t in own(max_depth_m=10.0, bin_centers="normed")) == count + 3741


def split_head() -> tuple[MetricBinsNKHead, Pyramid]:
    """A head whose router sends the first of two images to rooms, the second to streets."""
    torch.manual_seed(3)
    head = MetricBinsNKHead(8, RANGES).eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    two = pyramid(2, 8)
    last = head.router.classifier[2]
    with torch.no_grad():
        gaps = head.router(head.bottleneck(two.bottleneck)) @ torch.tensor([1.0, -1.0])
        last.weight.mul_(gaps.diff().sign().neg())  # so that the first image is the more room-like
        gaps = head.router(head.bottleneck(two.bottleneck)) @ torch.tensor([1.0, -1.0])
        last.bias[0] -= gaps.mean()
    return head, two


def image_of(two: Pyramid, i: int) -> Pyramid:
    first, second, third, fourth = (level[i : i + 1] for level in two.fused)
    return Pyramid(two.bottleneck[i : i + 1], (first, second, third, fourth))


@torch.no_grad()
def test_router_decides_for_each_image() -> None:
    head, two = split_head()
    found = head(two, (28, 42))
    assert found.extra["domain_logits"].argmax(-1).tolist() == [0, 1]
    for i in range(2):
        alone = head(image_of(two, i), (28, 42))
        torch.testing.assert_close(alone.map, found.map[i : i + 1], atol=1e-5, rtol=1e-4)
        other = MetricBinsNKHead(
            8, dict(reversed(RANGES.items()))
        ).eval()  # the same bins under the other name
        other.load_state_dict(head.state_dict())
        assert (other(image_of(two, i), (28, 42)).map - alone.map).abs().max() > 0.01


@torch.no_grad()
def test_batch_vote_sends_all_images_one_way() -> None:
    head, two = split_head()
    head.vote = "batch"
    logits = head(two, (28, 42)).extra["domain_logits"]
    together = logits.sum(0).argmax().item()
    assert head.chosen(logits).tolist() == [together, together]
    maps = [head(image_of(two, i), (28, 42)).map for i in range(2)]
    same = [torch.allclose(maps[i], head(two, (28, 42)).map[i : i + 1], atol=1e-5) for i in range(2)]
    assert same == [together == 0, together == 1]


def test_normed_domains_have_their_own_far_ends() -> None:
    head = MetricBinsNKHead(8, RANGES, bin_centers="normed").eval()
    assert head._far_ends(torch.tensor([1, 0])).flatten().tolist() == [65.0, 10.0]
    with torch.no_grad():
        found = head(pyramid(2, 8), (28, 42))
    ends = [list(RANGES.values())[i] for i in found.extra["domain_logits"].argmax(-1)]
    assert all(depth.min() > 0 and depth.max() <= end for depth, end in zip(found.map, ends, strict=True))


def test_router_drops_activations_in_training_alone() -> None:
    router, bottleneck = DomainRouter(8, 2, dropout=0.1), torch.randn(1, 8, 3, 3)
    with torch.no_grad():
        assert not torch.equal(router(bottleneck), router(bottleneck))
        router.eval()
        assert torch.equal(router(bottleneck), router(bottleneck))


@pytest.mark.parametrize("head", HEADS)
def test_every_weight_learns(micro: str, head: str) -> None:
    model = bins_model(head).train()
    prediction = model(images())
    loss = prediction.map.log().mean()
    if "domain_logits" in prediction.extra:
        loss = loss + nn.functional.cross_entropy(prediction.extra["domain_logits"], torch.tensor([0, 1]))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed == (["head.conv3.weight", "head.conv3.bias"] if "nk" in head else [])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_half_precision_stays_close_and_smooth(micro: str, head: str) -> None:
    model = bins_model(head)
    exact = model(images()).map
    spread = exact.max() - exact.min()
    for dtype, share in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        with torch.autocast("cpu", dtype):
            depth_m = model(images()).map
        assert depth_m.dtype == torch.float32
        assert (depth_m - exact).abs().mean() < share * spread
    cast = cast_weights(model, torch.bfloat16)
    depth_m = cast(images().bfloat16()).map
    assert (depth_m - exact).abs().mean() < 0.05 * spread
    assert (depth_m != depth_m.bfloat16().float()).float().mean() > 0.9, "finer than bfloat16 can hold"


def test_softplus_bins_are_unbounded_and_say_their_range() -> None:
    with torch.device("meta"):
        softplus, normed = (MetricBinsHead(8, 10.0, bin_centers=kind) for kind in ("softplus", "normed"))
        both = MetricBinsNKHead(8, RANGES)
    assert softplus.quantity == Quantity("depth_m", trained_to_m=10.0)
    assert softplus.quantity.describe() == "depth in metres, trained up to 10 m"
    assert normed.quantity == Quantity("depth_m", 10.0)
    assert both.quantity == Quantity("depth_m", trained_to_m=65.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"bin_centers": "normed"}, "bin_centers=normed needs max_depth_m"),
        ({"bin_centers": "uniform"}, "unknown bin_centers 'uniform'; choose from softplus, normed"),
        ({"max_depth_m": 0.0}, "max_depth_m=0.0: expected metres above 0"),
        ({"max_depth_m": 1.0, "min_depth_m": 2.0}, "min_depth_m=2.0: expected 0 or more, and less than 1.0"),
        ({"attractors": [16, 8]}, "expected four whole numbers above 0"),
        ({"n_bins": 1}, "n_bins=1: expected 2 or more"),
        ({"min_temp": 60.0}, "expected 0 < min_temp < max_temp"),
        ({"attractor_gamma": 0}, "expected alpha of 0 or more, and an even gamma of 2 or more"),
        ({"attractor_gamma": 3}, "expected alpha of 0 or more, and an even gamma of 2 or more"),
        ({"attractor_alpha": "abc"}, "attractor_alpha='abc': expected a number"),
        ({"attractors": [16, 8, 4, "x"]}, "attractors=.*: expected four whole numbers above 0"),
        ({"attractors": 3}, "attractors=3: expected four whole numbers above 0"),
        ({"n_bins": 2.5}, "n_bins=2.5: expected a whole number"),
        ({"min_depth_m": "near"}, "min_depth_m='near': expected a number"),
    ],
)
def test_wrong_bins_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricBinsHead(8, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"domains": {"rooms": 10}}, "expected two or more, such as {rooms: 10, streets: 65}"),
        ({"domains": {"rooms": 10, "streets": -1}}, "domains.streets=-1: expected metres above 0"),
        ({"domains": ["a", "b"]}, r"domains=\['a', 'b'\]: expected two or more, such as"),
        ({"vote": "pixel"}, "unknown vote 'pixel'; choose from image, batch"),
        ({"router_dropout": 1.0}, "router_dropout=1.0: expected 0 or more, and less than 1"),
    ],
)
def test_wrong_domains_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricBinsNKHead(8, **arguments)


def test_metric_model_remembers_range_and_camera(micro: str, tmp_path: Path) -> None:
    model = bins_model("nk")
    model.trained_on = TrainedOn(("rooms", "streets"), 80.0, 168)
    save_model(model, tmp_path / "run")
    torch.save({"model": model.state_dict(), "model_config": model.config}, tmp_path / "step_1.pt")
    for source in (tmp_path / "run", tmp_path / "step_1.pt"):
        loaded = load_model(source)
        assert loaded.config == json.loads(json.dumps(model.config))
        assert loaded.trained_on == model.trained_on
        assert list(loaded.head.domains) == ["rooms", "streets"]
        with torch.no_grad():
            assert torch.equal(loaded(images()).map, model(images()).map)
    assert loaded.trained_on.describe() == "rooms and streets, focal length 80 px at a width of 168"
    model.trained_on = TrainedOn(("rooms",), 30.0, 42, canonical=True)
    save_model(model, tmp_path / "canonical")
    told = load_model(tmp_path / "canonical").trained_on.describe()
    assert "metres of a camera of focal length 30 px at a width of 42: multiply them by your focal" in told
    unit = "metres of a camera of focal length 30 px at a width of 42"
    assert notes(model, "official", tmp_path / "a.pth")[0].endswith(f"predictions are {unit}")
    assert model.quantity.describe(model.trained_on.unit()).startswith(f"depth in {unit}")
    assert not TrainedOn.from_config({"sets": ["rooms"], "focal_px": 30.0, "image_width": 42}).canonical
    assert bins_model("softplus").trained_on is None


@pytest.mark.parametrize("camera", [(80.0, None), (None, 168), (0.0, 168)])
def test_camera_needs_focal_length_and_width(camera: tuple) -> None:
    with pytest.raises(ValueError, match=r"trained_on: \w+=.*: expected pixels above 0"):
        TrainedOn(("rooms",), *camera)


@pytest.mark.parametrize(
    "head, given, reason",
    [
        (
            {"name": "metric_sigmoid", "max_depth_m": 20.0},
            80.0,
            "would stretch all depths instead of limiting",
        ),
        ({"name": "metric_bins", "max_depth_m": 10.0}, 80.0, "the range that the model was trained on"),
        ({"name": "metric_bins_nk"}, 80.0, "each of its domains has the range"),
    ],
)
def test_another_max_depth_is_refused_with_reason(
    micro: str, tmp_path: Path, head: dict, given: float, reason: str
) -> None:
    save_model(build_model({"name": "dinov2", "size": "micro"}, head=head, input_size=28), tmp_path)
    with pytest.raises(ValueError, match=rf"not {given}: leave max_depth out; .*{reason}"):
        load_model(tmp_path, max_depth_m=given)


@pytest.mark.parametrize("head", [pytest.param("normed", marks=pytest.mark.slow), "nk"])
def test_torchscript_of_bins_equals_the_model(micro: str, tmp_path: Path, head: str) -> None:
    model = bins_model(head)
    save_torchscript(model, tmp_path / "a.pt")
    for shape in ((1, 28, 28), (3, 14, 56)):
        with torch.no_grad():
            expected = model(images(*shape)).map
        found = torch.from_numpy(in_torchscript(tmp_path / "a.pt")(images(*shape)))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
