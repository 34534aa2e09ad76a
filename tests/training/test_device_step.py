"""A step asks a GPU for few kernels and waits for none, as far as a machine without one can tell."""

import pytest
import torch

from device_steps import META, watched_step, watching

pytestmark = pytest.mark.usefixtures("micro")


@pytest.mark.parametrize(
    "wait",
    [
        lambda: torch.ones(3).to(META),
        lambda: torch.ones(3, device=META)[torch.tensor([0, 2])],
        lambda: torch.ones(3, device=META).copy_(torch.ones(3)),
        lambda: torch.tensor([1.0], device=META),
    ],
)
def test_waits_are_noted(wait) -> None:
    with watching() as watch:
        wait()
    assert len(watch.waits) == 1


@pytest.mark.parametrize(
    "name, options, most",
    [("teacher", {"clip": 1.0}, 530), ("student", {}, 1080), ("student", {"trim": 0.2}, 1110)],
)
def test_step_waits_for_nothing_in_few_kernels(name: str, options: dict[str, float], most: int) -> None:
    """The encoder has 4 blocks; attention counts as its parts, which are one kernel on a GPU.

    What torch does with all gradients at once there counts once for each here: left out, as a view is.
    """
    watch = watched_step(name, **options)
    assert watch.waits == []
    of_all = ("linalg_vector_norm", "mul_", "_unsafe_view")
    kernels = watch.kernels.total() - sum(watch.kernels[each] for each in of_all)
    assert kernels <= most
