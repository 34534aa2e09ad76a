"""Prepares a trained model for inference: the same function in fewer passes over memory, and smaller numbers.

Measured with `scripts/benchmark.py inference`. What is done, and why it is left to inference:

- LayerScale goes into the layer before it, a product less per branch; as a separate parameter it trains
  better.
- bias and GELU are applied by the matrix product while its result is in the cache (CPU only).
- convolutions get channels-last weights, the layout of the tokens.
- bfloat16 weights, not autocast: autocast converts activations back and forth around every layer.
- bfloat16 attention on a CPU without AMX as plain products over blocks of rows whose scores fit the cache:
  torch's fused kernel is slower there. With AMX it is the faster one, and does not round scores to bfloat16.
"""

from typing import Any

import torch
from torch import Tensor, nn

from depthany.models.dinov2 import Dinov2
from depthany.models.model import DenseModel
from depthany.system.device import has_amx

BLOCK_SCORES = 2**20  # scores of a block of rows, all heads: 2 MB in bfloat16


def prepare_for_inference(model: DenseModel, dtype: torch.dtype = torch.float32) -> DenseModel:
    """Changes a model for good: eval mode, no gradients, no longer to be trained or saved. Returns the model.

    Args:
        dtype: type of weights and activations; torch.float32 changes the maps only by rounding. The head's
            `float32_layers` stay float32, so that the map has no steps.
    """
    model.eval().requires_grad_(False)
    encoder = model.encoder
    if isinstance(encoder, Dinov2):
        for block in encoder.blocks:
            _fold_layer_scale(block.ls1, block.attn.proj)
            _fold_layer_scale(block.ls2, block.mlp.fc2)
            block.ls1 = block.ls2 = nn.Identity()
    cast_weights(model, dtype)
    if isinstance(encoder, Dinov2) and _can_fuse(encoder.cls_token):
        for block in encoder.blocks:
            _fuse(block, everywhere=dtype == torch.bfloat16)
            if dtype == torch.bfloat16 and not has_amx():
                block.attn = BlockedAttention(block.attn)
    return model.to(memory_format=torch.channels_last)


def attention_of(model: DenseModel) -> str:
    """Returns how a prepared model computes attention: "blocks of rows", "fused" or "plain products"."""
    assert isinstance(model.encoder, Dinov2)
    attention = model.encoder.blocks[0].attn
    if isinstance(attention, BlockedAttention):
        return "blocks of rows"
    return "fused" if attention.fused_attn else "plain products"


def cast_weights(model: DenseModel, dtype: torch.dtype) -> DenseModel:
    """Casts all weights but those of the head's `float32_layers`. Returns the model itself."""
    model.to(dtype)
    for layer in model.head.float32_layers():
        layer.float()
    return model


class FusedLinear(nn.Module):
    """A linear layer and its activation in one call of oneDNN, as `torch.compile` would fuse them.

    Args:
        linear: the layer whose weights are shared.
        activation: "none" or "gelu" (the exact one).
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight, self.bias, self.activation = linear.weight, linear.bias, activation

    def forward(self, x: Tensor) -> Tensor:
        """Returns [b n c_out] of x [b n c_in]."""
        x = x.to(self.weight.dtype)  # needed only inside autocast, which ignores this call
        fused = torch.ops.mkldnn._linear_pointwise
        return fused(x, self.weight, self.bias, self.activation, [], "none")


class BlockedAttention(nn.Module):
    """Self-attention computed in blocks of rows, for use without gradients.

    Args:
        attention: timm's, without mask, norm, gate or dropout, as DINOv2 has it; its layers are shared.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.scale = attention.num_heads, attention.scale

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Returns [b n c] of x [b n c]; timm's blocks pass a mask of None."""
        assert attn_mask is None and not is_causal
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # [b heads n d], k [b heads d n]: laid out once as the products of all blocks need them
        q, k, v = qkv[0] * self.scale, qkv[1].transpose(-1, -2).contiguous(), qkv[2].contiguous()
        out = x.new_empty(b, n, self.heads, c // self.heads, dtype=q.dtype)
        rows = max(16, BLOCK_SCORES // (self.heads * n))
        for image in range(b):
            for first in range(0, n, rows):
                scores = q[image, :, first : first + rows] @ k[image]  # [heads rows n]
                out[image, first : first + rows] = (scores.softmax(-1) @ v[image]).transpose(0, 1)
        return self.proj(out.reshape(b, n, c))


@torch.no_grad()
def _fold_layer_scale(scale: Any, linear: nn.Linear) -> None:
    """gamma * (W x + b) = (gamma W) x + gamma b, row by row."""
    linear.weight.mul_(scale.gamma[:, None])
    if linear.bias is not None:
        linear.bias.mul_(scale.gamma)


def _can_fuse(weights: Tensor) -> bool:
    """Whether oneDNN computes in the type of the weights. Its operators are private to torch: a version
    without them keeps the plain layers.
    """
    if weights.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weights.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weights.dtype == torch.float32


def _fuse(block: Any, everywhere: bool) -> None:
    """Puts fused layers into a block.

    For float32 only GELU is worth it: torch's own product (MKL) is up to 8 % faster than oneDNN's; in
    bfloat16 torch copies the bias into the result first, and oneDNN is faster by 15 %.
    """
    if isinstance(getattr(block.mlp, "act", None), nn.GELU) and isinstance(block.mlp.fc1, nn.Linear):
        block.mlp.fc1 = FusedLinear(block.mlp.fc1, "gelu")
        block.mlp.act = nn.Identity()
    if everywhere:
        block.attn.qkv, block.attn.proj = FusedLinear(block.attn.qkv), FusedLinear(block.attn.proj)
        block.mlp.fc2 = FusedLinear(block.mlp.fc2)
