"""Processes that read side by side: the same report from any number of them, and none left behind."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tiny_sets import plant, whole, write

from depthany.checking import readers as processes
from depthany.data.unlabeled import FolderImages


def test_report_does_not_depend_on_processes(check, tmp_path: Path) -> None:
    plant(tmp_path / "mine")
    for i in range(40):
        write(tmp_path / "mine", f"more_{i}", whole(seed=100 + i))
    one, three = check(out="one"), check("workers=3", out="three")
    assert one.report == three.report
    assert one.problems == three.problems


@pytest.mark.slow
def test_report_does_not_depend_on_start_method(
    check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "mine")
    forked = check(out="forked")
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    assert check("workers=2", out="spawned").report == forked.report


def check_with(trap: str, check, tmp_path: Path):
    """A check of 100 pairs, and of their images as an unlabeled set with a trap at image 50."""
    for i in range(100):
        write(tmp_path / "mine", f"{i:03d}", whole((2, 2), seed=i))
    root = tmp_path / "mine/images"
    target = f"data.unlabeled.mine._target_=test_readers.{trap}"
    ended = check(target, f"data.unlabeled.mine.root={root}")
    assert ended.report["sets"]["labeled.mine"]["checked"] == 100
    assert not multiprocessing.active_children()
    return ended, ended.report["sets"]["unlabeled.mine"]["checked"]


def test_ctrl_c_leaves_no_process(check, tmp_path: Path) -> None:
    ended, checked = check_with("InterruptsAtImage50", check, tmp_path)
    assert ended.code == 130
    assert ended.err == f"interrupted: {100 + checked} of 200 images were checked\n"
    assert 0 < checked < 100
    assert "nothing is wrong so far: " in ended.out and not ended.report["complete"]


def test_killed_process_is_an_error_with_report(check, tmp_path: Path) -> None:
    ended, _ = check_with("DiesAtImage50", check, tmp_path)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "error: a checking process was killed, perhaps because memory ran out" in ended.err
    assert "unlabeled.mine was read, at or after " in ended.err
    assert not ended.report["complete"]


def test_defect_of_a_reader_is_a_problem(check, tmp_path: Path) -> None:
    ended, checked = check_with("FailsAtImage50", check, tmp_path)
    assert (ended.code, checked) == (1, 100)
    path = str(tmp_path / "mine/images/050.png")
    assert ended.problems == [
        ["error", "unlabeled.mine", "unreadable image", path, "KeyError: 'no such key'"]
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_their_killed_parent(nursery, tmp_path: Path) -> None:
    for i in range(2000):
        write(tmp_path / "mine", f"{i:04d}", whole((2, 2), seed=i))
    words = [
        "data=folder",
        f"data.labeled.mine.root={tmp_path / 'mine'}",
        "workers=2",
        f"out={tmp_path / 'o'}",
    ]
    child = nursery.start("check_data", words, "import depthany.check_data")
    try:
        task = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        until = time.monotonic() + 60
        while len(children := task.read_text().split()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(children) == 2
        child.kill()
        while any(_runs(int(pid)) for pid in children) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(_runs(int(pid)) for pid in children)
    finally:
        child.clean_up()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Trap(FolderImages):
    """Something happens as image 50 is read."""

    def stored_image(self, index: int) -> bytes:
        if index == 50:
            self.spring()
        return super().stored_image(index)

    def spring(self) -> None:
        raise NotImplementedError


class InterruptsAtImage50(Trap):
    def spring(self) -> None:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.5)


class DiesAtImage50(Trap):
    def spring(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FailsAtImage50(Trap):
    def spring(self) -> None:
        raise KeyError("no such key")
