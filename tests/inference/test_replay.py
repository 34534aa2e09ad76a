"""Maps of recorded passes. A record that runs the pass again on the held inputs stands for a CUDA graph."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from depthany.inference.replay import ReplayedMaps
from depthany.models.infer import forward_maps
from depthany.models.model import DenseModel, depth_anything

pytestmark = pytest.mark.usefixtures("micro")


class Recorder:
    """Repeats a pass as a graph does: from the held inputs into the same memory; counts what it does."""

    def __init__(self) -> None:
        self.recorded, self.replayed = list[torch.Size](), 0

    def __call__(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor
    ) -> tuple[Callable[[], None], Tensor]:
        self.recorded.append(inputs.shape)
        maps = torch.zeros_like(forward(inputs))

        def replay() -> None:
            self.replayed += 1
            maps.copy_(forward(inputs))

        return replay, maps


def images(number: int, width: int = 28) -> Tensor:
    return torch.randn(1, 3, 28, width, generator=torch.Generator().manual_seed(number))


@pytest.fixture
def model() -> DenseModel:
    torch.manual_seed(0)
    return depth_anything("micro", input_size=28).eval().requires_grad_(False)


def test_shape_that_returns_is_replayed(model) -> None:
    record = Recorder()
    replayed = ReplayedMaps(record)
    inputs = [images(0), images(1), images(2, width=42), images(3), images(4)]
    maps = [replayed(model, each) for each in inputs]
    for each, expected in zip(maps, inputs):  # earlier maps are not overwritten by later ones
        assert torch.equal(each, forward_maps(model, expected))
    assert record.recorded == [images(0).shape] and record.replayed == 3


def test_oldest_shape_gives_way(model) -> None:
    record = Recorder()
    replayed = ReplayedMaps(record, most_shapes=2)
    for width in (28, 28, 42, 42, 28, 56, 56, 28, 42):
        result = replayed(model, images(width, width))
        assert torch.equal(result, forward_maps(model, images(width, width)))
    assert [shape[-1] for shape in record.recorded] == [28, 42, 56, 42]


def test_pass_without_graph_runs_plainly(model) -> None:
    def refuse(*_: object) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    replayed = ReplayedMaps(refuse)
    replayed(model, images(0))
    with pytest.warns(UserWarning, match="runs without graphs: operation not permitted") as found:
        maps = [replayed(model, images(number)) for number in (1, 2)]
    assert len(found) == 1
    assert all(torch.equal(each, forward_maps(model, images(k))) for k, each in zip((1, 2), maps))


def test_failed_recording_frees_earlier_graphs(model) -> None:
    record, held = Recorder(), list[weakref.ref[Tensor]]()

    def first_only(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Callable[[], None], Tensor]:
        if record.recorded:
            raise RuntimeError("out of memory")
        held.append(weakref.ref(inputs))
        return record(forward, inputs)

    replayed = ReplayedMaps(first_only)
    maps = [replayed(model, images(number)) for number in (0, 1, 2)]
    assert record.replayed == 2 and held[0]() is not None
    with pytest.warns(UserWarning, match="runs without graphs: out of memory"):
        maps += [replayed(model, images(number, width=42)) for number in (3, 4)]
    gc.collect()
    assert held[0]() is None, "the inputs of the first graph"
    maps.append(replayed(model, images(5)))
    inputs = [*map(images, (0, 1, 2)), images(3, 42), images(4, 42), images(5)]
    assert all(
        torch.equal(each, forward_maps(model, image)) for each, image in zip(maps, inputs, strict=True)
    )
    assert record.replayed == 2
