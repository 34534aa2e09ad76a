"""Writes a model as an ONNX graph, and measures how far a graph is from the model."""

import copy
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.atrous_encoder import AtrousEncoder, pad_symmetrically
from depthany.models.dinov2 import Dinov2
from depthany.models.fast import cast_weights
from depthany.models.files.folding import fold_batch_norm
from depthany.models.model import DenseModel
from depthany.models.strided import PatchProduct

FOLDING_SIDE = 64  # pixels of the image that shows which layer follows which
OPSET = 18  # version that the exporter writes; others are converted from it
CUBIC = -0.75  # the free parameter of torch's bicubic kernel
SIZE_RULE = (
    "scale so that the shorter side is input_size, then round each side to the nearest multiple, or up if "
    "the nearest one is below input_size"
)
OFFSET = {"official": 0.1, "size": 0.0}  # added to the number of patches, see `encoder.resize_pos_embed`


class GraphModel(nn.Module):
    """A copy of the model whose position embeddings are computed in the graph; input and output are float32.

    In a dilated CNN, BatchNorm is folded into the convolutions, and where possible padding ignores the size.

    Args:
        dtype: type of weights and activations.
        size: (height, width) of the only input size, with constant position embeddings; None: any.
    """

    def __init__(
        self, model: DenseModel, dtype: torch.dtype = torch.float32, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.dtype = dtype
        own = copy.deepcopy(model).float().eval().requires_grad_(False)
        if isinstance(own.encoder, AtrousEncoder):
            fold_batch_norm(own, torch.zeros(1, 3, FOLDING_SIDE, FOLDING_SIDE))
            if size is not None and own.encoder.is_symmetric_at(size):
                pad_symmetrically(own.encoder)
        self.model = cast_weights(own, dtype)
        encoder = self.model.encoder
        if not isinstance(encoder, Dinov2):
            return
        if size is None:
            pos_embed, offset = encoder.pos_embed, OFFSET[encoder.pos_interpolation]
            setattr(encoder, "positions", lambda p, q: positions_in_graph(pos_embed, p, q, offset))  # noqa: B010
            encoder.patch_embed.proj = PatchProduct(encoder.patch_embed.proj)
        else:
            multiple = model.preprocessing.multiple
            fixed = encoder.positions(size[0] // multiple, size[1] // multiple).detach()
            setattr(encoder, "positions", lambda p, q: fixed)  # noqa: B010

    def forward(self, image: Tensor) -> Tensor:
        """Returns the map [b h w] float32 of a normalised image [b 3 h w] float32."""
        prediction: Tensor = self.model(image.to(self.dtype)).map
        return prediction


def positions_in_graph(pos_embed: Tensor, p: int, q: int, offset: float) -> Tensor:
    """Computes `resize_pos_embed` [1 1+p*q c] of pos_embed [1 1+n*n c] by matrix products that know p and q.

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


def save_onnx(
    model: DenseModel,
    path: Path,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    opset: int = OPSET,
) -> None:
    """Writes the graph: `image` [batch 3 14*p 14*q] float32, ImageNet-normalised, to a map [batch 14*p 14*q].

    The output is called `disparity`, or `depth_m` for a metric model. The metadata says what
    preprocessing needs, see `description`. Weights beyond 2 GB, which one ONNX file cannot hold, go to
    `<name>.data` beside it.

    Args:
        dtype: type of weights and activations.
        size: (height, width) of the only input size; None: any multiples of the patch size.
        batch: the only number of images; None: any.
        opset: version of the ONNX operators.

    Raises:
        ValueError: the graph cannot be converted to `opset`.
    """
    multiple = model.preprocessing.multiple
    height, width = size or (3 * multiple, 4 * multiple)
    dynamic: dict[int, Any] = {} if batch else {0: torch.export.Dim("batch", min=1)}
    if size is None:
        p, q = (torch.export.Dim(name, min=1) for name in ("p", "q"))
        dynamic |= {2: multiple * p, 3: multiple * q}
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            GraphModel(model, dtype, size),
            (torch.zeros(batch or 2, 3, height, width),),
            input_names=["image"],
            output_names=[model.quantity.kind],
            dynamic_shapes=(dynamic,),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    written = program.model.opset_imports[""]
    if written != opset:
        raise ValueError(f"opset={opset}: this model can only be written with operators of opset={written}")
    described = description(model, size, batch)
    program.model.metadata_props.update(
        {f"depthany.{name}": json.dumps(value) for name, value in described.items()}
    )
    program.save(path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences what the exporter says about its own parts; the result is checked afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def description(
    model: DenseModel, size: tuple[int, int] | None = None, batch: int | None = None
) -> dict[str, Any]:
    """Returns what a program needs to use an exported model, as JSON-able values; see docs/exports.md.

    Args:
        size: (height, width) of the only input size; None: any.
        batch: the only number of images; None: any.
    """
    preprocessing, quantity = model.preprocessing, model.quantity
    is_classes = quantity.kind == "classes"
    classes = {key: value for key, value in quantity.to_config().items() if key.startswith("class_")}
    return {
        "trained_on": None,
        **model.config,
        "quantity": quantity.kind,
        "unit": "m" if quantity.is_metric else None,
        "larger_is_nearer": quantity.larger_is_nearer,
        "max_depth_m": quantity.max_depth_m,
        "trained_to_m": quantity.trained_to_m,
        "size": size and list(size),
        "batch": batch,
        "multiple": preprocessing.multiple,
        "size_rule": SIZE_RULE if size is None else "both sides as in size",
        "resize": {"kernel": "bicubic", "a": CUBIC, "antialias": False, "align_corners": False},
        "channels": "RGB in 0..1",
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "resize_output": {"kernel": "bilinear", "align_corners": getattr(model.head, "align_corners", True)},
        **(classes if is_classes else {}),
    }


def check_sizes(
    model: DenseModel, size: tuple[int, int] | None = None, batch: int | None = None
) -> list[tuple[int, int, int]]:
    """Returns the (batch, height, width) of the comparison: the stored grid, a tall and a wide image.

    Args:
        size, batch: the only ones that the graph takes; None: any.
    """
    encoder, multiple = model.encoder, model.preprocessing.multiple
    grid = math.isqrt(encoder.pos_embed.shape[1] - 1) if isinstance(encoder, Dinov2) else 4
    cells = [(grid, grid), (grid // 2 + 1, max(1, grid // 3)), (max(1, grid // 2), grid + 3)]
    sizes = [(multiple * p, multiple * q) for p, q in cells] if size is None else [size, size]
    shapes = [(batch or count, *each) for count, each in zip((1, 2, 1), sizes)]
    return list(dict.fromkeys(shapes))


def drift(
    model: DenseModel,
    compute: Callable[[Tensor], NDArray],
    shapes: Iterable[tuple[int, int, int]] | None = None,
) -> list[dict[str, Any]]:
    """Measures how far the maps of an exported model are from PyTorch's in float32.

    Args:
        compute: returns the exported model's map [b h w] of a normalised image [b 3 h w] float32.
        shapes: (batch, height, width) of the comparison; None: `check_sizes`.

    Returns:
        Per shape: `shape`, and `max` and `mean` difference as a share of the range of PyTorch's map.
    """
    rows = []
    for batch, height, width in check_sizes(model) if shapes is None else shapes:
        image = smooth_image(batch, height, width)
        with torch.inference_mode():
            expected = model(image).map.numpy()
        rows.append({"shape": (batch, height, width), **relative_difference(compute(image), expected)})
    return rows


def in_onnxruntime(path: Path) -> Callable[[Tensor], NDArray]:
    """Returns a function that computes the map of an image by an ONNX file, for `drift`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image.numpy()})[0]


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
