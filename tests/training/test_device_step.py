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
    "name, options",
    [
        ("teacher", {"clip": 1.0}),
        ("student", {}),
        ("student", {"trim": 0.2}),
    ],
)
def test_step_waits_for_nothing(name: str, options: dict[str, float]) -> None:
    assert watched_step(name, **options).waits == []


@pytest.mark.parametrize("name, most", [("teacher", 500), ("student", 1040)])
def test_step_has_few_kernels(name: str, most: int) -> None:
    """The encoder has 4 blocks; attention counts as its parts, which are one kernel on a GPU.

    A norm counts once for each parameter, which torch takes together on a GPU: left out, as a view is.
    """
    counted = watched_step(name).kernels
    kernels = counted.total() - counted["linalg_vector_norm"] - counted["_unsafe_view"]
    assert 0.9 * most < kernels <= most
