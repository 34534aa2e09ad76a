"""Where and in which number format to compute, and how memory is kept for it."""

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The named device; `auto` takes CUDA, then MPS, then the CPU.

    Args:
        local_rank: number of this process on its machine, where there are several: `auto` and `cuda` are then
            the GPU of that number.

    Raises:
        ValueError: torch does not know the device, or cannot reach it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name} cannot be used: {str(error).splitlines()[0]}; try device=auto"
        ) from None
    return device


def choose_amp(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for plain float32.

    Args:
        precision: bf16, fp16 (CUDA only), fp32, or auto: bf16 where the hardware multiplies it natively,
            else fp32.
    """
    table = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    if precision == "auto":
        return torch.bfloat16 if multiplies_bf16(device) else None
    if precision not in table:
        raise ValueError(f"unknown precision {precision!r}; choose from auto, {', '.join(table)}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"precision=fp16 needs a CUDA device, this is {device.type}: use precision=bf16 or auto"
        )
    return table[precision]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 matrix instructions; emulated, they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # torch before 2.10


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back: a step on the CPU then faults in no pages anew.

    7 to 10 % of a training step of `vitt` on two AVX-512 cores; the largest memory stays the same. Elsewhere
    nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 256 * 2**20)
