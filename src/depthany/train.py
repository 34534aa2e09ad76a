"""Train a stage such as the teacher or the student: `python -m depthany.train stage=teacher`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-train`."""
    sys.exit(run_entry("train", run, help_with=("stage=student",), output="run_dir", scores=primary_scores))


def run(cfg: DictConfig) -> int:
    """Checks the configuration, and trains unless the result is there; returns the exit code."""
    from depthany.commands.train_command import run

    return run(cfg)


def primary_scores(cfg: DictConfig) -> dict[str, float]:
    """Returns the stage's primary metric on every validation set, for the table of a sweep."""
    from depthany.commands.train_command import primary_scores

    return primary_scores(cfg)


if __name__ == "__main__":
    main()
