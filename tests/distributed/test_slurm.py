"""The sbatch script, with stand-ins for Slurm's commands that signal real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_train.sbatch"

# srun notes the process that it becomes; scancel signals it and all below it, as Slurm does those of a step.
COMMANDS = {
    "srun": 'echo $$ > "$STATE/step"; shift; exec "$@"',
    "scontrol": 'echo "$*" >> "$STATE/scontrol"; [[ $1 != show ]] || echo localhost',
    "scancel": """
        echo "$*" >> "$STATE/scancel"
        pending=$(cat "$STATE/step")
        while [[ -n $pending ]]; do
            kill -USR1 $pending
            pending=$(for pid in $pending; do pgrep -P "$pid"; done)
        done""",
}


class Job:
    """A job of the script in a folder of its own."""

    def __init__(self, folder: Path, arguments: list[str], **environment: str) -> None:
        commands = folder / "bin"
        commands.mkdir(parents=True, exist_ok=True)
        for name, body in COMMANDS.items():
            (commands / name).write_text(f"#!/bin/bash\n{body}\n")
            (commands / name).chmod(0o755)
        self.state, self.log = folder, folder / "log"
        path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
        mine = {"PATH": path, "STATE": str(folder), "NPROC": "2", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **slurm, **mine, **environment},
                start_new_session=True,
            )

    def wait_for(self, text: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert time.monotonic() < end, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def end(self, seconds: float = 120) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            subprocess.run(["pkill", "-KILL", "-f", str(self.state / "run")], check=False)

    def told(self, command: str) -> list[str]:
        path = self.state / command
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def arguments(tiny_world, tmp_path: Path) -> list[str]:
    """A run of the smallest real encoder, with a name by which its processes are found."""
    more = ("model.encoder.size=vitt", "steps=15", "save_every=1000", "eval_every=0", "optimizer.lr=1e-4")
    return tiny_world.settings("teacher", tmp_path / "run", *more)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_job_at_its_time_limit_is_requeued(
    arguments: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    job = Job(tmp_path, arguments, REQUEUE_ON_TERM="1")
    job.wait_for("step 3/15")
    job.process.send_signal(number)
    assert job.end() == 0
    text = job.log.read_text()
    assert "all saved; the same command continues" in text
    assert job.told("scontrol")[1:] == ["requeue 7"]
    if number == signal.SIGTERM:  # the saved run is the same
        return
    again = Job(tmp_path, arguments, SLURM_RESTART_COUNT="1")
    assert again.end() == 0
    assert "continuing at step" in again.log.read_text()
    assert (tmp_path / "run/model.safetensors").exists()
    assert again.told("scontrol").count("requeue 7") == 1


@pytest.mark.slow
def test_cancelled_and_failed_jobs_are_not_requeued(arguments: list[str], tmp_path: Path) -> None:
    job = Job(tmp_path, arguments)
    job.wait_for("step 3/15")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() != 0
    assert "all saved" in job.log.read_text()
    failed = Job(tmp_path, [*arguments, "batch_size=1"])
    assert failed.end() != 0
    assert failed.log.read_text().count("error: batch_size=1 is that of all processes together") == 1
    assert "requeue 7" not in failed.told("scontrol")
