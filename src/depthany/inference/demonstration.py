"""What a user of a small model must know before it sees a photograph."""

from collections.abc import Iterable

from depthany.models.model import DenseModel
from depthany.system.sample import FOLDER

SIZE = "vitt"  # of the smallest encoder, which the sample has; no released model has it
TRAINED_LARGE = 392  # pixels; the released models were trained at 518, and gain from more
RELEASED = "checkpoint=depth_anything_v2_vits.pth"
NOTE = (
    f"this model is small ({SIZE}): its maps are blurry, and mostly blobs where images are unlike those that "
    f"it was trained on. For sharp maps of any photographs load a file of Depth Anything, such as {RELEASED} "
    "(huggingface.co/depth-anything/Depth-Anything-V2-Small)"
)


def note_on_small_model(model: DenseModel, paths: Iterable[object] = ("",)) -> str | None:
    """Returns a line if the model has the smallest encoder, and an image is not of the bundled sample."""
    is_small = model.config["encoder"].get("size") == SIZE
    return NOTE if is_small and any(FOLDER not in str(path) for path in paths) else None


def size_advice(model: DenseModel) -> str:
    """Returns in a sentence what another input size does to the model's maps."""
    if model.input_size >= TRAINED_LARGE:
        return "Larger is finer and slower."
    return f"This model was trained at {model.input_size} pixels; other sizes are mostly worse."
