"""Names of the weights: ours, those of the released Depth Anything and DINOv2 files, and Hugging Face's.

    ours      encoder.<timm's name>                 decoder.<name in dpt.py>, head.<name in heads/head.py>
    official  pretrained.<DINOv2's name>            depth_head.<...>
    HF        backbone.<Dinov2's name>              neck.<...>, head.<...>
    bins      core.core.<official>                  conv2, projectors.<...>, attractors.<...>, ...

The functions map our names to theirs; the same tables, read backwards, load their files.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from depthany.models.dinov2 import Size

Rows = tuple[tuple[str, str], ...]

# timm and DINOv2 differ only in the SwiGLU of ViT-g.
DINOV2_SWIGLU: Rows = (("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"))

HF_ENCODER: Rows = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("norm", "layernorm"),
)
HF_BLOCK: Rows = (
    ("attn.qkv", "attention.attention.qkv"),  # three matrices in the file, see `join_qkv`
    ("attn.proj", "attention.output.dense"),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
)
HF_SWIGLU: Rows = (("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.weights_out"))
QKV = ("query", "key", "value")

OFFICIAL_DECODER: Rows = (
    *((f"reduce.{i}", f"scratch.layer{i + 1}_rn") for i in range(4)),
    *((f"fuse.{i}.skip_unit", f"scratch.refinenet{i + 1}.resConfUnit1") for i in range(4)),
    *((f"fuse.{i}.unit", f"scratch.refinenet{i + 1}.resConfUnit2") for i in range(4)),
    *((f"fuse.{i}.out_conv", f"scratch.refinenet{i + 1}.out_conv") for i in range(4)),
    ("conv1", "scratch.output_conv1"),
    ("conv2", "scratch.output_conv2.0"),
    ("conv3", "scratch.output_conv2.2"),
)  # projects and resize_layers have the same names

# The layers of metric bins: pattern of our name, template of the name in the files of V1 and ZoeDepth. The
# second group of names are those of several domains.
OFFICIAL_BINS = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"bottleneck\b", "conv2"),
        (r"seed_embedding\b", "seed_projector._net"),
        (r"projectors\.(\d)", r"projectors.\1._net"),
        (r"bins\.seed\b", "seed_bin_regressor._net"),
        (r"bins\.attractors\.(\d)", r"attractors.\1._net"),
        (r"bins\.log_binomial\b", "conditional_log_binomial.mlp"),
        (r"bins\.(\w+)\.seed\b", r"seed_bin_regressors.\1._net"),
        (r"bins\.(\w+)\.attractors\.(\d)", r"attractors.\1.\2._net"),
        (r"bins\.(\w+)\.log_binomial\b", r"conditional_log_binomial.\1.mlp"),
        (r"router\.patches\b", "patch_transformer.embedding_convPxP"),
        (r"router\.encoder\b", "patch_transformer.transformer_encoder"),
        (r"router\.classifier\b", "mlp_classifier"),
    )
)

_HF_FUSION = tuple((f"fuse.{i}", f"neck.fusion_stage.layers.{3 - i}") for i in range(4))  # coarsest first
_HF_UNITS = tuple(
    row
    for ours, theirs in _HF_FUSION
    for row in (
        (f"{ours}.skip_unit", f"{theirs}.residual_layer1"),
        (f"{ours}.unit", f"{theirs}.residual_layer2"),
    )
)
HF_DECODER: Rows = (
    *((f"projects.{i}", f"neck.reassemble_stage.layers.{i}.projection") for i in range(4)),
    *((f"resize_layers.{i}", f"neck.reassemble_stage.layers.{i}.resize") for i in range(4)),
    *((f"reduce.{i}", f"neck.convs.{i}") for i in range(4)),
    *((f"{ours}.conv{n}", f"{theirs}.convolution{n}") for ours, theirs in _HF_UNITS for n in (1, 2)),
    *((f"{ours}.out_conv", f"{theirs}.projection") for ours, theirs in _HF_FUSION),
    *((f"conv{n}", f"head.conv{n}") for n in (1, 2, 3)),
)

# In the released files and without effect: the token of DINOv2's pre-training, and the skip unit of the
# coarsest fusion, which has nothing to skip to.
MASK_TOKENS = ("mask_token", "embeddings.mask_token")
_CONVS = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
OFFICIAL_UNUSED = (
    "pretrained.mask_token",
    *(f"depth_head.scratch.refinenet4.resConfUnit1.{conv}" for conv in _CONVS),
)
HF_UNUSED = (
    "backbone.embeddings.mask_token",
    *(f"neck.fusion_stage.layers.0.residual_layer1.{conv.replace('conv', 'convolution')}" for conv in _CONVS),
)


def has_swiglu(spec: Size) -> bool:
    """Whether the blocks have SwiGLU instead of GELU layers: only in ViT-g."""
    return spec.timm_name.startswith("vit_giant")


def official_name(name: str, swiglu: bool = False) -> str:
    """Returns the name in an official Depth Anything file of a weight of `DenseModel`."""
    part, rest = name.split(".", 1)
    if part == "encoder":
        return f"pretrained.{dinov2_name(rest, swiglu)}"
    return f"depth_head.{_translate(rest, OFFICIAL_DECODER)}"


def huggingface_name(name: str, swiglu: bool = False) -> str:
    """Returns the name in a `DepthAnythingForDepthEstimation` (joined qkv) of a weight of `DenseModel`."""
    part, rest = name.split(".", 1)
    if part == "encoder":
        return f"backbone.{hf_dinov2_name(rest, swiglu)}"
    return _translate(rest, HF_DECODER)


def official_bins_name(name: str, swiglu: bool = False) -> str:
    """Returns the name in a metric file of V1, or of ZoeDepth's code, of a weight of a model with bins."""
    part, rest = name.split(".", 1)
    if part != "head" or rest.split(".")[0] in ("conv1", "conv2", "conv3"):
        return f"core.core.{official_name(name, swiglu)}"
    for pattern, theirs in OFFICIAL_BINS:
        if match := pattern.match(rest):
            return match.expand(theirs) + rest[match.end() :]
    raise AssertionError(name)


def version_1_name(name: str) -> str:
    """Returns the name in one of our files of version 1, where the output convolutions were the decoder's."""
    return f"decoder.{name.removeprefix('head.')}" if name.startswith("head.") else name


def dinov2_name(name: str, swiglu: bool = False) -> str:
    """Returns the name in an official DINOv2 file of a weight of `Dinov2`."""
    block, rest = _split_block(name)
    return f"blocks.{block}.{_translate(rest, DINOV2_SWIGLU)}" if swiglu and block else name


def hf_dinov2_name(name: str, swiglu: bool = False) -> str:
    """Returns the name in a Hugging Face `Dinov2Model`, with joined qkv, of a weight of `Dinov2`."""
    block, rest = _split_block(name)
    if not block:
        return _translate(name, HF_ENCODER)
    return f"encoder.layer.{block}.{_translate(rest, (HF_BLOCK + HF_SWIGLU) if swiglu else HF_BLOCK)}"


def join_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins each block's query, key and value of a Hugging Face state dict in one tensor [3c (c)] `qkv`."""
    joined = dict(state)
    for name in state:
        if ".attention.attention.query." not in name:
            continue
        parts = [name.replace(".query.", f".{part}.") for part in QKV]
        if all(part in state for part in parts):
            joined[name.replace(".query.", ".qkv.")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reverses `join_qkv`; state: tensors by name, those of joined projections [3c ...]."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attention.attention.qkv." in name:
            parts = [name.replace(".qkv.", f".{part}.") for part in QKV]
            split |= {part: each.clone() for part, each in zip(parts, tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split


def _split_block(name: str) -> tuple[str, str]:
    """Returns number and rest of a name such as `blocks.7.norm1.bias`; an empty number outside the blocks."""
    if not name.startswith("blocks."):
        return "", name
    _, block, rest = name.split(".", 2)
    return block, rest


def _translate(name: str, rows: Rows) -> str:
    """Replaces the beginning of a name by the first matching row; only whole components match."""
    for ours, theirs in rows:
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name
