"""Which runs split their weights, and that a signal or a lost process is told from other errors."""

import pytest
import torch.distributed as dist

from depthany.system.distributed import Processes, is_lost_contact, launched_processes, should_report
from depthany.training.parallel import shards_weights


@pytest.mark.parametrize(
    "parallel, encoder, size, split",
    [
        ("auto", "vitg", 8, True),
        ("auto", "vitl", 8, False),
        ("ddp", "vitg", 8, False),
        ("fsdp", "vits", 2, True),
        ("fsdp", "vitg", 1, False),
    ],
)
def test_vitg_is_split_among_processes_and_others_where_asked(
    parallel: str, encoder: str, size: int, split: bool
) -> None:
    assert shards_weights(parallel, encoder, Processes(0, size, 0)) is split


def test_an_environment_that_torchrun_did_not_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched_processes() == Processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is set without RANK, LOCAL_RANK: start with torchrun"):
        launched_processes()
    assert should_report(ValueError()), "also where nobody knows how many processes there are"


def test_only_what_tells_of_another_process_counts_as_lost_contact() -> None:
    assert is_lost_contact(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"))
    assert is_lost_contact(dist.DistNetworkError("failed to recv, got 0 bytes"))
    assert not is_lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
