"""Writes a model as an ONNX graph for any batch and image size, and measures how far it is from the model."""

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.dinov2 import Dinov2
from depthany.models.fast import cast_weights
from depthany.models.model import DenseModel

OPSET = 18
CUBIC = -0.75  # the free parameter of torch's bicubic kernel
OFFSET = {"official": 0.1, "size": 0.0}  # added to the number of patches, see `encoder.resize_pos_embed`


class GraphModel(nn.Module):
    """A copy of the model whose position embeddings are computed in the graph; input and output are float32.

    Args:
        dtype: of weights and activations.
    """

    def __init__(self, model: DenseModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.model = cast_weights(copy.deepcopy(model), dtype).eval()
        encoder = self.model.encoder
        if isinstance(encoder, Dinov2):
            pos_embed, offset = encoder.pos_embed, OFFSET[encoder.pos_interpolation]
            setattr(encoder, "positions", lambda p, q: positions_in_graph(pos_embed, p, q, offset))  # noqa: B010

    def forward(self, image: Tensor) -> Tensor:
        """Returns the map [b h w] float32 of a normalised image [b 3 h w] float32."""
        prediction: Tensor = self.model(image.to(self.dtype)).map
        return prediction


def positions_in_graph(pos_embed: Tensor, p: int, q: int, offset: float) -> Tensor:
    """Computes `resize_pos_embed` [1 1+p*q c] by matrix products whose entries depend on p and q.

    The stored grid itself, which `resize_pos_embed` returns unchanged, is the case of offset 0: the kernel is
    then 1 at its centre and 0 at its neighbours.
    """
    grid = math.isqrt(pos_embed.shape[1] - 1)
    counts = torch.scalar_tensor(p), torch.scalar_tensor(q)
    is_stored = (counts[0] == grid) & (counts[1] == grid)
    offset_here = torch.where(is_stored, 0.0, offset)
    rows = cubic_matrix(p, grid, (counts[0] + offset_here) / grid)
    columns = cubic_matrix(q, grid, (counts[1] + offset_here) / grid)
    patches = pos_embed[0, 1:].float().unflatten(0, (grid, grid))  # [g g c]
    resized = torch.einsum("pi,ijc,qj->pqc", rows, patches, columns).flatten(0, 1)
    return torch.cat([pos_embed[:, :1], resized[None].to(pos_embed.dtype)], dim=1)


def cubic_matrix(count: int, grid: int, scale: Tensor) -> Tensor:
    """Returns weights w [count grid] of bicubic resampling along one axis: y[i] = sum over j of w[i, j] x[j].

    Source: Keys 1981, Cubic convolution interpolation; sample points and border as in torch: output i is
    taken at (i + 0.5) / scale - 0.5, and cells outside repeat the border.
    """
    at = (torch.arange(count) + 0.5) / scale - 0.5
    cells = torch.arange(grid)
    weights = torch.zeros(())
    for step in (-1, 0, 1, 2):
        neighbour = at.floor() + step
        is_nearest = neighbour.clamp(0, grid - 1)[:, None] == cells
        weights = weights + _keys((at - neighbour).abs())[:, None] * is_nearest
    return weights


def _keys(distance: Tensor) -> Tensor:
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1  # up to 1 cell away
    far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC  # 1 to 2 cells
    return torch.where(distance <= 1, near, far)


def save_onnx(model: DenseModel, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes the graph: `image` [batch 3 14*p 14*q] float32, ImageNet-normalised, to a map [batch 14*p 14*q].

    The output is called `disparity`, or `depth_m` for a metric model. The metadata says what
    preprocessing needs. Weights beyond 2 GB, which one ONNX file cannot hold, go to `<name>.data` beside it.
    """
    multiple = model.preprocessing.multiple
    batch, p, q = (torch.export.Dim(name, min=1) for name in ("batch", "p", "q"))
    example = torch.zeros(2, 3, 3 * multiple, 4 * multiple)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own parts
        program = torch.onnx.export(
            GraphModel(model, dtype),
            (example,),
            input_names=["image"],
            output_names=[model.quantity.kind],
            dynamic_shapes=({0: batch, 2: multiple * p, 3: multiple * q},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(_metadata(model))
    program.save(path)


def _metadata(model: DenseModel) -> dict[str, str]:
    preprocessing, max_depth_m = model.preprocessing, model.quantity.max_depth_m
    described = {
        **model.config,
        "quantity": model.quantity.kind,
        "max_depth_m": max_depth_m,
        "multiple": preprocessing.multiple,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "channels": "RGB in 0..1",
    }
    return {f"depthany.{name}": json.dumps(value) for name, value in described.items()}


def check_sizes(model: DenseModel) -> list[tuple[int, int, int]]:
    """Returns three (batch, height, width) for the comparison: the stored grid, a tall and a wide image."""
    encoder, multiple = model.encoder, model.preprocessing.multiple
    grid = math.isqrt(encoder.pos_embed.shape[1] - 1) if isinstance(encoder, Dinov2) else 4
    shapes = [(1, grid, grid), (2, grid // 2 + 1, max(1, grid // 3)), (1, max(1, grid // 2), grid + 3)]
    return [(batch, multiple * p, multiple * q) for batch, p, q in shapes]


def drift(model: DenseModel, path: Path) -> list[dict[str, Any]]:
    """Measures how far onnxruntime's maps are from PyTorch's in float32, at the `check_sizes`.

    Returns:
        Per size: `shape` (batch, height, width), and `max` and `mean` difference as a share of the range of
        PyTorch's map.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = []
    for batch, height, width in check_sizes(model):
        image = smooth_image(batch, height, width)
        with torch.inference_mode():
            expected = model(image).map.numpy()
        found = session.run(None, {"image": image.numpy()})[0]
        rows.append({"shape": (batch, height, width), **relative_difference(found, expected)})
    return rows


def relative_difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Returns the largest and mean |found - expected| as a share of the range of `expected`, inf for NaN."""
    span = float(expected.max() - expected.min())
    difference = np.abs(found.astype(np.float64) - expected) / max(span, np.finfo(np.float32).tiny)
    if found.shape != expected.shape or not np.isfinite(difference).all():
        return {"max": math.inf, "mean": math.inf}
    return {"max": float(difference.max()), "mean": float(difference.mean())}


def smooth_image(batch: int, height: int, width: int) -> Tensor:
    """Returns [b 3 h w] coloured clouds in the range of normalised photos, always the same."""
    coarse = torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
