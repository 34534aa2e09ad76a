"""Metric files with bins: what is recognised and refused, and what other programs compute with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depthany import load_model
from depthany.models.dpt import Pyramid
from depthany.models.files.exports import FORMATS, ExportOptions
from depthany.models.files.huggingface import save_huggingface
from depthany.models.files.names import official_bins_name, official_name
from depthany.models.files.official import check_official, released_stem, save_official
from depthany.models.heads.metric_bins import MetricBinsHead
from depthany.models.heads.metric_bins_nk import MetricBinsNKHead
from depthany.models.model import DenseModel, build_model, depth_anything
from depthany.models.trained_on import TrainedOn

INDOOR = "depth_anything_metric_depth_indoor.pt"
NK = {"name": "metric_bins_nk"}


def bins_model(size: str = "vitt", **head) -> DenseModel:
    torch.manual_seed(0)
    return build_model(
        {"name": "dinov2", "size": size, "taps": "v1"}, head={"name": "metric_bins", **head}
    ).eval()


def released_state(model: DenseModel) -> dict[str, Tensor]:
    """Weights under released names, with the constants that the files carry."""
    state = {official_bins_name(name): tensor for name, tensor in model.state_dict().items()}
    log_binomial = [name.split("mlp")[0] for name in state if name.endswith("mlp.0.weight")]
    for prefix in log_binomial:
        state[f"{prefix}log_binomial_transform.k_idx"] = torch.arange(64).view(1, 64, 1, 1)
        state[f"{prefix}log_binomial_transform.K_minus_1"] = torch.full((1, 1, 1, 1), 63.0)
    return state


def same_weights(a: DenseModel, b: DenseModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def bins_keys(f: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the bins in a ViT-S file of V1's metric code, written down from it."""
    layers = {"conv2": (f, f), "seed_bin_regressor._net.0": (256, f), "seed_bin_regressor._net.2": (64, 256)}
    layers |= {"seed_projector._net.0": (128, f), "seed_projector._net.2": (128, 128)}
    for i, count in enumerate((16, 8, 4, 1)):
        layers |= {f"projectors.{i}._net.0": (128, f), f"projectors.{i}._net.2": (128, 128)}
        layers |= {f"attractors.{i}._net.0": (128, 128), f"attractors.{i}._net.2": (count, 128)}
    layers |= {"conditional_log_binomial.mlp.0": (80, 161), "conditional_log_binomial.mlp.2": (4, 80)}
    keys: dict[str, tuple[int, ...]] = {}
    for name, (out, width) in layers.items():
        keys[f"{name}.weight"], keys[f"{name}.bias"] = (out, width, 1, 1), (out,)
    transform = "conditional_log_binomial.log_binomial_transform"
    return keys | {f"{transform}.k_idx": (1, 64, 1, 1), f"{transform}.K_minus_1": (1, 1, 1, 1)}


def test_bins_file_has_released_names_and_shapes(tmp_path: Path) -> None:
    model = bins_model("vits", max_depth_m=10.0)
    content = torch.load(save_official(model, tmp_path / "mine.pth"), weights_only=True)
    state = content["model"]
    assert (list(content), len(state)) == (["model"], 287)
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith("core.core.")}
    assert found == bins_keys()
    assert state["conditional_log_binomial.log_binomial_transform.k_idx"].dtype == torch.int64
    core = {name.removeprefix("core.core.") for name in state if name.startswith("core.core.")}
    relative = {official_name(name) for name in depth_anything("vits").state_dict()}
    assert relative <= core
    loaded = load_model(tmp_path / "mine.pth", max_depth_m=10.0)
    assert same_weights(loaded, model)
    assert loaded.config == {**model.config, "input_size": 392}


@pytest.mark.parametrize("name, metres, trained", [("indoor", 10.0, "nyuv2"), ("outdoor", 80.0, "kitti")])
def test_released_name_tells_range_and_set(tmp_path: Path, name: str, metres: float, trained: str) -> None:
    model = bins_model(max_depth_m=metres)
    state = {f"module.{name}": tensor for name, tensor in released_state(model).items()}  # as DDP saves it
    path = tmp_path / f"depth_anything_metric_depth_{name}.pt"
    torch.save({"model": state, "optimizer": None, "epoch": 4}, path)
    loaded = load_model(path)
    assert same_weights(loaded, model)
    assert (loaded.quantity.max_depth_m, loaded.quantity.trained_to_m) == (None, metres)
    assert loaded.trained_on == TrainedOn((trained,))
    assert loaded.config["head"] == model.config["head"]
    assert loaded.preprocessing.input_shape(480, 640, loaded.input_size) == (392, 518)
    with pytest.raises(
        ValueError, match=rf"max_depth={metres}, not 20.0: leave max_depth out; it is the range"
    ):
        load_model(path, max_depth_m=20.0)


def test_kind_of_bins_is_that_of_the_shapes(tmp_path: Path) -> None:
    for kind in ("softplus", "normed"):
        for head in ({"bin_centers": kind, "max_depth_m": 80.0}, {"bin_centers": kind, **NK}):
            model = bins_model(**head)
            torch.save({"model": released_state(model)}, tmp_path / "mine.pt")
            metres = None if head.get("name") else 80.0
            loaded = load_model(tmp_path / "mine.pt", max_depth_m=metres)
            assert same_weights(loaded, model)
            assert loaded.config["head"] == model.config["head"]


def test_unknown_range_matters_to_normed_bins_alone(tmp_path: Path) -> None:
    torch.save(released_state(bins_model()), tmp_path / "softplus.pt")
    assert load_model(tmp_path / "softplus.pt").quantity.describe() == "depth in metres"
    torch.save(released_state(bins_model(bin_centers="normed", max_depth_m=80.0)), tmp_path / "normed.pt")
    with pytest.raises(
        ValueError, match=r"normed bins, which fill a range that the file does not say: pass max"
    ):
        load_model(tmp_path / "normed.pt")


def test_other_attractors_are_refused(tmp_path: Path) -> None:
    torch.save(released_state(bins_model(attractors=[4, 4, 2, 1])), tmp_path / INDOOR)
    with pytest.raises(
        ValueError, match=r"its attractors have \(4, 4, 2, 1\) outputs; expected one of \(16, 8, "
    ):
        load_model(tmp_path / INDOOR)


@pytest.mark.parametrize("domains", [False, True])
def test_a_midas_core_ends_in_one_line(tmp_path: Path, domains: bool) -> None:
    state = released_state(bins_model(**(NK if domains else {})))
    midas = {name: tensor for name, tensor in state.items() if not name.startswith("core.")}
    midas["core.core.pretrained.model.cls_token"] = torch.zeros(1, 1, 1024)
    torch.save({"model": midas}, tmp_path / "ZoeD_M12_NK.pt")
    kind = r"softplus bins of nyu and kitti" if domains else "softplus bins"
    with pytest.raises(
        ValueError, match=rf"ZoeDepth's head \({kind}\) on a core that is not a Depth Any"
    ) as failure:
        load_model(tmp_path / "ZoeD_M12_NK.pt")
    assert "\n" not in str(failure.value)


def test_zoedepth_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zoedepth"}))
    torch.save({"backbone.x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is a ZoeDepth of transformers, whose encoder and neck"):
        load_model(tmp_path)


def test_sigmoid_file_names_its_training_set(tmp_path: Path) -> None:
    state = {official_name(name): t for name, t in depth_anything("vitt", "v2").state_dict().items()}
    torch.save(state, tmp_path / "depth_anything_v2_metric_vkitti_vits.pth")
    loaded = load_model(tmp_path / "depth_anything_v2_metric_vkitti_vits.pth")
    assert (loaded.trained_on, loaded.quantity.max_depth_m) == (TrainedOn(("vkitti2",)), 80.0)


def test_official_code_has_released_bins_alone() -> None:
    with torch.device("meta"):
        large = bins_model("vitl", max_depth_m=80.0)
        others = {
            "only with taps=v1, but this model has taps=v2": build_model(
                {"name": "dinov2", "size": "vits", "taps": "v2"}, head={"name": "metric_bins"}
            ),
            "only attractor_alpha=300.0, but this model has 1000.0": bins_model(
                "vits", attractor_alpha=1000.0
            ),
            "only domains={'nyu': 10.0, 'kitti': 80.0}, but": bins_model(
                "vits", name="metric_bins_nk", domains={"rooms": 10.0, "streets": 65.0}
            ),
        }
        small = bins_model("vits", max_depth_m=10.0)
    assert released_stem(large) == "depth_anything_metric_depth_outdoor"
    assert released_stem(small) is None
    check_official(large, Path("depth_anything_metric_depth_outdoor.pth"))
    with pytest.raises(ValueError, match="is the released name of another model"):
        check_official(small, Path("depth_anything_metric_depth_indoor.pth"))
    for message, model in others.items():
        with pytest.raises(ValueError, match=message):
            check_official(model, Path("mine.pth"))


def test_transformers_cannot_hold_bins(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot hold bins: transformers has ZoeDepth's head only on a neck of its"
    ):
        save_huggingface(bins_model("vits"), tmp_path / "folder")


@pytest.mark.slow
@pytest.mark.parametrize("head", [{"max_depth_m": 10.0}, {"bin_centers": "normed", **NK}])
def test_graph_of_bins_computes_metres_and_says_range(micro: str, tmp_path: Path, head: dict) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    model = build_model(
        {"name": "dinov2", "size": micro}, head={"name": "metric_bins", **head}, input_size=28
    )
    model.trained_on = TrainedOn(("nyuv2",), 518.86, 640)
    livelier(model.head)  # random bins are all alike, and the comparison is with the range of the map
    FORMATS["onnx"].write(model.eval(), tmp_path / "a.onnx", ExportOptions())  # compares with PyTorch
    told = {each.key[9:]: json.loads(each.value) for each in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert (told["quantity"], told["unit"], told["larger_is_nearer"]) == ("depth_m", "m", False)
    assert (told["max_depth_m"], told["trained_to_m"]) == ((80.0, None) if "name" in head else (None, 10.0))
    assert told["trained_on"] == {
        "sets": ["nyuv2"],
        "focal_px": 518.86,
        "image_width": 640,
        "canonical": False,
    }
    assert told["head"] == model.config["head"]


# -- against transformers


def released_layer(name: str, layers: dict[str, str]) -> str:
    """Our name in a head of a weight of transformers' ZoeDepth heads."""
    for theirs, ours in layers.items():
        name = name.replace(theirs, ours)
    return name


def their_head(head: MetricBinsHead | MetricBinsNKHead, features: int) -> nn.Module:
    """transformers' head with the weights of ours."""
    transformers = pytest.importorskip("transformers")
    zoedepth = pytest.importorskip("transformers.models.zoedepth.modeling_zoedepth")
    sizes = {"fusion_hidden_size": features, "bottleneck_features": features}
    sizes["bin_centers_type"] = head.config["bin_centers"]
    layers = {
        "conv1.": "0.",
        "conv2.": "2.",
        "linear1.": "0.",
        "linear2.": "2.",
        "seed_projector": "seed_embedding",
    }
    if isinstance(head, MetricBinsNKHead):
        ranges = [
            {"name": name, "n_bins": 64, "min_depth": 1e-3, "max_depth": end}
            for name, end in head.domains.items()
        ]
        router = {"num_patch_transformer_layers": 4, "patch_transformer_hidden_size": 128}
        router |= {"patch_transformer_intermediate_size": 1024, "patch_transformer_num_attention_heads": 4}
        config = transformers.ZoeDepthConfig(**sizes, **router, bin_configurations=ranges)
        theirs = zoedepth.ZoeDepthMultipleMetricDepthEstimationHeads(config)
    else:
        ranges = [{"n_bins": 64, "min_depth": 1e-3, "max_depth": head.config["max_depth_m"]}]
        config = transformers.ZoeDepthConfig(**sizes, bin_configurations=ranges)
        theirs = zoedepth.ZoeDepthMetricDepthEstimationHead(config)
    own, state = head.state_dict(), {}
    for name in theirs.state_dict():
        state[name] = own_weight(name, own, layers)
    theirs.load_state_dict(state)
    return theirs.eval()


def own_weight(name: str, own: dict[str, Tensor], layers: dict[str, str]) -> Tensor:
    """The weight of ours that transformers calls `name`."""
    if name.startswith("conv2."):
        return own[name.replace("conv2", "bottleneck")]
    if name.startswith("patch_transformer.transformer_encoder"):
        name = name.replace("patch_transformer.transformer_encoder", "router.encoder.layers")
        for i, part in enumerate(("query.", "key.", "value.")):
            if part in name:
                return own[name.replace(part, "in_proj_")].chunk(3)[i]
        return own[name]
    name = released_layer(name, layers)
    name = name.replace("patch_transformer.embedding_convPxP", "router.patches")
    name = name.replace("mlp_classifier", "router.classifier")
    first, *rest = name.split(".")
    domain = [f"{rest.pop(0)}"] if first in ("seed_bin_regressors",) else []
    if first == "attractors" and not rest[0].isdigit():
        domain = [rest.pop(0)]
    if first == "conditional_log_binomial":
        domain = [] if rest[0] == "mlp" else [rest.pop(0)]
        rest = ["log_binomial", *rest[1:]]
    elif first.startswith("seed_bin_regressor"):
        rest = ["seed", *rest]
    elif first == "attractors":
        rest = ["attractors", *rest]
    else:
        return own[name]
    return own[".".join(["bins", *domain, *rest])]


@torch.no_grad()
def livelier(head: nn.Module) -> None:
    """Random weights with which every parameter counts, and depths of several metres."""
    draw = torch.Generator().manual_seed(5)
    for name, parameter in head.named_parameters():
        parameter.normal_(generator=draw).mul_(0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
        parameter.mul_(5.0 if name.endswith("seed.2.weight") else 2.0 if "log_binomial.2.w" in name else 1.0)


def share_of_range(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / (expected.max() - expected.min())).item()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["softplus", "normed"])
def test_domain_heads_and_router_equal_transformers(kind: str) -> None:
    head = MetricBinsNKHead(64, bin_centers=kind).eval()
    livelier(head)
    theirs, draw = their_head(head, 64), torch.Generator().manual_seed(1)
    sizes = [(28, 40), (14, 20), (7, 10), (4, 5)]
    first, second, third, fourth = (torch.randn(1, 64, 2 * h, 2 * w, generator=draw) for h, w in sizes)
    pyramid = Pyramid(torch.randn(1, 64, 4, 5, generator=draw), (first, second, third, fourth))
    size, last = (98, 140), head.router.classifier[2]
    seen = set()
    for bias in ((9.0, -9.0), (-9.0, 9.0)):
        last.bias.copy_(torch.tensor(bias))
        theirs.mlp_classifier.linear2.bias.copy_(last.bias)
        found = head(pyramid, size)
        expected, logits = theirs(head.hidden(pyramid, size), pyramid.bottleneck, pyramid.fused[::-1], None)
        torch.testing.assert_close(found.extra["domain_logits"], logits, atol=1e-5, rtol=1e-5)
        seen.add(logits.argmax().item())
        assert share_of_range(found.map, expected.squeeze(1)) < 1e-5
    assert seen == {0, 1}


class Theirs:
    """transformers' Depth Anything, whose features feed its ZoeDepth head: what its own ZoeDepth cannot be.

    Args:
        relative: a `DepthAnythingForDepthEstimation`.
        head: a `ZoeDepthMetricDepthEstimationHead`.
    """

    def __init__(self, relative: nn.Module, head: nn.Module) -> None:
        self.relative, self.head, self.kept = relative, head, {}
        fusion = relative.neck.fusion_stage.layers
        places = {"l4": relative.neck.convs[3], "hidden": relative.head.activation1}
        for name, module in {**places, **{f"r{4 - i}": layer for i, layer in enumerate(fusion)}}.items():
            module.register_forward_hook(
                lambda _, __, output, name=name: self.kept.update({name: output.clone()})
            )

    def __call__(self, image: Tensor) -> Tensor:
        """Depth [b h w]."""
        disparity = self.relative(image).predicted_depth
        levels = [self.kept[f"r{i}"] for i in (4, 3, 2, 1)]
        depth_m, _ = self.head(self.kept["hidden"], self.kept["l4"], levels, disparity)
        return depth_m.squeeze(1)


@torch.no_grad()
@pytest.mark.parametrize(
    "size, kind, sides",
    [
        ("vits", "softplus", (70, 98)),
        ("vits", "normed", (98, 70)),
        pytest.param("vits", "normed", (392, 518), marks=pytest.mark.slow),
        pytest.param("vitb", "softplus", (518, 518), marks=pytest.mark.slow),
    ],
)
def test_bins_equal_transformers_in_metres(
    tmp_path: Path, size: str, kind: str, sides: tuple[int, int]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    encoder = {"name": "dinov2", "size": size, "taps": "v1", "pos_interpolation": "size"}
    ours = build_model(encoder, head={"name": "metric_bins", "max_depth_m": 10.0, "bin_centers": kind}).eval()
    livelier(ours.head)
    relative = depth_anything(size, "v1", "size")
    relative.load_state_dict(
        {name: t for name, t in ours.state_dict().items() if name in relative.state_dict()}
    )
    folder = save_huggingface(relative, tmp_path / "relative")
    theirs = transformers.DepthAnythingForDepthEstimation.from_pretrained(folder).eval()
    image = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(2))
    expected = Theirs(theirs, their_head(ours.head, ours.decoder.features))(image)
    found = ours(image).map
    error = (found - expected).abs().max().item()
    print(f"{size} {kind} {sides}: {error:.1e} m, {share_of_range(found, expected):.1e} of the map's range")
    assert found.shape == expected.shape
    assert np.ptp(expected.numpy()) > 0.05
    assert error < 1e-5 * np.ptp(expected.numpy())
