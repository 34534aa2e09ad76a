"""What a user of the bundled sample's model must know before it sees a photograph."""

from collections.abc import Iterable

from depthany.models.model import DenseModel
from depthany.system.sample import FOLDER

SIZE = "vitt"  # of the sample's encoder; no released model has it
TRAINED_LARGE = 392  # pixels; the released models were trained at 518, and gain from more
RELEASED = "checkpoint=depth_anything_v2_vits.pth"
NOTE = (
    "a small model of the bundled sample gives correct but blurry maps of that sample's scenes, and blobs "
    f"on photographs. For these load a file of Depth Anything, such as {RELEASED} "
    "(huggingface.co/depth-anything)"
)


def note_on_sample_model(model: DenseModel, paths: Iterable[object] = ("",)) -> str | None:
    """Returns a line if the model has the encoder of the sample, and an image is not of the sample."""
    is_small = model.config["encoder"].get("size") == SIZE
    return NOTE if is_small and any(FOLDER not in str(path) for path in paths) else None


def size_advice(model: DenseModel) -> str:
    """Returns in a sentence what another input size does to the model's maps."""
    if model.input_size >= TRAINED_LARGE:
        return "Larger is finer and slower."
    return f"This model was trained at {model.input_size} pixels; other sizes are mostly worse."
