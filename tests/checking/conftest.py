"""Runs the check of the data on tiny sets."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from depthany.check_data import main


@dataclass
class Ended:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text())

    @property
    def problems(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.folder / "problems.txt").read_text().splitlines()]


Check = Callable[..., Ended]


@pytest.fixture
def check(
    tmp_path: Path,
    ctrl_c_works: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """`python -m depthany.check_data data=folder` in this process, on tmp_path / "mine"."""

    def start(*words: str, out: str = "out") -> Ended:
        own = ["data=folder", f"data.labeled.mine.root={tmp_path / 'mine'}", "workers=1", "sheet_images=0"]
        own.append("data.labeled.mine.depth_scale=1000")
        given = {word.partition("=")[0] for word in words}
        own = [word for word in own if word.partition("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", ["check_data", *own, f"out={tmp_path / out}", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err, tmp_path / out)

    return start
