"""Index the large unlabeled sets of a mixture: `python -m depthany.index data=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-index`."""
    sys.exit(run_entry("index", run, help_with=("data=sample",), output=None))


def run(cfg: DictConfig) -> int:
    """Builds or updates the index of every set that has one; returns the exit code."""
    from depthany.commands.index_command import run

    return run(cfg)


if __name__ == "__main__":
    main()
