"""Write a model for other programs: `python -m depthany.export checkpoint=... format=onnx out=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-export`."""
    sys.exit(run_entry("export", run))


def run(cfg: DictConfig) -> int:
    """Loads the model, writes and compares it, and moves the result to its place; returns the exit code."""
    from depthany.commands.export_command import run

    return run(cfg)


if __name__ == "__main__":
    main()
