"""The losses on maps by name, and their weighted sum."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from depthany.losses.affine_invariant import affine_invariant_loss
from depthany.losses.class_losses import cross_entropy_loss, dice_loss, ohem_loss
from depthany.losses.difference import Difference, normalised_difference
from depthany.losses.gradient import gradient_loss
from depthany.losses.reduce import MeanOverRanks, on_one_rank
from depthany.losses.silog import log_gradient_loss, silog_loss, silog_v2_loss

Loss = Callable[..., Tensor]
"""`(prediction [b h w], target [b h w], mask [b h w] bool, *, mean_over_ranks, ...) -> loss []`. Losses of
classes take logits [b k h w] as prediction.

Further options (box_mask, trim and those of `training.settings.LossSettings`) are passed only to a function
whose signature names them.
"""

LOSSES: dict[str, Loss] = {
    "affine_invariant": affine_invariant_loss,
    "gradient": gradient_loss,
    "silog": silog_loss,
    "silog_v2": silog_v2_loss,
    "log_gradient": log_gradient_loss,
    "cross_entropy": cross_entropy_loss,
    "ohem": ohem_loss,
    "dice": dice_loss,
}
OF: dict[str, tuple[str, ...]] = {  # kind of quantity -> losses on its maps; plug-ins may be on any kind
    "disparity": ("affine_invariant", "gradient"),
    "depth_m": ("silog", "silog_v2", "log_gradient"),
    "classes": ("cross_entropy", "ohem", "dice"),
}
_IN_WORDS = {"disparity": "relative disparity", "depth_m": "metres", "classes": "classes"}
SCALE_FREE = ("log_gradient",)  # of metres, and the same for depth times any factor


def require_terms_of(kind: str, terms: Mapping[str, float], who: str) -> None:
    """Raises ValueError if a loss does not take maps of this kind, or no loss of metres knows their scale.

    Args:
        kind: kind of quantity to learn. terms: see `require_terms`. who: the stage, for the message.
    """
    wrong = {name: other for other, names in OF.items() if other != kind for name in names}
    fitting = [each for each in LOSSES if each not in wrong]
    for name in terms:
        if name in wrong:
            raise ValueError(
                f"stage.terms.{name} is a loss of {_IN_WORDS[wrong[name]]}; {who} takes {', '.join(fitting)}"
            )
    if kind == "depth_m" and not any(w for name, w in terms.items() if name not in SCALE_FREE):
        scaled = [each for each in fitting if each not in SCALE_FREE]
        raise ValueError(
            f"stage.terms: {' and '.join(SCALE_FREE)} alone is the same at any scale, and {who} learns "
            f"metres: give one of {', '.join(scaled)} a weight above 0, too"
        )


_OF_DIFFERENCE = (affine_invariant_loss, gradient_loss)  # they take one that is computed for both


def require_terms(terms: Mapping[str, float]) -> None:
    """Raises a ValueError unless `terms` (loss name -> weight) names known losses and gives one a weight."""
    for name, weight in terms.items():
        if name not in LOSSES:
            raise ValueError(f"terms: unknown loss {name!r}; choose from {', '.join(LOSSES)}")
        if weight < 0:
            raise ValueError(f"terms.{name}={weight}: expected 0 or more")
    if not any(terms.values()):
        raise ValueError(f"terms: no loss has a weight above 0; choose from {', '.join(LOSSES)}")


def weighted_terms(
    terms: Mapping[str, float],
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    box_mask: Tensor | None = None,
    mean_over_ranks: MeanOverRanks = on_one_rank,
    **options: object,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sums the losses named in `terms`, each times its weight; a loss of weight 0 is not computed.

    Args:
        terms: weight of each loss, by its name in `LOSSES`.
        prediction, target: [b h w], in the unit that the losses expect.
        mask: [b h w] bool, True where the target is known.
        box_mask: [b h w] bool, True inside a box that CutMix pasted; None = no image is mixed. A loss that
            does not name it takes inside and outside as two images.
        mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.
        options: passed to each loss whose signature names them.

    Returns:
        [] the weighted sum, and the value [] of each loss before its weight.
    """
    values: dict[str, Tensor] = {}
    difference: Difference | None = None
    for name, weight in terms.items():
        if weight == 0:
            continue
        loss, maps = LOSSES[name], (prediction, target, mask)
        own = {key: value for key, value in options.items() if accepts(loss, key)}
        if box_mask is not None and accepts(loss, "box_mask"):
            own["box_mask"] = box_mask
        elif box_mask is not None:
            maps = _regions_as_images(prediction, target, mask, box_mask)
        if loss in _OF_DIFFERENCE:
            used: dict[str, Any] = {
                key: value for key, value in own.items() if accepts(normalised_difference, key)
            }
            difference = normalised_difference(*maps, **used) if difference is None else difference
            own["difference"] = difference
        values[name] = loss(*maps, mean_over_ranks=mean_over_ranks, **own)
    return torch.stack([terms[name] * value for name, value in values.items()]).sum(), values


@cache
def accepts(loss: Loss, option: str) -> bool:
    """Whether the signature of a loss names the option."""
    parameters = inspect.signature(loss).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _regions_as_images(
    prediction: Tensor, target: Tensor, mask: Tensor, box_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each image twice, [2b h w]: first with the mask inside its box, then with the mask outside."""
    regions = torch.cat([mask & box_mask, mask & ~box_mask])  # [2b h w]
    return torch.cat([prediction, prediction]), torch.cat([target, target]), regions
