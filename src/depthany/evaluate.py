"""Score models and predictions: `python -m depthany.evaluate checkpoint=... protocols=...`.

The work is in `depthany.commands`, which is imported only when the command runs: `--help` takes a second.
"""

import sys

from omegaconf import DictConfig

from depthany.config.entry import run_entry

SEVERAL = ("checkpoint", "protocols", "quantity")
ALIASES = {"protocol": "protocols"}  # Hydra takes the word `protocol` for the folder configs/protocol


def main() -> None:
    """Runs the console script `depthany-evaluate`."""
    sys.exit(run_entry("evaluate", run, several=SEVERAL, aliases=ALIASES, scores=first_scores))


def run(cfg: DictConfig) -> int:
    """Scores every checkpoint under every protocol, writes and prints the results; returns the exit code."""
    from depthany.commands.evaluate_command import run

    return run(cfg)


def first_scores(cfg: DictConfig) -> dict[str, float]:
    """Returns the first metric of every protocol and checkpoint, for the table of a sweep."""
    from depthany.commands.evaluate_command import first_scores

    return first_scores(cfg)


if __name__ == "__main__":
    main()
