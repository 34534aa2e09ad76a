"""Watches whether feature alignment acts: does its margin leave out all tokens of the student, or none?

No loss shows it: if all tokens are within the margin, the loss is 0, as it is for a student that agrees. Few
tokens are enough where the loss is the mean over those beyond the margin: it is full as long as there is one.
"""

from collections.abc import Mapping

KEPT, DISTANCE = "feature_alignment/tokens_kept", "feature_alignment/distance"  # names in the log
ACTING = "feature_alignment/steps_acting"  # share of steps with any token kept; logged with mean_over=kept
FEW, MANY = 0.01, 0.99  # share of tokens kept below and above which the margin decides nothing
SELDOM = 0.2  # share of steps acting below which few tokens decide nothing either
IDLE, EVERYWHERE = "alignment_idle", "alignment_everywhere"  # the two states
# A student starts as a copy of the frozen encoder, so the share starts at 0 and says nothing at first. 300
# steps are a good part of a short run; a long one has a small learning rate and leaves its start slowly, and
# after 1 % of it there is still little to lose.
FEWEST_STEPS, SHARE_OF_RUN = 300, 0.01


class AlignmentWatch:
    """Counts the steps in a row for which the share of tokens kept is near 0, or near 1.

    Only steps with unlabeled images count. All ranks count alike, since scalars of the log are means over
    them.

    Args:
        total_steps: total steps of the run.
        steps_in_a_row: by state; changed in place, so that a checkpoint can hold it (`Progress`) and a
            resumed run counts on.
    """

    def __init__(self, total_steps: int = 0, steps_in_a_row: dict[str, float] | None = None) -> None:
        self.needed = max(FEWEST_STEPS, round(SHARE_OF_RUN * total_steps))
        self.steps_in_a_row = steps_in_a_row if steps_in_a_row is not None else {}

    def faults(self, means: Mapping[str, float], steps: float) -> dict[str, str]:
        """Returns a line for the state that has lasted long enough, by its name; {} if there is none.

        Args:
            means: scalars of an interval of the log. steps: of the interval, those with unlabeled images.
        """
        if KEPT not in means:
            return {}
        share = means[KEPT]
        is_idle = share < FEW and means.get(ACTING, 0.0) < SELDOM
        state = IDLE if is_idle else EVERYWHERE if share > MANY else None
        lasted = self.steps_in_a_row.get(state, 0.0) + steps if state else 0.0
        self.steps_in_a_row.clear()
        if state is None:
            return {}
        self.steps_in_a_row[state] = lasted
        return {state: _line(state, means, lasted)} if round(lasted, 3) >= self.needed else {}


def _line(state: str, means: Mapping[str, float], steps: float) -> str:
    """Returns what a state means and what can be done, with figures of the newest interval."""
    figures = f"{means[KEPT]:.2%} now"
    if ACTING in means:
        figures += f", and any in {means[ACTING]:.0%} of the steps"
    if f"{DISTANCE}/p50" in means:
        median, largest = means[f"{DISTANCE}/p50"], means[f"{DISTANCE}/max"]
        figures += f"; 1 - cos to the frozen encoder: median {median:.3g}, largest {largest:.3g}"
    if state == IDLE:
        return (
            f"feature alignment does next to nothing: for {steps:.0f} steps in a row less than {FEW:.0%} of "
            f"the tokens were beyond alpha ({figures}), and the loss leaves out the others. Lower "
            "stage.feature_alignment.alpha; or set center=mean beside it, if all tokens of the encoder point "
            "nearly the same way (python scripts/feature_distances.py shows it); or take another encoder; or "
            "save its time with stage.weights.feature=0. A larger weight changes nothing"
        )
    return (
        f"feature alignment leaves no token out: for {steps:.0f} steps in a row more than {MANY:.0%} of them "
        f"were beyond alpha ({figures}), so the student may not differ from the frozen encoder anywhere. "
        "Unless alpha=0 intends that: raise stage.feature_alignment.alpha, or lower stage.weights.feature; "
        "set center=none beside it if it is mean; or align to the student's own start with encoder=null"
    )
