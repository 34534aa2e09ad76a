"""Copies from the CPU to a device without waiting."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the CPU, of any shape, to `device`; on a GPU the copy is queued, without a wait.

    A plain copy would wait until the GPU has done all that it was asked for before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
