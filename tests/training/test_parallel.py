"""Which runs shard their weights, and that a lost process is told from other errors."""

import pytest
import torch.distributed as dist

from depthany.system.distributed import Processes, is_lost_contact, launched_processes, should_report
from depthany.training.parallel import uses_fsdp


@pytest.mark.parametrize(
    "parallel, encoder, size, sharded",
    [
        ("auto", "vitg", 8, True),
        ("auto", "vitl", 8, False),
        ("ddp", "vitg", 8, False),
        ("fsdp", "vits", 2, True),
        ("fsdp", "vitg", 1, False),
    ],
)
def test_vitg_is_sharded_and_others_on_request(parallel: str, encoder: str, size: int, sharded: bool) -> None:
    assert uses_fsdp(parallel, encoder, Processes(0, size, 0)) is sharded


def test_incomplete_torchrun_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched_processes() == Processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is set without RANK, LOCAL_RANK: start with torchrun"):
        launched_processes()
    assert should_report(ValueError()), "also where nobody knows how many processes there are"


def test_lost_contact_is_told_from_other_errors() -> None:
    assert is_lost_contact(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"))
    assert is_lost_contact(dist.DistNetworkError("failed to recv, got 0 bytes"))
    assert not is_lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
