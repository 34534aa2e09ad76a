"""torchrun with processes that are forks of its own: they need not import PyTorch again, which takes seconds.

Its agent, its environment variables and what it does about a process that fails are torchrun's own.
`distributed/test_slurm.py` starts the program itself.
"""

import atexit
import logging
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler


class ForkedRank:
    """What torchrun uses of `subprocess.Popen`, for a fork that runs `code` and then an entry."""

    code = ""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            run_as_script(self.code, [*args[2:]], env)  # args: python -u <entry> <argument> ...

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            time.sleep(0.01)
        return self.returncode or 0


def run_as_script(code: str, argv: list[str], environment: dict[str, str]) -> None:
    """Runs `code` and the entry `argv[0]` in this fork and ends it as a program of its own ends."""
    status = 0
    try:
        os.setsid()
        for number in (
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGUSR1,
        ):  # the agent has its own
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()
        atexit.register(logging.shutdown)
        atexit.register(multiprocessing.util._exit_function)
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv
        exec(code, {"__name__": "__before__"})
        sys.modules[f"depthany.{argv[0]}"].main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    processes, ForkedRank.code, *words = sys.argv[1:]
    subprocess_handler.Popen = ForkedRank  # type: ignore[attr-defined,assignment,misc]
    run.main(["--standalone", f"--nproc-per-node={processes}", *words])
