"""The contract of a stage: what it needs, what it trains, and how a batch becomes a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from depthany.data.batch import Batch
from depthany.data.labeled_options import PLAIN, LabeledOptions
from depthany.data.perturb import Perturb
from depthany.losses.reduce import MeanOverRanks, on_one_rank
from depthany.losses.table import require_terms, weighted_terms
from depthany.models.model import DenseModel
from depthany.models.output import Kind
from depthany.system.rules import setting
from depthany.training.next_command import NOTHING, Given, command_line


@dataclass(frozen=True)
class Needs:
    """What a stage learns from.

    labeled, unlabeled: whether it draws images of this kind.
    teacher: whether a trained model labels images for it; `Settings` then has the field `teacher`, its path.
    """

    labeled: bool = False
    unlabeled: bool = False
    teacher: bool = False


@dataclass
class StageSettings:
    """The part of the configuration group `stage` that all stages share; a stage's `Settings` extend it."""

    name: str = setting()


@dataclass
class TermsSettings(StageSettings):
    """The settings of a stage whose loss is a weighted sum of rows of `losses.table.LOSSES`."""

    terms: dict[str, float] = setting()

    def __post_init__(self) -> None:
        require_terms(self.terms)


@dataclass(frozen=True)
class StageContext:
    """What a stage is built from besides its settings.

    model: the model that learns, in its initial state, on the CPU.
    teacher: the trained model that labels images; None where the stage needs none or batches bring labels.
    perturb: the perturbation chosen by the group `perturb`.
    loss_options: normalisation and reduction, see `depthany.losses.table.weighted_terms`.
    mean_over_ranks: see `depthany.losses.reduce.MeanOverRanks`.
    """

    model: DenseModel
    teacher: DenseModel | None
    perturb: Perturb
    loss_options: Mapping[str, Any]
    mean_over_ranks: MeanOverRanks = on_one_rank


@dataclass(frozen=True)
class StageImages:
    """Images of one kind with what a stage saw and predicted, for the pictures in the log.

    clean, seen: [b 3 h w] uint8, before and after perturbation.
    target, prediction: [b h w], in the unit of the stage's target.
    mask: [b h w] bool, True where the target is known.
    kind: kind of quantity of target and prediction. A prediction of classes is logits [b k h w].
    colours: RGB of each class.

    Maps of another size than the images are resized to them in pictures.
    """

    clean: Tensor
    seen: Tensor
    target: Tensor
    mask: Tensor
    prediction: Tensor
    kind: Kind = "disparity"
    colours: Sequence[tuple[int, int, int]] = ()


@dataclass(frozen=True)
class StageOutput:
    """What a stage makes of a micro-batch.

    loss: [] to go backward from; a kind of image that the micro-batch lacks adds 0 and no gradient.
    scalars: [] by name, for the log; only of the kinds that the micro-batch has.
    images: by kind, those of this rank, for pictures and for `training.output_watch`.
    distributions: by name, values of any shape of this rank, without gradient; the log shows quantiles of
        those of the newest micro-batch, over all ranks. A name is there on all ranks or on none.

    Where ranks share the micro-batch, the means over them of loss, gradients and scalars are those of the
    whole.
    """

    loss: Tensor
    scalars: dict[str, Tensor]
    images: dict[str, StageImages]
    distributions: dict[str, Tensor] = field(default_factory=dict)


class Stage(nn.Module):
    """A stage of training. Loop, checkpoints, FSDP and tracking ask it, and know no stage by name.

    A stage is a subclass with its own class attributes, `build` and `forward`, and a row in
    `depthany.training.stages.table.STAGES`. Networks that it holds besides the model are returned by `frozen`
    or by `trained`, under the names of the attributes that hold them.

    Class attributes:
        Settings: dataclass from which the group `stage` of the configuration is checked.
        needs: kinds of images and whether a teacher is needed.
        target: name in `depthany.data.targets.TARGETS` of what it learns from labels.
        predicts: kind of quantity that the model learns to predict; a teacher must predict the same.
        primary: name in `depthany.metrics.table.METRICS` of the score that decides which checkpoint is best.
        seed_offset: added to the seed of the initial weights, so that stages start from different ones.
        regions: methods that `training.regional` compiles, each on its own.

    Attributes:
        is_compiled: whether this run is compiled.
    """

    Settings: ClassVar[type[StageSettings]] = StageSettings
    needs: ClassVar[Needs] = Needs(labeled=True)
    target: ClassVar[str] = "disparity01"
    predicts: ClassVar[Kind] = "disparity"
    primary: ClassVar[str] = "abs_rel"
    seed_offset: ClassVar[int] = 0
    regions: ClassVar[tuple[str, ...]] = ()
    is_compiled: bool = False

    @classmethod
    def ratio(cls, settings: Any) -> tuple[int, int]:
        """Returns the shares of labeled and unlabeled images in a batch."""
        return int(cls.needs.labeled), int(cls.needs.unlabeled)

    @classmethod
    def weights_files(cls, settings: Any) -> Mapping[str, str]:
        """Returns files of encoder weights that `build` reads, by their keys below `stage`."""
        return {}

    @classmethod
    def labeled_options(cls, settings: Any, sets: Sequence[str]) -> LabeledOptions:
        """Returns how it wants labeled images.

        Args:
            sets: names of the labeled sets that have a root, in their order.
        """
        return PLAIN

    @classmethod
    def validation_input(cls, settings: Any) -> Mapping[str, Any]:
        """Returns arguments of `training.validation.evaluate` on how images of validation are seen."""
        return {}

    @classmethod
    def next_command(cls, run_dir: Path, given: Given = NOTHING) -> str:
        """Returns what a user does next with the model in `run_dir`, for the shell; FOLDER is to be named."""
        plugins = [word for word in given.words if word.startswith("plugins=")]
        return command_line("predict", [f"checkpoint={run_dir}", f"images={given.images}", *plugins])

    @classmethod
    def build(cls, settings: Any, context: StageContext) -> "Stage":
        """Builds the stage from its `Settings`, on the CPU."""
        raise NotImplementedError(f"{cls.__name__} has no build")

    def frozen(self) -> dict[str, nn.Module]:
        """Returns its networks that do not learn: without gradient, always in eval mode, in no checkpoint."""
        return {}

    def trained(self) -> dict[str, nn.Module]:
        """Returns its networks that learn besides the model; they are in the optimizer and in checkpoints."""
        return {}

    def train(self, mode: bool = True) -> "Stage":
        """Sets training mode, except for what is frozen."""
        super().train(mode)
        for network in self.frozen().values():
            network.eval()
        return self

    def forward(self, model: DenseModel, batch: Batch, generator: torch.Generator) -> StageOutput:
        """Returns loss and log of a micro-batch; `generator` (on the CPU) determines all random choices."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class TermsStage(Stage):
    """A stage whose loss on maps is a weighted sum of rows of `losses.table.LOSSES`; it holds no network.

    Args:
        settings: with the weights, `terms`.
        loss_options, mean_over_ranks: see `weighted_terms`.
    """

    Settings: ClassVar[type[StageSettings]] = TermsSettings
    regions: ClassVar[tuple[str, ...]] = ("weighted_loss",)

    def __init__(
        self,
        settings: TermsSettings,
        loss_options: Mapping[str, Any],
        mean_over_ranks: MeanOverRanks = on_one_rank,
    ) -> None:
        super().__init__()
        self.settings, self.loss_options = settings, dict(loss_options)
        self.mean_over_ranks = mean_over_ranks

    @classmethod
    def build(cls, settings: Any, context: StageContext) -> "TermsStage":
        """Builds the stage from its `Settings`."""
        return cls(settings, context.loss_options, context.mean_over_ranks)

    def weighted_loss(
        self, prediction: Tensor, target: Tensor, mask: Tensor, **options: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum [] of the losses, and the value [] of each; see `weighted_terms`.

        Args:
            prediction, target, mask: [b h w], in the space of the stage's target; bool for the mask.
        """
        options = {**self.loss_options, **options}
        return weighted_terms(
            self.settings.terms, prediction, target, mask, mean_over_ranks=self.mean_over_ranks, **options
        )


def trained_parameters(stage: Stage) -> list[nn.Parameter]:
    """Returns the parameters of what a stage trains besides the model."""
    return [parameter for network in stage.trained().values() for parameter in network.parameters()]


def trained_state(stage: Stage) -> dict[str, Tensor]:
    """Returns parameters and buffers of what a stage trains, by names such as projection.weight."""
    return {
        f"{name}.{key}": tensor
        for name, network in stage.trained().items()
        for key, tensor in network.state_dict().items()
    }


def require_declared(stage: Stage) -> None:
    """Raises a ValueError unless each parameter of a stage is frozen or trained as the stage declares it."""
    trained = {id(parameter) for parameter in trained_parameters(stage)}
    frozen = {id(p) for network in stage.frozen().values() for p in network.parameters()}
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise ValueError(
                f"{type(stage).__name__}.{name} has a gradient but would not be trained: return its network "
                "from trained(), or freeze() it and return it from frozen()"
            )
        if not parameter.requires_grad and id(parameter) not in frozen:
            raise ValueError(f"{type(stage).__name__}.{name} is frozen: return its network from frozen()")


def freeze(network: nn.Module) -> nn.Module:
    """Switches gradients off and eval mode on; `Stage.train` keeps what `frozen` returns in eval mode."""
    return network.requires_grad_(False).eval()


def at_least_one(image: Tensor) -> Tensor:
    """Replaces an empty batch [0 3 h w] by one black image [1 3 h w], whose output is to be ignored.

    So the loss of an empty micro-batch has a gradient, 0 everywhere, as the step and fp16's scaler need it,
    and no attention kernel has to cope with an empty batch.
    """
    return image if len(image) else image.new_zeros(1, *image.shape[1:])


def zero_fraction(prediction: Tensor, mean_over_ranks: MeanOverRanks = on_one_rank) -> Tensor:
    """Returns the share [] of pixels of prediction [b h w] that are exactly 0.

    Near 1 the output ReLU is dead, and no gradient flows.
    """
    zeros = (prediction.detach() == 0).sum()  # []
    return zeros / mean_over_ranks(torch.full_like(zeros, prediction.numel())).clamp(min=1e-6)


def term_scalars(kind: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns `values` [], the losses by name, as loss/<kind>/<name>; nothing where there is only one."""
    return {f"loss/{kind}/{name}": value for name, value in values.items()} if len(values) > 1 else {}
