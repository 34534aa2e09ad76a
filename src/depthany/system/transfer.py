"""Copies from the CPU to a device that wait for nothing."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the CPU, of any shape, to `device`; a GPU copies it in its turn, and nobody waits.

    A plain copy would wait until the GPU has done all that it was asked for before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
