"""Any timm model as an encoder: DINOv3 and other vision transformers, ConvNeXt, ResNet and their like.

Source of the models: timm (Wightman 2019, github.com/huggingface/pytorch-image-models); DINOv3 is Siméoni et
al. 2025 (arXiv 2508.10104). Here is what dense prediction needs around them: four levels at any image size,
no weight that no level depends on, and rotary position embeddings computed from the shape of the image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from depthany.models.encoder import Encoder
from depthany.models.preprocess import Preprocessing
from depthany.models.taps import tapped_blocks
from depthany.models.timm_layout import inspect_model, residual_blocks


class TimmEncoder(Encoder):
    """A timm model without its classifier that returns four levels of features.

    A vision transformer returns the patch tokens of four blocks, each with the model's final norm applied;
    a model that normalises only after pooling has no such norm. Its image sides are multiples of its patch.
    A network of stages returns its stages at 4, 8, 16 and 32 pixels per cell; its sides are multiples of 32.

    BatchNorm (ResNet, MobileNet and others) normalises by the statistics of its process's batch in training
    mode and updates its running statistics. In eval mode, as in a frozen encoder, it normalises by the
    running statistics and does not change them. They are buffers: saved and loaded with the weights.

    Args:
        model: a name of `timm.list_models()`, with or without the tag of its pretrained weights
            ("vit_small_patch16_dinov3", "resnet18.a1_in1k"). The weights are random; nothing is downloaded.
        taps: the blocks of a transformer that feed the decoder: "v1" (the last four, the default), "v2"
            (spread over the depth), or four increasing block numbers from 0; blocks after the last of them
            are left out. None for a network of stages.

    Raises:
        ValueError: the model is unknown or has no four levels for images of any size, or taps do not fit it.
    """

    def __init__(self, model: str, taps: str | Sequence[int] | None = None) -> None:
        super().__init__()
        layout = inspect_model(model)
        indices = layout.indices
        if layout.is_transformer:
            taps = "v1" if taps is None else taps
            indices = tapped_blocks(taps, layout.depth, model)
            taps = taps if isinstance(taps, str) else list(indices)
        elif taps is not None:
            raise ValueError(
                f"taps={taps!r}: {model} is not a transformer; it always returns its levels of strides "
                f"{', '.join(map(str, layout.strides))}: leave taps out"
            )
        self.config = {"model": model, "taps": taps}
        self.label, self.widths, self.strides = model, layout.widths, layout.strides
        self.preprocessing = Preprocessing(layout.strides[-1], layout.mean, layout.std)
        self.dpt_widths = layout.dpt_widths()
        self.layout = layout
        timm_model: Any = timm.create_model(model, pretrained=False, num_classes=0, **layout.arguments)
        if isinstance(getattr(timm_model, "rope", None), RotaryEmbeddingDinoV3):
            timm_model.rope = Rope(timm_model.rope)
        self.indices = layout.prune(timm_model, indices)
        self.timm_model: Any = timm_model
        self.blocks = residual_blocks(timm_model)
        self._activation_checkpointing = False

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns four levels [b c p q], shallowest first, with c of `widths` and p, q = h, w / `strides`.

        Args:
            image: [b 3 h w] RGB, normalised as `preprocessing` says; h and w are multiples of its `multiple`.

        Raises:
            ValueError: a side of the image is not such a multiple.
        """
        h, w = image.shape[-2:]
        multiple = self.preprocessing.multiple
        if h % multiple or w % multiple or not h or not w:
            raise ValueError(f"image is ({h}, {w}); each side must be a multiple of {multiple}: resize first")
        return self.layout.levels(self.timm_model, image, self.indices)

    @property
    def activation_checkpointing(self) -> bool:
        """Whether the backward pass keeps only the inputs of blocks and computes the rest again: the same
        gradients, less memory, more time.

        Raises:
            ValueError: it is set where BatchNorm would update its running statistics twice in a step.
        """
        return self._activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, enable: bool) -> None:
        if enable and any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise ValueError(
                f"activation_checkpointing=true: {self.label} has BatchNorm, which would update its running "
                "statistics twice in a step: set activation_checkpointing=false"
            )
        self.timm_model.set_grad_checkpointing(enable)
        self._activation_checkpointing = enable

    def unused_names(self) -> set[str]:
        """Returns the names of the parts of the whole timm model that the encoder lacks: the classifier, and
        all else that no level depends on.
        """
        with torch.device("meta"):
            whole = timm.create_model(self.label, pretrained=False)
        return whole.state_dict().keys() - self.timm_model.state_dict().keys()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TimmEncoder":
        """Fills the buffers that no state dict has (relative positions, fixed biases) after `to_empty`."""
        was_meta = any(buffer.is_meta for buffer in self.buffers())
        super()._apply(fn, recurse)
        if was_meta and not any(buffer.is_meta for buffer in self.buffers()):
            for module in self.modules():
                fill: Any = getattr(module, "init_non_persistent_buffers", None)
                if fill is not None:
                    fill()
        return self


class Rope(RotaryEmbeddingDinoV3):
    """Rotary position embeddings of DINOv3, computed from the grid's shape on the device of the model.

    timm computes the coordinates on the CPU: a GPU would wait for the copy in every pass, and an ONNX graph
    would keep the grid of the image that it was exported with.

    Args:
        original: timm's embeddings, without augmentation of the coordinates, as its models have them.
    """

    periods: Tensor
    temperature: float

    def __init__(self, original: RotaryEmbeddingDinoV3) -> None:
        assert original.rotate_half and not original.aug_active and original.normalize_coords == "separate"
        super().__init__(original.dim, original.temperature)

    def get_embed(self, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Returns [p*q 2*d] float32: sines, then cosines, of the d angles of a head, patches row by row.

        The angles are 2 pi x / period. x is the centre of the patch, -1..1 along the height and along the
        width; periods are temperature ** (4 i / d) for i = 0 ... d/4 - 1. Each angle is there twice, since a
        head's first half of channels is rotated with its second half. Source: DINOv3, section 3.2.

        Args:
            shape: patches (p, q) per column and row.
        """
        assert shape is not None
        device, (p, q) = self.periods.device, shape
        powers = torch.arange(self.dim // 4, device=device) * (4 / self.dim)
        frequencies = 2 * math.pi / self.temperature**powers  # [d/4]
        y, x = ((2 * (torch.arange(n, device=device) + 0.5) / n - 1).outer(frequencies) for n in (p, q))
        both = torch.stack([y[:, None].expand(p, q, -1), x[None].expand(p, q, -1)], dim=2)  # [p q 2 d/4]
        angles = both.flatten(2).flatten(0, 1).tile(2)  # [p*q d]
        embedding = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return embedding if dtype is None else embedding.to(dtype)
