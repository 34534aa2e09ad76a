"""Predict the depth of photos and videos: `python -m depthany.predict checkpoint=... images=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-predict`."""
    sys.exit(run_entry("predict", run, several=("save",)))


def run(cfg: DictConfig) -> int:
    """Predicts everything that `cfg.images` names; returns the exit code."""
    from depthany.commands.predict_command import run

    return run(cfg)


if __name__ == "__main__":
    main()
