"""Masks of the sky for labeled sets: `python -m depthany.sky checkpoint=... images=... out=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-sky`."""
    sys.exit(run_entry("sky", run))


def run(cfg: DictConfig) -> int:
    """Writes a mask for each image that has none yet; returns the exit code."""
    from depthany.commands.sky_command import run

    return run(cfg)


if __name__ == "__main__":
    main()
