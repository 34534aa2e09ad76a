"""Find what is wrong with data sets before training does: `python -m depthany.check_data data=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-check-data`."""
    sys.exit(run_entry("check_data", run))


def run(cfg: DictConfig) -> int:
    """Checks every set of `cfg.data` that has a root; returns the exit code."""
    from depthany.commands.check_data_command import run

    return run(cfg)


if __name__ == "__main__":
    main()
