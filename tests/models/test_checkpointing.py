"""Activation checkpointing: the same gradients from less memory, alone and under DDP and FSDP."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from depthany.models.model import DenseModel, depth_anything

IMAGE = torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def build(encoder: str, checkpointing: bool) -> DenseModel:
    torch.manual_seed(0)
    model = depth_anything(encoder)
    for block in model.encoder.blocks:
        nn.init.uniform_(block.ls1.gamma, 0.2, 2)
    model.encoder.activation_checkpointing = checkpointing
    return model


def gradients(model: nn.Module, amp: torch.dtype | None = None) -> dict[str, Tensor]:
    """Of a loss on the map and on the features, so that all four taps and the last tokens take part."""
    with torch.autocast("cpu", amp, enabled=amp is not None):
        disparity, tokens, _ = model(IMAGE, with_features=True)
    (disparity.square().mean() + tokens.float().sin().mean()).backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_gradients_are_equal_bit_for_bit(micro: str, amp: torch.dtype | None) -> None:
    plain, again = (gradients(build(micro, checkpointing), amp) for checkpointing in (False, True))
    assert len(plain) == len(list(build(micro, False).parameters()))
    for name, gradient in plain.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, again[name]), name


def test_of_the_blocks_only_their_inputs_are_kept(micro: str) -> None:
    def kept_bytes(checkpointing: bool) -> int:
        model, sizes = build(micro, checkpointing), dict[int, int]()

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens = model.encoder.embed(IMAGE).detach().requires_grad_()
        weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tapped = model.encoder.transform(tokens)
        assert len(tapped) == 4
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    # 4 blocks, 7 tokens of 24 channels: at the least qkv (3), MLP (2 x 4) and two norms more for each
    per_block = 2 * 7 * 24 * 4
    assert kept_bytes(False) - kept_bytes(True) >= 4 * (3 + 8 + 2) * per_block


@pytest.mark.parametrize(("training", "grad", "calls"), [(True, True, 8), (False, True, 4), (True, False, 4)])
def test_training_runs_blocks_and_their_hooks_twice(
    micro: str, training: bool, grad: bool, calls: int
) -> None:
    model, seen = build(micro, True).train(training), list[nn.Module]()
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda module, _: seen.append(module))
    with torch.set_grad_enabled(grad):
        disparity = model(IMAGE).map
    if grad:
        disparity.sum().backward()
    assert len(seen) == calls


def test_recomputing_run_ends_with_the_same_weights(
    start, tiny_world, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[nn.Module]()

    def counted(block: nn.Module, *arguments: Tensor, **settings: bool) -> Tensor:
        calls.append(block)
        return checkpoint(block, *arguments, **settings)

    monkeypatch.setattr("depthany.models.dinov2.checkpoint", counted)
    run_dir = tmp_path / "teacher"
    ended = start(tiny_world.settings("teacher", run_dir, "activation_checkpointing=true"))
    assert ended.code == 0, ended.err
    assert len(calls) == 6 * 4, "6 steps of 4 blocks, none while validating"
    expected, found = (load_file(each / "model.safetensors") for each in (teacher_run, run_dir))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from depthany.models.dinov2 import SIZES, Size
from test_checkpointing import build, gradients

taps, name = {"v1": (0, 1, 2, 3)}, "vit_small_patch14_dinov2"
SIZES["micro"] = Size(name, 24, 4, 2, 28, 8, (8, 8, 8, 8), taps)
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
expected = gradients(build("micro", False))
replicated = gradients(DistributedDataParallel(build("micro", True)))
sharded, mesh = build("micro", True), dist.init_device_mesh("cpu", (2,))
for block in sharded.encoder.blocks:
    fully_shard(block, mesh=mesh)
fully_shard(sharded, mesh=mesh)
found = {name: each.full_tensor() for name, each in gradients(sharded).items()}
assert len(found) == len(replicated) == len(expected)
for name, gradient in expected.items():
    torch.testing.assert_close(replicated["module." + name], gradient, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
dist.destroy_process_group()
print("equal", len(found))
"""


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_one(nursery, tmp_path: Path) -> None:
    find = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    ranks = [
        nursery.start("train", [str(tmp_path / "meet"), str(rank)], f"{find}{DISTRIBUTED}\nsys.exit()")
        for rank in range(2)
    ]
    try:
        for ended in [rank.result() for rank in ranks]:
            assert ended.code == 0, ended.err[-2000:]
            assert ended.out.startswith("equal"), ended.out
    finally:
        for rank in ranks:
            rank.clean_up()
