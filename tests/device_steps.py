"""A step of training on the device `meta`, which has shapes but no values, as a GPU would be asked for it.

Whatever needs a value of a tensor fails there. What would make the program wait for a GPU without one is
noted: copies from the CPU that do not happen in the background, and indices on the CPU.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.models.model import DenseModel, depth_anything
from depthany.training.ema import EmaSettings, WeightAverage
from depthany.training.finite import FiniteCheck
from depthany.training.loop import draw_generator
from depthany.training.meter import Meter
from depthany.training.optim import clip_gradients
from depthany.training.stages.base import Stage
from depthany.training.stages.student import (
    FeatureAlignmentSettings,
    ImageWeights,
    StudentSettings,
    StudentStage,
)
from depthany.training.stages.teacher import TeacherSettings, TeacherStage

META = torch.device("meta")
TERMS = {"affine_invariant": 1.0}
LOSS_OPTIONS = {"normalisation": "median_mad", "reduction": "batch"}
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"}
SIDE = 28


class Watch(TorchDispatchMode):
    """Counts operators on `meta` that are a kernel on a GPU or more, and notes what waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.waits = Counter[str](), list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in (*given, *made)):
            return result
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in NO_KERNEL:
            self.kernels[name] += 1
        from_cpu = [tensor for tensor in given if not tensor.is_meta]
        in_background = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        is_copy = name in ("_to_copy", "copy_") and not in_background
        if from_cpu and (is_copy or name.startswith("index") or "index_put" in name):
            self.waits.append(name)
        return result


@contextmanager
def watching() -> Iterator[Watch]:
    """Watches what happens inside."""
    watch, make, autocast = Watch(), torch.tensor, torch.autocast

    def tensor(*args: Any, **kwargs: Any) -> Tensor:
        if str(kwargs.get("device", "cpu")) != "cpu":
            watch.waits.append("tensor")
        return make(*args, **kwargs)

    def autocast_of(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if device_type == "meta" else device_type, *args, **kwargs)  # meta has none

    with pytest.MonkeyPatch.context() as patch, watch:
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "autocast", autocast_of)
        yield watch


def make_batch(labeled: int, unlabeled: int, device: torch.device | None = None) -> Batch:
    """Noise with labels; pinned if it is to go to a GPU."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (labeled + unlabeled, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    disparity = torch.rand(labeled, SIDE, SIDE, generator=draw)
    batch = Batch(image[:labeled], disparity, disparity > 0.2, image[labeled:])
    return batch.pin_memory() if device is not None and device.type == "cuda" else batch


def stage_of(name: str, **student: Any) -> Stage:
    """The stage with its defaults and a tiny encoder, in training mode."""
    if name == "teacher":
        return TeacherStage(TeacherSettings("teacher", TERMS), LOSS_OPTIONS).train()
    alignment = FeatureAlignmentSettings(0.15, "kept", "perturbed", "none")
    settings = {"ratio": [1, 2], "weights": ImageWeights(1 / 3, 1 / 3, 1 / 3), "trim": 0.0, **student}
    options = StudentSettings("student", TERMS, teacher="unused", feature_alignment=alignment, **settings)
    teacher, frozen, own = depth_anything("micro"), *(depth_anything("micro").encoder for _ in range(2))
    return StudentStage(options, teacher, frozen, own, Perturb(blur_radius=(0.1, 0.5)), LOSS_OPTIONS).train()


def step(
    stage: Stage, model: DenseModel, batch: Batch, meter: Meter, average: WeightAverage, clip: float | None
) -> None:
    """Does what the loop does in a step, but for the optimizer."""
    check = FiniteCheck(at_once=False)
    output = stage(model, batch.to(next(model.parameters()).device), draw_generator(0, 0))
    output.loss.backward(check.gradient_of_loss(output, 0))
    meter.add(output, len(batch), 1)
    meter.add_step(clip_gradients(list(model.parameters()), clip), clip)
    model.zero_grad(set_to_none=True)
    average.update(model, 1)


def watched_step(name: str, clip: float | None = None, **student: Any) -> Watch:
    """Returns what was watched in the second step; the first one makes what is kept."""
    stage, model = stage_of(name, **student).to(META), depth_anything("micro").train().to(META)
    batch = make_batch(2, 4) if name == "student" else make_batch(6, 0)
    meter, average = Meter(), WeightAverage(model, EmaSettings(0.9))
    for _ in range(2):
        with watching() as watch:
            step(stage, model, batch, meter, average, clip)
    return watch
