"""Metric depth through several sets of bins, one per domain, and a router between them: ZoeDepth-NK."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthany.models.dpt import Pyramid
from depthany.models.heads.bins_layers import BinSet, pixels_of, weights_of_each_image
from depthany.models.heads.head import HIDDEN_CHANNELS
from depthany.models.heads.metric_bins import BinsHead
from depthany.models.heads.router import DomainRouter
from depthany.models.output import Prediction, Quantity, require_max_depth
from depthany.system.choices import require_choice, require_number

VOTES = ("image", "batch")
DOMAINS = {"nyu": 10.0, "kitti": 80.0}  # of the released ZoeD_M12_NK: name -> metres at the far end


class MetricBinsNKHead(BinsHead):
    """Depth in metres from the bins of the domain that a router finds for each image.

    Source: Bhat et al. 2023, ZoeDepth (arXiv 2302.12288) 3.4. As in the released code, and other than in
    `MetricBinsHead`: hidden layers are half as wide, the distribution over the bins does not see the
    disparity, and each level has 16 attractors (there the counts 16, 8, 4, 1 land in another argument). So
    conv3, the last layer of the relative model, has no effect and no gradient; it is kept for the files.

    The released code sums the logits over the batch and sends all images to one set of bins. Here the router
    decides for each image; `vote="batch"` is the original.

    `extra` of a prediction has "domain_logits" [b d], in the order of `domains`, and "bin_centers"
    [b k 8p 8q] in metres. The map gives the router no gradient: a stage trains it by the cross-entropy of the
    logits. Its dropout draws from torch's global generator, which a stage seeds to be resumed exactly.

    Args:
        features: channels F of the pyramid.
        domains: name of each domain -> metres at the far end of its range, with softplus bins the range of
            its training labels.
        min_depth_m: metres at the near end of all ranges.
        vote: "image" or "batch".
        router_dropout: share of the router's activations that training drops.
        others: see `MetricBinsHead`.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        features: int,
        domains: Mapping[str, float] = DOMAINS,
        min_depth_m: float = 1e-3,
        vote: str = "image",
        bin_centers: str = "softplus",
        n_bins: int = 64,
        attractors: Sequence[int] = (16, 16, 16, 16),
        attractor_alpha: float = 300.0,
        attractor_gamma: int = 2,
        embed_dim: int = 128,
        min_temp: float = 0.0212,
        max_temp: float = 50.0,
        router_dropout: float = 0.1,
    ) -> None:
        require_number("min_depth_m", min_depth_m)
        require_domains(domains, min_depth_m)
        require_choice("vote", vote, VOTES)
        require_number("router_dropout", router_dropout)
        if not 0 <= router_dropout < 1:
            raise ValueError(f"router_dropout={router_dropout}: expected 0 or more, and less than 1")
        hidden = embed_dim // 2
        bins = (bin_centers, n_bins, attractors, attractor_alpha, attractor_gamma)
        super().__init__(features, hidden, *bins, embed_dim, min_temp, max_temp)
        own = {"domains": dict(domains), "min_depth_m": min_depth_m, "vote": vote}
        self.config = {**own, **self.config, "router_dropout": router_dropout}
        self.domains, self.min_depth_m, self.vote = dict(domains), min_depth_m, vote
        farthest = max(domains.values())
        end, trained = (farthest, None) if self.is_normed else (None, farthest)
        self.quantity = Quantity("depth_m", end, trained_to_m=trained)
        self.router = DomainRouter(features, len(domains), router_dropout)
        points, channels = self.point_channels(attractors), HIDDEN_CHANNELS
        self.bins = nn.ModuleDict(
            {
                name: BinSet(features, hidden, n_bins, points, embed_dim, channels, factor=4)
                for name in domains
            }
        )
        self.conv3.requires_grad_(False)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Prediction:
        """Returns depth [b h w] in metres, float32, with `extra["domain_logits"]` and `["bin_centers"]`."""
        bottleneck = self.bottleneck(pyramid.bottleneck)
        logits = self.router(bottleneck)
        choice = self.chosen(logits)
        weights = weights_of_each_image(list(self.bins.values()), choice)  # type: ignore[arg-type]
        pixels = pixels_of(self.hidden(pyramid, size))
        limits = (self.min_depth_m, self._far_ends(choice))
        depth_m, centers_m = self.predict(pyramid, pixels_of(bottleneck), pixels, None, weights, limits)
        return Prediction(depth_m, extra={"bin_centers": centers_m, "domain_logits": logits.float()})

    def chosen(self, logits: Tensor) -> Tensor:
        """Returns the position [b] of the domain of each image, of logits [b d]."""
        if self.vote == "batch":
            return logits.sum(0, keepdim=True).argmax(-1).expand(len(logits))
        return logits.argmax(-1)

    def _far_ends(self, choice: Tensor) -> Tensor:
        """Returns the far end [b 1 1 1] in metres of the range of each image."""
        ends = torch.zeros_like(choice, dtype=torch.float32)
        for i, metres in enumerate(self.domains.values()):
            ends = torch.where(choice == i, metres, ends)
        return ends[:, None, None, None]

    def float32_layers(self) -> Sequence[nn.Module]:
        """The layers whose outputs are metres or shares of the bins."""
        layers = [layer for bins in self.bins.values() for layer in bins.last_layers()]  # type: ignore[operator]
        return (self.conv3, *layers)

    def relative_layers(self) -> Sequence[nn.Module]:
        """The output convolutions of the relative model."""
        return (self.conv1, self.conv2, self.conv3)


def require_domains(domains: Any, min_depth_m: float = 0.0, key: str = "domains") -> None:
    """Raises ValueError unless `domains`, the setting `key`, gives two or more of them an end in metres."""
    if not isinstance(domains, Mapping) or len(domains) < 2:
        shown = dict(domains) if isinstance(domains, Mapping) else domains
        raise ValueError(f"{key}={shown}: expected two or more, such as {{rooms: 10, streets: 65}}")
    for name, metres in domains.items():
        require_max_depth(metres, f"{key}.{name}")
        if not 0 <= min_depth_m < metres:
            raise ValueError(f"min_depth_m={min_depth_m}: expected 0 or more, and less than {metres}")
