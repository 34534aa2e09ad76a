"""Forward passes that a GPU replays as CUDA graphs: one launch in place of hundreds.

With one small image at a time a GPU waits for the CPU, which launches each kernel on its own. A recorded
graph repeats the same kernels on the same memory, so the maps are the same.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from depthany.models.infer import forward_maps

MOST_SHAPES = 4  # each holds the memory of a forward pass
WARM_UP = 2  # passes before recording: libraries reserve memory and choose kernels in the first

Pass = Callable[[Tensor], Tensor]
Recorded = Callable[[], None]


class ReplayedMaps:
    """Does what `forward_maps` does, with a graph for each shape of inputs that comes a second time.

    The inputs are copied into the memory that the graph reads, and the maps out of the memory that it writes.
    Where a pass cannot be recorded it runs as it is, from then on, after one warning.

    Args:
        record: runs a pass once on inputs that stay where they are, and returns what repeats it, and its
            result.
        most_shapes: shapes whose graphs are kept; the one that was not used for longest goes first.
    """

    def __init__(
        self,
        record: Callable[[Pass, Tensor], tuple[Recorded, Tensor]] | None = None,
        most_shapes: int = MOST_SHAPES,
    ) -> None:
        self._record = record or record_on_cuda
        self._most_shapes, self._is_possible = most_shapes, True
        self._seen = set[tuple[torch.Size, torch.dtype]]()
        self._graphs = OrderedDict[tuple[torch.Size, torch.dtype], tuple[Tensor, Recorded, Tensor]]()

    def __call__(self, model: nn.Module, inputs: Tensor, amp: torch.dtype | None = None) -> Tensor:
        """Returns the maps [b h w] float32 of normalised inputs [b 3 h w]; see `forward_maps`.

        Always called with the same model and `amp`, by one thread.
        """
        key = inputs.shape, inputs.dtype
        if key not in self._seen or not self._is_possible:
            self._seen.add(key)
            return forward_maps(model, inputs, amp)
        if key not in self._graphs and not self._add(key, model, inputs, amp):
            return forward_maps(model, inputs, amp)
        self._graphs.move_to_end(key)
        held, replay, maps = self._graphs[key]
        held.copy_(inputs)
        replay()
        return maps.clone()

    def _add(
        self, key: tuple[torch.Size, torch.dtype], model: nn.Module, inputs: Tensor, amp: torch.dtype | None
    ) -> bool:
        """Records the pass for one more shape; returns whether that was possible."""
        while len(self._graphs) >= self._most_shapes:
            self._graphs.popitem(last=False)
        held = inputs.to(next(model.parameters()).device).clone()
        try:
            self._graphs[key] = held, *self._record(lambda images: forward_maps(model, images, amp), held)
        except RuntimeError as error:
            self._is_possible = False
            self._graphs.clear()  # none is used again: gives their memory back
            warnings.warn(f"cuda_graphs=true: this model runs without graphs: {error}", stacklevel=4)
        return self._is_possible


def record_on_cuda(forward: Pass, inputs: Tensor) -> tuple[Recorded, Tensor]:
    """Records a pass on the GPU of inputs [b 3 h w]; returns what repeats it, and its result.

    Other threads may go on copying images to and from the GPU meanwhile.

    Raises:
        RuntimeError: the pass waits for the GPU somewhere, or memory is not enough.
    """
    stream = torch.cuda.Stream(inputs.device)
    stream.wait_stream(torch.cuda.current_stream(inputs.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            forward(inputs)
    torch.cuda.current_stream(inputs.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        maps = forward(inputs)
    return graph.replay, maps
