"""Batches of maps, and ranks that share them, for the tests of losses."""

import torch
from torch import Tensor


def row(*values: float) -> Tensor:
    """One image of a single row of pixels, [1 1 n]."""
    return torch.tensor(values, dtype=torch.float32)[None, None]


def everywhere(disparity: Tensor) -> Tensor:
    return torch.ones_like(disparity, dtype=torch.bool)


def random_batch(
    seed: int = 0, b: int = 4, h: int = 12, w: int = 17, valid: float = 0.6
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, target, draw = torch.rand(3, b, h, w, generator=generator)
    return prediction, target, draw < valid


def gradient(loss_of, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, d loss / d prediction)."""
    prediction = prediction.clone().requires_grad_()
    loss = loss_of(prediction)
    return loss.detach(), torch.autograd.grad(loss, prediction)[0]


def box_of(mask: Tensor, height: int, width: int) -> Tensor:
    box_mask = torch.zeros_like(mask)
    box_mask[:, :height, :width] = True
    return box_mask


class Shared:
    """`mean_over_ranks` for ranks that run one after the other: notes their counts, then returns means."""

    def __init__(self) -> None:
        self.noted: list[list[Tensor]] = []
        self.calls = 0

    def begin(self) -> None:
        """The next process; a second round begins after the last."""
        self.calls = 0

    def note(self, count: Tensor) -> Tensor:
        if self.calls == len(self.noted):
            self.noted.append([])
        self.noted[self.calls].append(count)
        self.calls += 1
        return count

    def mean(self, count: Tensor) -> Tensor:
        counts = self.noted[self.calls]
        self.calls += 1
        return torch.stack(counts).double().mean(0).to(torch.float32)


def losses_of_shares(loss_of, shares: list[list[int]]) -> list[Tensor]:
    """Loss of each rank's images: `loss_of(images, mean_over_ranks)`."""
    shared = Shared()
    for mean_over_ranks in (shared.note, shared.mean):
        losses = []
        for images in shares:
            shared.begin()
            losses.append(loss_of(images, mean_over_ranks))
    return losses


SHARES = [[0, 3], [1], [2, 4, 5], []]
