"""Which runs shard their weights, and that a lost process is told from other errors."""

import time

import pytest
import torch.distributed as dist

from depthany.system import distributed
from depthany.system.distributed import Processes, is_lost_contact, launched_processes, should_report
from depthany.training.parallel import uses_fsdp

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


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
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert launched_processes() == Processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    missing = "WORLD_SIZE=2 is set without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: unset WORLD_SIZE"
    with pytest.raises(ValueError, match=missing):
        launched_processes()
    assert should_report(ValueError()), "also where nobody knows how many processes there are"


@pytest.mark.parametrize(
    "name, value", [("WORLD_SIZE", "two"), ("RANK", "2"), ("LOCAL_RANK", "-1"), ("MASTER_PORT", "99999")]
)
def test_stale_torchrun_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for key, right in TORCHRUN.items():
        monkeypatch.setenv(key, right)
    assert launched_processes() == Processes(1, 2, 1)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}={value}.*: unset WORLD_SIZE .*, or start with torchrun"):
        launched_processes()


def test_waiting_process_says_for_whom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "_PATIENCE_S", 0.01)
    for key, right in TORCHRUN.items():
        monkeypatch.setenv(key, right)
    with distributed._says_whom_it_waits_for(Processes(1, 2, 1)):
        time.sleep(0.2)
    assert "process 1 waits for the others of WORLD_SIZE=2 at localhost:29500" in capsys.readouterr().err


def test_error_on_main_reaches_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise ValueError("a mistake")

    sent = []
    monkeypatch.setattr(Processes, "from_main", lambda self, value: sent.append(value) or sent[0])
    with pytest.raises(ValueError, match="a mistake"):
        Processes(0, 2, 0).on_main(fails)
    with pytest.raises(ValueError, match="a mistake"):
        Processes(1, 2, 1).on_main(lambda: pytest.fail("rank 1 does not call it"))


def test_lost_contact_is_told_from_other_errors() -> None:
    assert is_lost_contact(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"))
    assert is_lost_contact(dist.DistNetworkError("failed to recv, got 0 bytes"))
    assert not is_lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
