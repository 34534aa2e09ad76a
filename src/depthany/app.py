"""Show the depth of a photo on a page in the browser: `python -m depthany.app checkpoint=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry


def main() -> None:
    """Runs the console script `depthany-app`."""
    sys.exit(run_entry("app", run, output=None, sweeps=False))


def run(cfg: DictConfig) -> int:
    """Serves the page until Ctrl-C; returns the exit code."""
    from depthany.commands.app_command import run

    return run(cfg)


if __name__ == "__main__":
    main()
