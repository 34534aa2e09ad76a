"""DINOv2 as an encoder: a vision transformer that returns four levels of normalised patch tokens.

Source: Oquab et al. 2023, DINOv2 (arXiv 2304.07193); Yang et al. 2024, Depth Anything (arXiv 2401.10891) 3.3
and 4. The transformer itself is timm's; here is what Depth Anything needs around it: the table of sizes, the
taps, and position embeddings for any image size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from depthany.models.encoder import Encoder
from depthany.models.preprocess import Preprocessing
from depthany.models.strided import strided_conv
from depthany.models.taps import TAPS, tapped_blocks

PATCH = 14  # pixels per side of a patch, the same for every DINOv2 size
POS_INTERPOLATIONS = ("official", "size")
MAX_SCORES = 2**30  # 2 GB in bfloat16


@dataclass(frozen=True)
class Size:
    """One size of DINOv2, and the decoder widths that Depth Anything pairs with it.

    Attributes:
        timm_name: the timm model that it is built from.
        image_size: pixels per side of the image whose patch grid the stored position embedding has.
        dpt_features: channels F of the decoder's fusion path.
        out_channels: channels of the four decoder levels before they are brought to F, finest first.
        taps: generation -> the four blocks (0-based) whose output goes to the decoder, shallowest first.
    """

    timm_name: str
    embed_dim: int
    depth: int
    heads: int
    image_size: int
    dpt_features: int
    out_channels: tuple[int, int, int, int]
    taps: Mapping[str, tuple[int, int, int, int]]


def _spec(timm_name: str, width: tuple[int, int, int], image_size: int, dpt: tuple[int, ...]) -> Size:
    """Returns the size with (embed_dim, depth, heads) = `width` and (F, four out_channels) = `dpt`."""
    embed_dim, depth, heads = width
    taps = {generation: tapped_blocks(generation, depth, timm_name) for generation in TAPS}
    features, c1, c2, c3, c4 = dpt
    return Size(timm_name, embed_dim, depth, heads, image_size, features, (c1, c2, c3, c4), taps)


# vits to vitg: the sizes of Depth Anything V1 and V2. vitt is ours, for the bundled sample only: a DINOv2 of
# 5.5M parameters that trains on a laptop, its position grid 9 x 9 because the sample trains on crops of 126
# pixels.
SIZES: dict[str, Size] = {
    "vitt": _spec("vit_small_patch14_dinov2", (192, 12, 3), 126, (32, 24, 48, 96, 192)),
    "vits": _spec("vit_small_patch14_dinov2", (384, 12, 6), 518, (64, 48, 96, 192, 384)),
    "vitb": _spec("vit_base_patch14_dinov2", (768, 12, 12), 518, (128, 96, 192, 384, 768)),
    "vitl": _spec("vit_large_patch14_dinov2", (1024, 24, 16), 518, (256, 256, 512, 1024, 1024)),
    "vitg": _spec("vit_giant_patch14_dinov2", (1536, 40, 24), 518, (384, 1536, 1536, 1536, 1536)),
}


class Dinov2(Encoder):
    """A DINOv2 transformer without registers; its parameters have timm's names (`blocks.0.attn.qkv.weight`).

    Args:
        size: a name in `SIZES`.
        taps: "v1" (the last four blocks) or "v2" (spread over the depth).
        pos_interpolation: how position embeddings are resized, see `resize_pos_embed`.
    """

    cls_token: nn.Parameter  # [1 1 c]
    pos_embed: nn.Parameter  # [1 1+g*g c]
    blocks: Any  # nn.Sequential of timm blocks

    def __init__(self, size: str = "vits", taps: str = "v1", pos_interpolation: str = "official") -> None:
        super().__init__()
        spec = size_of(size)
        if taps not in spec.taps:
            raise ValueError(f"unknown taps {taps!r}; choose from {', '.join(spec.taps)}")
        _check_pos_interpolation(pos_interpolation)
        self.config = {"size": size, "taps": taps, "pos_interpolation": pos_interpolation}
        self.label, self.spec = size, spec
        width = spec.embed_dim
        self.widths, self.strides = (width, width, width, width), (PATCH, PATCH, PATCH, PATCH)
        self.preprocessing = Preprocessing(PATCH)
        self.dpt_widths = spec.dpt_features, spec.out_channels
        self.taps = spec.taps[taps]
        self.pos_interpolation = pos_interpolation
        vit = build_vit(spec)
        assert vit.cls_token is not None
        assert vit.pos_embed is not None
        self.cls_token, self.pos_embed = vit.cls_token, vit.pos_embed
        self.patch_embed, self.blocks, self.norm = vit.patch_embed, vit.blocks, vit.norm
        self.activation_checkpointing = False
        self._fused_attention = self.blocks[0].attn.fused_attn  # timm's choice

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns normalised patch tokens of the four tapped blocks as maps, without CLS, shallowest first.

        The last one is always the final block's: the "final features" that feature alignment compares.
        The final LayerNorm is applied to every tap, as the DINOv2 reference does for intermediate layers.

        Args:
            image: [b 3 h w] ImageNet-normalised, h and w multiples of 14.

        Returns:
            Four tensors [b c p q], p = h / 14, q = w / 14, channels last in memory.
        """
        grid = patch_grid(image)
        return [tokens.transpose(1, 2).unflatten(2, grid) for tokens in self.transform(self.embed(image))]

    def transform(self, tokens: Tensor) -> list[Tensor]:
        """Returns normalised tokens [b n c] of the four taps from input tokens [b 1+n c], for any n."""
        self.choose_attention(tokens)
        again = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        tapped = []
        for index, block in enumerate(self.blocks):
            # A block draws no random numbers (no dropout), so there is no state of a generator to preserve.
            # The whole module is called, both times: hooks on it (FSDP's) run again for the backward pass.
            if again:
                tokens = checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens)
            if index in self.taps:
                tapped.append(self.norm(tokens[:, 1:]))
        return tapped

    def embed(self, image: Tensor) -> Tensor:
        """Returns input tokens [b 1+p*q c] of an image [b 3 h w]: CLS and patches, with positions added."""
        p, q = patch_grid(image)
        patches = strided_conv(self.patch_embed.proj, image).flatten(2).transpose(1, 2)  # [b p*q c]
        tokens = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), patches], dim=1)
        return tokens + self.positions(p, q)

    def positions(self, p: int, q: int) -> Tensor:
        """Returns position embeddings [1 1+p*q c] for a grid of p x q patches."""
        return resize_pos_embed(self.pos_embed, p, q, self.pos_interpolation)

    def choose_attention(self, tokens: Tensor) -> None:
        """Uses plain matrix products, not fused attention, for bfloat16 on a CPU: 1.6 to 3 times faster.

        Measured forward and backward with 82 and 1370 tokens, torch 2.14 on AVX-512; in float32 fused is as
        good. Plain products keep the scores of all pairs of tokens, which would not fit for a panorama.
        """
        scores = tokens.shape[0] * self.spec.heads * tokens.shape[1] ** 2
        slow = tokens.device.type == "cpu" and torch.is_autocast_enabled("cpu") and scores <= MAX_SCORES
        for block in self.blocks:
            block.attn.fused_attn = self._fused_attention and not slow


def size_of(name: str) -> Size:
    """Returns the row of `SIZES`; raises a `ValueError` that lists the names if there is none."""
    if name not in SIZES:
        raise ValueError(f"unknown size of DINOv2 {name!r}; choose from {', '.join(SIZES)}")
    return SIZES[name]


def build_vit(spec: Size) -> VisionTransformer:
    """Returns timm's transformer of this size, without classifier.

    LayerScale starts at 1.0 as in the DINOv2 release code, not at timm's 1e-5. This matters only for
    training from scratch.
    """
    vit = timm.create_model(
        spec.timm_name,
        pretrained=False,
        num_classes=0,
        img_size=spec.image_size,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.heads,
        init_values=1.0,
    )
    return cast(VisionTransformer, vit)


def patch_grid(image: Tensor) -> tuple[int, int]:
    """Returns patches (p, q) per column and row of an image [b 3 h w].

    Raises:
        ValueError: a side is not a multiple of 14.
    """
    h, w = image.shape[-2:]
    if h % PATCH or w % PATCH or not h or not w:
        raise ValueError(f"image is ({h}, {w}); each side must be a multiple of {PATCH}: resize first")
    return h // PATCH, w // PATCH


def resize_pos_embed(pos_embed: Tensor, p: int, q: int, interpolation: str = "official") -> Tensor:
    """Resizes position embeddings to a grid of p x q patches, bicubic in float32, no antialiasing.

    "official" resamples by the scale factor (p + 0.1) / g, as the DINOv2 release does and as Depth Anything
    was trained; the 0.1 shifts every sample point a little. "size" resamples to the size p x q, as the
    Hugging Face port does. The stored grid itself is returned untouched by both.

    Args:
        pos_embed: [1 1+g*g c], CLS first, then a square grid row by row.

    Returns:
        [1 1+p*q c] in the type of `pos_embed`.
    """
    _check_pos_interpolation(interpolation)
    grid = math.isqrt(pos_embed.shape[1] - 1)
    if (p, q) == (grid, grid):
        return pos_embed
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:].float()
    patches = patches.transpose(1, 2).unflatten(2, (grid, grid))  # [1 c g g]
    if interpolation == "official":
        scale = ((p + 0.1) / grid, (q + 0.1) / grid)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    else:
        patches = F.interpolate(patches, size=(p, q), mode="bicubic", align_corners=False)
    assert patches.shape[-2:] == (p, q)
    return torch.cat([cls, patches.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)


def _check_pos_interpolation(interpolation: str) -> None:
    if interpolation not in POS_INTERPOLATIONS:
        choices = ", ".join(POS_INTERPOLATIONS)
        raise ValueError(f"unknown pos_interpolation {interpolation!r}; choose from {choices}")
