"""The depth model: encoder and decoder in one module that can be saved, and used on images of any size."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from depthany.models.dpt import DPT
from depthany.models.encoder import PATCH, Encoder, patch_grid
from depthany.models.infer import infer_batch
from depthany.system.files import write_atomically

FORMAT, FORMAT_VERSION = "depthany", 1
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


class DepthModel(nn.Module):
    """Depth Anything: a DINOv2 encoder and a DPT decoder.

    Without `max_depth` it predicts disparity, known up to scale and shift; with it, depth in metres.

    Source: Yang et al. 2024 (arXiv 2401.10891) and 2024 (arXiv 2406.09414).

    Args:
        encoder: vitt, vits, vitb, vitl or vitg (see `depthany.models.encoder.ENCODERS`).
        taps: "v1" or "v2", the blocks that feed the decoder.
        pos_interpolation: "official" or "size", see `depthany.models.encoder.resize_pos_embed`.
        max_depth: metres at the far end of a metric model (20 indoors, 80 outdoors in the released ones), or
            None.
        input_size: pixels of the shorter side that it was trained at, which `infer` takes by default.

    Attributes:
        config: the arguments above as plain values; `DepthModel(**config)` builds the same model.
    """

    def __init__(
        self,
        encoder: str = "vits",
        taps: str = "v1",
        pos_interpolation: str = "official",
        max_depth: float | None = None,
        input_size: int = 518,
    ) -> None:
        super().__init__()
        _check_max_depth(max_depth)
        if isinstance(input_size, bool) or not isinstance(input_size, int) or input_size < PATCH:
            raise ValueError(f"input_size={input_size!r}: expected a whole number of pixels, {PATCH} or more")
        self.config = {
            "encoder": encoder,
            "taps": taps,
            "pos_interpolation": pos_interpolation,
            "max_depth": max_depth,
            "input_size": input_size,
        }
        self.max_depth, self.input_size = max_depth, input_size
        self.encoder = Encoder(encoder, taps, pos_interpolation)
        spec = self.encoder.spec
        self.decoder = DPT(spec.embed_dim, spec.dpt_features, spec.out_channels, max_depth)

    def forward(self, image: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Map [b h w] float32: disparity >= 0, larger is nearer, or with `max_depth` depth_m in 0..max_depth.

        Args:
            image: [b 3 h w] ImageNet-normalised RGB, h and w multiples of 14.
            return_features: also give the encoder's final normalised patch tokens [b p*q c] of the same pass.
        """
        tokens = self.encoder(image)
        output = self.decoder(tokens, *patch_grid(image))
        return (output, tokens[-1]) if return_features else output

    def infer(
        self, image: NDArray[np.uint8], input_size: int | None = None, amp: torch.dtype | None = None
    ) -> NDArray[np.float32]:
        """Disparity, or with `max_depth` depth in metres, [h w] float32 of one image at its own size.

        Args:
            image: [h w 3] uint8 RGB.
            input_size: pixels of the shorter side as the model sees it, 14 or more; None: as in training.
            amp: dtype of autocast (torch.bfloat16 is the fast choice); None computes in the type of the
                weights.

        Raises:
            ValueError: the image has another shape or type, or would be larger than the model can take.
        """
        return self.infer_batch([image], input_size, 1, amp)[0]

    def infer_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        input_size: int | None = None,
        batch_size: int = 8,
        amp: torch.dtype | None = None,
    ) -> list[NDArray[np.float32]]:
        """What `infer` gives for each image; those of equal model-input shape share a pass.

        Args:
            images: [h w 3] uint8 RGB of any sizes.
            batch_size: most images of a pass. In float32 it changes the maps by rounding alone, less than
                1e-5 of their range.
        """
        size = self.input_size if input_size is None else input_size
        return infer_batch(self, images, size, batch_size, amp)


def _check_max_depth(max_depth: float | None) -> None:
    if max_depth is None:
        return
    if isinstance(max_depth, bool) or not isinstance(max_depth, int | float) or not 0 < max_depth < math.inf:
        raise ValueError(f"max_depth={max_depth!r}: expected metres above 0, or None for disparity")


def save_model(model: DepthModel, folder: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Write `model.safetensors` and `config.json` to a folder; give the path of the weights.

    Both appear whole or not at all, the weights last: a folder with `model.safetensors` is a finished model.

    Args:
        extra: JSON-able entries for the top level of `config.json`, for example how the model was trained.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = {"format": FORMAT, "version": FORMAT_VERSION, "model": model.config}
    text = json.dumps({**own, **(extra or {}), **own}, indent=2) + "\n"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / CONFIG_NAME, lambda temporary: temporary.write_text(text))
    write_atomically(folder / WEIGHTS_NAME, lambda temporary: save_file(state, temporary))
    return folder / WEIGHTS_NAME
