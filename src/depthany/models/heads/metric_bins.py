"""Metric depth through bins: ZoeDepth's head on a relative model, as in Depth Anything V1's metric models."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.dpt import Pyramid
from depthany.models.heads.bins_layers import (
    BinSet,
    BinWeights,
    PixelMLP,
    mixture_numbers,
    mlp,
    pixels_of,
    resized,
)
from depthany.models.heads.bins_maths import attracted, expected_depth, normed_centers, normed_points
from depthany.models.heads.head import HIDDEN_CHANNELS, OutputConvolutions, float32_conv
from depthany.models.heads.relative import LAST_BIAS
from depthany.models.output import Prediction, Quantity, require_max_depth
from depthany.system.choices import require_choice, require_number

BIN_CENTERS = ("softplus", "normed")
SEED_WIDTH = 256  # hidden channels of the seed bins of a single head


class BinsHead(OutputConvolutions):
    """What `metric_bins` and `metric_bins_nk` have in common: the layers that know no depth range.

    Args:
        features: channels F of the pyramid.
        hidden: hidden channels of the embeddings.
        others: see `MetricBinsHead`.
    """

    borrows: ClassVar = dict.fromkeys(
        ("relative", "metric_bins", "metric_bins_nk"), ("conv1", "conv2", "conv3")
    )

    def __init__(
        self,
        features: int,
        hidden: int,
        bin_centers: str,
        n_bins: int,
        attractors: Sequence[int],
        attractor_alpha: float,
        attractor_gamma: int,
        embed_dim: int,
        min_temp: float,
        max_temp: float,
    ) -> None:
        require_choice("bin_centers", bin_centers, BIN_CENTERS)
        _require_counts(n_bins, attractors, embed_dim)
        numbers = {"min_temp": min_temp, "max_temp": max_temp, "attractor_alpha": attractor_alpha}
        for name, value in numbers.items():
            require_number(name, value)
        if not 0 < min_temp < max_temp:
            raise ValueError(f"min_temp={min_temp} max_temp={max_temp}: expected 0 < min_temp < max_temp")
        require_number("attractor_gamma", attractor_gamma, whole=True)
        if attractor_gamma < 2 or attractor_gamma % 2 or attractor_alpha < 0:
            strength = f"attractor_alpha={attractor_alpha} attractor_gamma={attractor_gamma}"
            raise ValueError(  # 1 + alpha d^gamma of an odd gamma is 0 at some negative d
                f"{strength}: expected alpha of 0 or more, and an even gamma of 2 or more"
            )
        super().__init__(features, LAST_BIAS)
        self.is_normed = bin_centers == "normed"
        self.alpha, self.gamma, self.temperatures = attractor_alpha, attractor_gamma, (min_temp, max_temp)
        self.config = {
            "bin_centers": bin_centers,
            "n_bins": n_bins,
            "attractors": list(attractors),
            "attractor_alpha": attractor_alpha,
            "attractor_gamma": attractor_gamma,
            "embed_dim": embed_dim,
            "min_temp": min_temp,
            "max_temp": max_temp,
        }
        self.bottleneck = nn.Conv2d(features, features, 1)
        self.seed_embedding = PixelMLP(features, hidden, embed_dim)
        self.projectors = nn.ModuleList(PixelMLP(features, hidden, embed_dim) for _ in attractors)

    def point_channels(self, attractors: Sequence[int]) -> list[int]:
        """Returns the channels of the attractor points of each level: two for a normed one."""
        return [count * (2 if self.is_normed else 1) for count in attractors]

    def predict(
        self,
        pyramid: Pyramid,
        bottleneck: Tensor,
        pixels: Tensor,
        condition: Tensor | None,
        bins: BinWeights,
        limits: tuple[float, float | Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Returns depth [b h w] and bin centres [b k 8p 8q], both in metres and float32.

        Args:
            bottleneck: [b h w F] output of `self.bottleneck`.
            pixels: [b h w 32] features at full resolution, for the distribution over the bins.
            condition: [b h w 1] disparity, for the same, or None.
            bins: weights of the bins, for all images or for each one.
            limits: near and far end in metres, the far one perhaps [b 1 1 1]; for normed bins only.
        """
        embedding = mlp(bottleneck, self.seed_embedding.weights())
        raw = mlp(bottleneck, bins.seed, last_in_float32=True)
        with torch.autocast(raw.device.type, enabled=False):
            centers = normed_centers(raw) if self.is_normed else F.softplus(raw)
        for fused, projector, weights in zip(reversed(pyramid.fused), self.projectors, bins.attractors):
            level = pixels_of(fused)  # [b h w F]
            size, before = level.shape[1:3], embedding
            embedding = mlp(level, projector.weights())  # type: ignore[operator]
            raw = mlp(embedding + resized(before, size), weights, last_in_float32=True)
            with torch.autocast(raw.device.type, enabled=False):
                points = normed_points(raw) if self.is_normed else F.softplus(raw)
                centers = attracted(resized(centers, size), points, self.alpha, self.gamma)
        numbers = mixture_numbers(pixels, condition, embedding, bins.log_binomial)
        with torch.autocast(raw.device.type, enabled=False):
            if self.is_normed:
                low, high = limits
                centers = (centers * (high - low) + low).sort(-1).values
                centers = centers.clamp(min=low).clamp(max=high)
            depth_m = expected_depth(numbers, centers, self.temperatures)
        return depth_m, centers.permute(0, 3, 1, 2)


class MetricBinsHead(BinsHead):
    """Depth in metres: at each pixel the expectation over bins, whose centres attractors move level by level.

    Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288), with Depth Anything's decoder and relative head
    (arXiv 2401.10891, 4.3). conv1 to conv3 are the output convolutions of the relative model: its hidden
    layer and its disparity condition the distribution over the bins. `extra["bin_centers"]` of a prediction
    is [b k 8p 8q] in metres.

    Softplus bins have no upper end: `max_depth_m` then is the range of the training labels, the mask of
    the loss. Normed bins stay inside `min_depth_m` to `max_depth_m`.

    Args:
        features: channels F of the pyramid.
        max_depth_m: metres at the far end of the range; softplus bins may leave it out (null).
        min_depth_m: metres at the near end.
        bin_centers: "softplus" (the released Depth Anything, ZoeD_M12_N) or "normed" (ZoeD_M12_K).
        n_bins: bins per pixel.
        attractors: attractor points of the four levels, coarsest first.
        attractor_alpha, attractor_gamma: strength and reach of an attractor. The released configurations say
            alpha 1000, but their code never passes it on: all released weights were trained with 300.
        embed_dim: channels of the embeddings of bins and levels.
        min_temp, max_temp: limits of the temperature of the distribution over the bins.

    Raises:
        ValueError: a value is out of range, or normed bins have no `max_depth_m`.
    """

    def __init__(
        self,
        features: int,
        max_depth_m: float | None = None,
        min_depth_m: float = 1e-3,
        bin_centers: str = "softplus",
        n_bins: int = 64,
        attractors: Sequence[int] = (16, 8, 4, 1),
        attractor_alpha: float = 300.0,
        attractor_gamma: int = 2,
        embed_dim: int = 128,
        min_temp: float = 0.0212,
        max_temp: float = 50.0,
    ) -> None:
        _require_range(bin_centers, min_depth_m, max_depth_m)
        super().__init__(
            features,
            embed_dim,
            bin_centers,
            n_bins,
            attractors,
            attractor_alpha,
            attractor_gamma,
            embed_dim,
            min_temp,
            max_temp,
        )
        self.config = {"max_depth_m": max_depth_m, "min_depth_m": min_depth_m, **self.config}
        self.limits = (min_depth_m, max_depth_m or 0.0)
        end, trained = (max_depth_m, None) if self.is_normed else (None, max_depth_m)
        self.quantity = Quantity("depth_m", end, trained_to_m=trained)
        self.bins = BinSet(
            features,
            SEED_WIDTH,
            n_bins,
            self.point_channels(attractors),
            embed_dim,
            HIDDEN_CHANNELS + 1,
            factor=2,
        )

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Prediction:
        """Returns depth [b h w] in metres, float32, with `extra["bin_centers"]`."""
        hidden = self.hidden(pyramid, size)
        with torch.autocast(hidden.device.type, enabled=False):
            disparity = F.relu(float32_conv(self.conv3, hidden))  # [b 1 h w]
        depth_m, centers_m = self.predict(
            pyramid,
            pixels_of(self.bottleneck(pyramid.bottleneck)),
            pixels_of(hidden),
            pixels_of(disparity.to(hidden.dtype)),
            self.bins.weights(),
            self.limits,
        )
        return Prediction(depth_m, extra={"bin_centers": centers_m})

    def float32_layers(self) -> Sequence[nn.Module]:
        """The layers whose outputs are disparity, metres or shares of the bins."""
        return (self.conv3, *self.bins.last_layers())

    def relative_layers(self) -> Sequence[nn.Module]:
        """The output convolutions of the relative model."""
        return (self.conv1, self.conv2, self.conv3)


def _require_counts(n_bins: int, attractors: Sequence[int], embed_dim: int) -> None:
    for name, count, least in (("n_bins", n_bins, 2), ("embed_dim", embed_dim, 2)):
        require_number(name, count, whole=True)
        if count < least:
            raise ValueError(f"{name}={count}: expected {least} or more")
    counts = [] if isinstance(attractors, str) or not isinstance(attractors, Sequence) else list(attractors)
    if len(counts) != 4 or not all(isinstance(count, int) and count > 0 for count in counts):
        shown = counts or attractors
        raise ValueError(f"attractors={shown}: expected four whole numbers above 0, one for each level")


def _require_range(bin_centers: str, min_depth_m: float, max_depth_m: float | None) -> None:
    require_number("min_depth_m", min_depth_m)
    if max_depth_m is None:
        if bin_centers == "normed":
            raise ValueError("bin_centers=normed needs max_depth_m: its bins fill the range up to it")
        return
    require_max_depth(max_depth_m)
    if not 0 <= min_depth_m < max_depth_m:
        raise ValueError(f"min_depth_m={min_depth_m}: expected 0 or more, and less than {max_depth_m}")
