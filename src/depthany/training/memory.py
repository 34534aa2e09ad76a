"""What a run says when memory runs out: which settings to change, and their values."""

from collections.abc import Iterator
from contextlib import contextmanager

from depthany.data.transforms import crop_shape
from depthany.inference.predictor import is_out_of_memory
from depthany.system.plurals import counted
from depthany.training.checkpoints.state import Progress
from depthany.training.checks import per_micro_batch
from depthany.training.settings import TrainSettings
from depthany.training.stages.table import STAGES


@contextmanager
def explained_out_of_memory(settings: TrainSettings, progress: Progress) -> Iterator[None]:
    """Turns the error of a device or CPU whose memory is full into one that names the settings.

    Args:
        progress: progress of the run.

    Raises:
        ValueError: memory ran out inside; the step under way has changed no checkpoint.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(out_of_memory(settings, progress.step)) from error


def out_of_memory(settings: TrainSettings, step: int) -> str:
    """Returns the message of a run that ran out of memory after `step` steps."""
    h, w = crop_shape(settings.crop_size)
    images, parts = sum(per_micro_batch(settings)), more_parts(settings)
    sizes = f"smaller batch_size (now {settings.batch_size}) or crop_size (now {h} x {w})"
    anew = f"a {sizes}" if parts is None else f"accumulate={parts} (now {settings.accumulate}), or a {sizes}"
    again = "activation_checkpointing=true (now false) takes less and continues this run; "
    return (
        f"memory ran out after step {step}, with {counted(images, 'image')} of {h} x {w} in a micro-batch; "
        f"the step was not taken. {'' if settings.activation_checkpointing else again}with {anew}, "
        "start a new run"
    )


def more_parts(settings: TrainSettings) -> int | None:
    """Returns the next larger `accumulate` into which the batch can be split; None if there is none."""
    of_ratio = sum(STAGES[settings.stage.name].ratio(settings.stage))
    most = settings.batch_size // of_ratio
    return next(
        (n for n in range(settings.accumulate + 1, most + 1) if settings.batch_size % (n * of_ratio) == 0),
        None,
    )
