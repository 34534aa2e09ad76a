"""The training step on one process, for benchmark_train.py, and where its time goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from depthany.data.batch import Batch
from depthany.data.perturb import Perturb
from depthany.models.half_weights import hold_weights
from depthany.models.model import DenseModel
from depthany.system.device import Compute
from depthany.system.distributed import ALONE
from depthany.training.checkpoints.state import TrainingState
from depthany.training.finite import FiniteCheck
from depthany.training.loop import draw_generator, update
from depthany.training.optim import LrFactors, OptimizerSettings, build_optimizer
from depthany.training.regional import UsualSize, compile_run
from depthany.training.stages import base as base_stage
from depthany.training.stages import metric as metric_stage
from depthany.training.stages import student as student_stage
from depthany.training.stages import teacher as teacher_stage
from depthany.training.stages.base import Stage, StageContext

TERMS = {"affine_invariant": 1.0}
METRIC = metric_stage.MetricSettings("metric", {"silog": 1.0}, near_m=1e-3)
STUDENT = student_stage.StudentSettings(
    name="student",
    teacher="",
    terms=TERMS,
    ratio=[1, 2],
    weights=student_stage.ImageWeights(1 / 3, 1 / 3, 1 / 3),
    trim=0.1,
    feature_alignment=student_stage.FeatureAlignmentSettings(0.15, "kept", "perturbed"),
)
LOSSES = (
    (base_stage, "weighted_terms"),
    (student_stage, "feature_alignment_loss"),
)


class OurTraining:
    """All objects of a run that trains `model`, and the body of the training loop.

    Args:
        student: train as the student; else a relative model as the teacher, and a metric one by V1's recipe.
        gradient: train the teacher with the gradient-matching loss of V2, too.
        cuda_graphs: compile with CUDA graphs.
    """

    def __init__(
        self,
        model: DenseModel,
        student: bool,
        compute: Compute,
        checkpointing: bool,
        compiled: bool = False,
        gradient: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        clip_norm = 0.1 if model.quantity.is_metric else None
        model.to(compute.device)
        options = {"normalisation": "median_mad", "reduction": "batch"}
        context = StageContext(model, deepcopy(model) if student else None, Perturb(), options)
        terms = {**TERMS, "gradient": 2.0} if gradient else TERMS
        stage: Stage = teacher_stage.TeacherStage.build(
            teacher_stage.TeacherSettings("teacher", terms), context
        )
        if student:
            stage = student_stage.StudentStage.build(STUDENT, context)
        elif model.quantity.is_metric:
            stage = metric_stage.MetricStage.build(METRIC, context)
        self.compute, self.student = compute, student
        model.encoder.activation_checkpointing = checkpointing
        for network in (model, stage):
            network.to(compute.device, memory_format=torch.channels_last)
        optimizer = build_optimizer(model, [], OptimizerSettings(5e-6, lr_factors=LrFactors(1, 10, 10)))
        scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.amp == torch.float16)
        self.state = TrainingState(model, stage.train(), optimizer, scaler)
        hold_weights(stage.frozen().values(), compute.amp)
        if compiled or cuda_graphs:
            compile_run(model, stage, cuda_graphs)
        self.usual_size = UsualSize(stage.is_compiled)
        self.check = FiniteCheck.for_run(optimizer, compute.device, ALONE)
        self.backward: Callable[[Tensor, Tensor | None], None] = lambda loss, start: loss.backward(start)
        self.update: Callable[[], object] = lambda: update(self.state, clip_norm, self.check)

    def step(self, batch: Batch, number: int) -> Tensor:
        """Takes one step; returns the loss []."""
        amp = self.compute.amp
        with self.usual_size(batch):
            with torch.autocast(self.compute.device.type, amp, enabled=amp is not None):
                output = self.state.stage(self.state.model, batch, draw_generator(0, number))
            start = self.check.gradient_of_loss(output, number)
            self.backward(output.loss, start)
        self.check.settle()  # the step before
        self.update()
        return output.loss.detach()


class Shares:
    """Seconds of a step by part. A loss's own backward pass counts as backward.

    Args:
        training: `OurTraining`, or another object with its `state`, `student`, `backward` and `update`.
        clock: seconds, of the wall or of the CPU.
    """

    def __init__(self, training: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self.training, self.clock, self.seconds = training, clock, dict[str, float]()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time spent inside."""
        start = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - start

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the same function with its time counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return work(*arguments, **named)

        return counted

    def timed_iterator(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        """Yields the same items with the time of each counted."""
        while True:
            with self.part(name):
                item = next(items, self)
            if item is self:
                return
            yield item

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Counts the parts of every step inside."""
        training, state = self.training, self.training.state
        with ExitStack() as stack:

            def replace(owner: Any, attribute: str, name: str) -> None:
                counted = self.timed(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, counted))

            if training.student:
                replace(state.stage.teacher, "forward", "teacher")
                replace(Perturb, "colour", "perturbations")
                replace(Perturb, "cutmix", "perturbations")
                if state.stage.frozen_encoder is not None:
                    replace(state.stage.frozen_encoder, "forward", "frozen encoder")
            replace(state.model, "forward", "forward")
            for module, loss in LOSSES:
                replace(module, loss, "losses")
            replace(training, "backward", "backward")
            replace(training, "update", "optimizer")
            yield
