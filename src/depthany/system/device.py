"""Chooses where a command computes, and in which number format."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import torch

from depthany.system.distributed import ALONE, Processes
from depthany.system.free_cores import OBSERVED, threads_of_model
from depthany.system.processes import cores

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}  # None: no autocast
PRECISIONS = ("auto", *AMP_DTYPES)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


@dataclass(frozen=True)
class Compute:
    """Where a model computes, and in which number format.

    Attributes:
        device: device of the model.
        amp: dtype of autocast; None computes in float32.
        note: why a CPU computes with fewer threads than it has cores, or None.
    """

    device: torch.device
    amp: torch.dtype | None = None
    note: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Returns the number format of matrix products."""
        return self.amp or torch.float32

    @property
    def precision(self) -> str:
        """Returns the name of `dtype`, such as float32."""
        return str(self.dtype).removeprefix("torch.")

    def describe(self) -> str:
        """Returns device and number format, such as "cpu in float32", and the note."""
        note = f", {self.note}" if self.note else ""
        return f"{self.device.type} in {self.precision}{note}"


def prepare_compute(
    device: str, precision: str, threads: int | None = None, processes: Processes = ALONE
) -> Compute:
    """Chooses device and number format, and sets up threads and memory of this process.

    Args:
        device: see `choose_device`.
        precision: see `choose_amp`.
        threads: CPU threads of the model; None: see `threads_of_model`.
        processes: processes of the run; each takes the GPU of its rank.

    Raises:
        ValueError: the device cannot be used, or does not compute in this precision.
    """
    chosen = choose_device(device, processes.local_rank if processes.size > 1 else None)
    amp = choose_amp(precision, chosen)
    found = threads_of_model(threads, OBSERVED if chosen.type == "cpu" else None)
    torch.set_num_threads(found.count)
    cv2.setNumThreads(1)  # images are read in our own threads; OpenCV's would slow the model down
    keep_freed_memory()
    return Compute(chosen, amp, found.reason)


def require_cuda_graphs(wanted: bool, device: torch.device) -> None:
    """Raises ValueError if CUDA graphs are wanted on a device that has none."""
    if wanted and device.type != "cuda":
        raise ValueError(f"cuda_graphs=true needs a CUDA GPU, but the device is {device.type}: leave it out")


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Returns the named device; `auto` is CUDA, else MPS, else the CPU.

    Args:
        local_rank: rank of this process on its machine, where a run has several: `auto` and `cuda` are then
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
    """Returns the dtype of autocast, None for plain float32.

    Args:
        precision: bf16, fp16 (CUDA only), fp32, or auto: bf16 where the hardware multiplies it natively,
            else fp32.

    Raises:
        ValueError: the precision is unknown, or is fp16 on another device than CUDA.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if precision == "auto":
        return torch.bfloat16 if multiplies_bf16(device) else None
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"precision=fp16 needs a CUDA device, this is {device.type}: use precision=bf16 or auto"
        )
    return AMP_DTYPES[precision]


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


def reading_threads(workers: int | None, device: torch.device) -> int:
    """Returns how many threads read images for a model: `workers`, or if that is None 2 beside a model on the
    CPU, else one per core, divided among the processes that torchrun has started here.
    """
    if workers is not None:
        return workers
    if device.type == "cpu":
        return 2
    return max(2, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def has_amx() -> bool:
    """Whether the processor has Intel's matrix unit for bfloat16 (AMX)."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.cpu._is_amx_tile_supported()  # torch before 2.10


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Makes torch use kernels that give the same bits each time, inside; does nothing unless `enabled`.

    Many CUDA kernels add in an order that changes from run to run, such as the backward pass of bilinear
    resizing. Source: "Reproducibility" in the notes of the PyTorch documentation.

    Raises:
        RuntimeError: inside, from torch, at an operation that has no such kernel.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory instead of returning it to the system: no page is faulted in twice.

    Saves 7 to 10 % of a training step of `vitt` on two AVX-512 cores, at the same peak memory. Does nothing
    without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 256 * 2**20)
