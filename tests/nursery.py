"""Runs in processes of their own without the seconds that each import of PyTorch takes.

A process is started once, imports the entries, and forks for each run; the tests' own process never forks.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Runs in the process that forks. What is below the loop runs in each run, and ends as a script does.
MOTHER = """
import json, os, select, sys
import torch
torch.set_num_threads(1)
sys.path.append(sys.argv[1])
import depthany.evaluate, depthany.pseudo_label, depthany.train, ranks, torch.utils.tensorboard
import depthany.commands.evaluate_command, depthany.commands.pseudo_label_command
import depthany.commands.train_command
from depthany.models.dinov2 import SIZES, Size
children, pending = set(), b""
while True:
    ready = select.select([0], [], [], 0.005 if children else None)[0]
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.remove(pid)
            os.write(1, json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode() + b"\\n")
    if not ready:
        continue
    read = os.read(0, 65536)
    if not read:
        os._exit(0)
    *lines, pending = (pending + read).split(b"\\n")
    for line in lines:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            break
        children.add(pid)
        os.write(1, json.dumps({"pid": pid}).encode() + b"\\n")
    else:
        continue
    break
os.setsid()
for number, path in enumerate((os.devnull, order["out"], order["err"])):
    opened = os.open(path, os.O_WRONLY if number else os.O_RDONLY)
    os.dup2(opened, number)
    os.close(opened)
if order["cwd"]:
    os.chdir(order["cwd"])
sys.argv = order["argv"]
os.environ.clear()
os.environ.update(order["environment"])
SIZES["micro"] = eval(order["encoder"])
exec(order["before"], {"__name__": "__before__"})
sys.modules[order["module"]].main()
"""


@dataclass
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str


@dataclass
class Child:
    """A run that goes on beside the test: the leader of its process group."""

    nursery: "Nursery"
    pid: int
    folder: tempfile.TemporaryDirectory[str]
    began: float

    def ended_within(self, timeout_s: float) -> bool:
        """Whether it has ended, after waiting for so long at most."""
        return self.nursery.wait_for(self.pid, timeout_s) is not None

    def kill(self) -> None:
        """SIGKILL to the run, not to its loader processes."""
        if not self.ended_within(0):
            os.kill(self.pid, signal.SIGKILL)

    def result(self, timeout_s: float = 240) -> Ended:
        """How it ended; after the time-out all of its group are killed, and the test fails."""
        code = self.nursery.wait_for(self.pid, timeout_s)
        out, err = (Path(self.folder.name, name).read_text() for name in ("out", "err"))
        self.clean_up()
        assert code is not None, f"the run did not end within {timeout_s} s:\n{out}\n{err}"
        return Ended(code, out, err)

    def group(self) -> list[int]:
        """Processes of the run that are there, itself included; zombies are not."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state != "Z":
                    found.append(int(entry.name))
        return sorted(found)

    def clean_up(self) -> None:
        """Nothing of the run is left over."""
        for pid in self.group():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Nursery:
    """Starts runs; `encoder` is the expression of the tiny encoder."""

    def __init__(self, encoder: str) -> None:
        self.encoder, self._codes, self._pending = encoder, dict[int, int](), b""
        self._mother: Any = None

    def start(self, entry: str, argv: list[str], before: str = "", cwd: Path | None = None) -> Child:
        """`python -m depthany.<entry>` with these arguments; `before` is code that it runs first."""
        return self._start(f"depthany.{entry}", [entry, *argv], before, cwd)

    def start_torchrun(self, processes: int, entry: str, argv: list[str], before: str) -> Child:
        """`torchrun -m depthany.<entry>`; each process runs `before` first."""
        encoder = f"from depthany.models.dinov2 import SIZES, Size\nSIZES['micro'] = {self.encoder}\n"
        return self._start("ranks", ["torchrun", str(processes), encoder + before, entry, *argv], "", None)

    def _start(self, module: str, argv: list[str], before: str, cwd: Path | None) -> Child:
        folder = tempfile.TemporaryDirectory()
        paths = {name: str(Path(folder.name, name)) for name in ("out", "err")}
        for path in paths.values():
            Path(path).touch()
        order = {"module": module, "argv": argv, "before": before, "encoder": self.encoder, **paths}
        order |= {"cwd": str(cwd) if cwd else None, "environment": {**os.environ, "OMP_NUM_THREADS": "1"}}
        if self._mother is None or self._mother.poll() is not None:
            self._begin()
        self._mother.stdin.write(json.dumps(order).encode() + b"\n")
        self._mother.stdin.flush()
        until = time.monotonic() + 300  # its imports, the first time, on a machine that is busy
        while time.monotonic() < until:
            for message in self._messages(0.1):
                if "code" not in message:
                    return Child(self, message["pid"], folder, time.monotonic())
        raise AssertionError("no run could be started")

    def wait_for(self, pid: int, timeout_s: float) -> int | None:
        """Exit code of a run, None where it goes on."""
        until = time.monotonic() + timeout_s
        while pid not in self._codes:
            left = until - time.monotonic()
            self._messages(max(0.0, min(left, 0.1)))
            if left <= 0:
                break
        return self._codes.get(pid)

    def close(self) -> None:
        if self._mother is not None:
            self._mother.kill()
            self._mother.wait()

    def _begin(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._mother = subprocess.Popen(
            [sys.executable, "-c", MOTHER, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        os.set_blocking(self._mother.stdout.fileno(), False)
        atexit.register(self.close)

    def _messages(self, wait_s: float) -> list[dict[str, int]]:
        """What was told since; waits for it in small steps."""
        until = time.monotonic() + wait_s
        while not (read := self._mother.stdout.read() or b"") and time.monotonic() < until:
            time.sleep(0.002)
        *lines, self._pending = (self._pending + read).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self._codes |= {message["pid"]: message["code"] for message in messages if "code" in message}
        return messages
