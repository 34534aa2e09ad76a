"""Label unlabeled images once for any number of students: `python -m depthany.pseudo_label teacher=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-pseudo-label`."""
    sys.exit(run_entry("pseudo_label", run))


def run(cfg: DictConfig) -> int:
    """Labels, verifies or inspects, as the configuration says; returns the exit code."""
    from depthany.commands.pseudo_label_command import run

    return run(cfg)


if __name__ == "__main__":
    main()
