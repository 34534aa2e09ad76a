"""The step of `depthany.train` on one process, for benchmark_train.py, and where its time goes."""

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
from depthany.models.model import DenseModel
from depthany.training.checkpoints.state import Parts
from depthany.training.loop import draw_generator, require_finite, update
from depthany.training.optim import build_optimizer
from depthany.training.stages import stages

LOSSES = ("affine_invariant_loss", "cutmix_affine_invariant_loss", "feature_alignment_loss")


class OurTraining:
    """All parts of a run, from a model that is trained, and the body of the loop of train.py."""

    def __init__(
        self, model: DenseModel, student: bool, amp: torch.dtype | None, checkpointing: bool
    ) -> None:
        loss: Any = {"normalisation": "median_mad", "reduction": "batch"}
        self.amp, self.student, stage = amp, student, stages.TeacherStage(**loss)
        if student:
            stage = stages.StudentStage(
                deepcopy(model),
                deepcopy(model.encoder),
                model.encoder.spec.embed_dim,
                Perturb(),
                dict.fromkeys(("labeled", "unlabeled", "feature"), 1 / 3),
                trim=0.1,
                alpha=0.15,
                mean_over="kept",
                frozen_input="perturbed",
                **loss,
            )
        model.encoder.activation_checkpointing = checkpointing
        for network in (model, stage):
            network.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, [], 5e-6, 10, 0.01, (0.9, 0.999))
        self.parts = Parts(model, stage.train(), optimizer, torch.amp.GradScaler("cpu", enabled=False))
        self.backward: Callable[[Tensor], None] = lambda loss: loss.backward()
        self.update: Callable[[], object] = lambda: update(self.parts, None)

    def step(self, batch: Batch, number: int) -> Tensor:
        """One step; gives the loss."""
        with torch.autocast("cpu", self.amp, enabled=self.amp is not None):
            output = self.parts.stage(self.parts.model, batch, draw_generator(0, number))
        require_finite(output, number)
        self.backward(output.loss)
        self.update()
        return output.loss.detach()


class Shares:
    """Seconds of a step by part. A loss's own backward pass counts as backward."""

    def __init__(self, training: OurTraining) -> None:
        self.training, self.seconds = training, dict[str, float]()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return work(*arguments, **named)

        return counted

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Count the parts of every step inside."""
        training, parts = self.training, self.training.parts
        with ExitStack() as stack:

            def replace(owner: Any, attribute: str, name: str) -> None:
                counted = self.timed(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, counted))

            if training.student:
                replace(parts.stage.teacher, "forward", "teacher")
                replace(Perturb, "colour", "perturbations")
                replace(Perturb, "cutmix", "perturbations")
                replace(parts.stage.frozen_encoder, "forward", "frozen encoder")
            replace(parts.model, "forward", "forward")
            for loss in LOSSES:
                replace(stages, loss, "losses")
            replace(training, "backward", "backward")
            replace(training, "update", "optimizer")
            yield
