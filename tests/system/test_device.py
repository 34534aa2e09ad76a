"""Device and number format are what was asked for, or refused."""

import cv2
import pytest
import torch

from depthany.system.device import (
    choose_amp,
    choose_device,
    deterministic_algorithms,
    multiplies_bf16,
    prepare_compute,
    reading_threads,
)

CPU = torch.device("cpu")


def test_named_formats_and_auto_follows_the_hardware() -> None:
    assert choose_amp("fp32", CPU) is None
    assert choose_amp("bf16", CPU) is torch.bfloat16
    assert choose_amp("auto", CPU) is (torch.bfloat16 if multiplies_bf16(CPU) else None)
    assert choose_amp("fp16", torch.device("cuda")) is torch.float16


def test_cpu_bf16_needs_matrix_instructions() -> None:
    try:
        with open("/proc/cpuinfo") as file:
            flags = set(file.read().split())
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    if not flags & {"avx2", "avx512f"}:
        pytest.skip("not x86")
    assert multiplies_bf16(CPU) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_cores_read_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr("depthany.system.device.cores", lambda: 16)
    assert [reading_threads(each, cuda) for each in (None, 3)] == [16, 3]
    assert [reading_threads(each, CPU) for each in (None, 3)] == [2, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert reading_threads(None, cuda) == 4


def test_impossible_choice_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="'fp8'; choose from auto, bf16, fp16, fp32"):
        choose_amp("fp8", CPU)
    with pytest.raises(ValueError, match="fp16 needs a CUDA device, this is cpu: use precision=bf16"):
        choose_amp("fp16", CPU)
    with pytest.raises(ValueError, match=r"device=abacus cannot be used: .*; try device=auto"):
        choose_device("abacus")
    assert choose_device("cpu") == CPU


def test_prepared_process_has_device_format_and_threads() -> None:
    torch.set_num_threads(2)
    compute = prepare_compute("cpu", "bf16", threads=1)
    assert (compute.device, compute.amp, compute.dtype) == (CPU, torch.bfloat16, torch.bfloat16)
    assert compute.describe() == "cpu in bfloat16"
    assert prepare_compute("cpu", "fp32").describe() == "cpu in float32"
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)


def test_deterministic_algorithms_end_with_the_block() -> None:
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
