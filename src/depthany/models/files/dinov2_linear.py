"""Files of DINOv2's released linear segmentation heads: BatchNorm and a 1x1 convolution, without the encoder.

Source: Oquab et al. 2023 (arXiv 2304.07193) section 7.4. The names of the weights follow from the code of
facebookresearch/dinov2 (`BNHead`) and of mmsegmentation; they were not compared with a released file.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from depthany.models.dinov2 import SIZES, Dinov2
from depthany.models.files.found import Found
from depthany.models.files.weights import OFFICIAL_FILES, load_encoder_weights
from depthany.system.class_names import ADE20K_NAMES, VOC_NAMES

CONV, NORM = "decode_head.conv_seg.", "decode_head.bn."
LEVELS = (1, 4)  # the last block ("linear"), or the last four ("ms")
INPUT_SIZE = 518  # 512 in DINOv2's evaluation, padded to a multiple of the patch


def is_dinov2_linear(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of such a head alone."""
    return f"{CONV}weight" in state and all(name.startswith("decode_head.") for name in state)


def read_dinov2_linear(path: Path, state: Mapping[str, Tensor]) -> Found:
    """Returns the model of a head in `state` and of the DINOv2 encoder that it was trained on.

    The encoder's weights are read from DINOv2's official file beside `path`, else from the hub.

    Raises:
        ValueError: no DINOv2 has such tokens, or the encoder's weights are damaged.
        DownloadError: the encoder's weights are not local, and the hub cannot be reached.
    """
    classes, width = state[f"{CONV}weight"].shape[:2]
    size, levels = _size_and_levels(path, width)
    encoder = Dinov2(size)
    beside = path.with_name(OFFICIAL_FILES.get(size, f"dinov2_{size}14_pretrain.pth"))
    load_encoder_weights(encoder, beside if beside.is_file() else None)
    names = {len(known): known for known in (ADE20K_NAMES, VOC_NAMES)}
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for theirs, ours in ((CONV, "head.conv."), (NORM, "head.norm.")):
        found = {name: tensor for name, tensor in state.items() if name.startswith(theirs)}
        weights |= {name.replace(theirs, ours): tensor for name, tensor in found.items()}
    config = {
        "encoder": {"name": "dinov2", "size": size},
        "decoder": {"name": "levels"},
        "head": {
            "name": "classes_linear",
            "class_names": [*names.get(classes, (f"class_{index}" for index in range(classes)))],
            "align_corners": False,
            "levels": levels,
        },
        "input_size": INPUT_SIZE,
    }
    return Found(path, config, weights)


def _size_and_levels(path: Path, width: int) -> tuple[str, int]:
    """Returns the size of the encoder and how many of its levels a head of this width takes."""
    released = [name for name in SIZES if name in OFFICIAL_FILES or f"{name}14" in path.name]
    fits = [
        (name, levels) for levels in LEVELS for name in released if SIZES[name].embed_dim * levels == width
    ]
    named = [(name, levels) for name, levels in fits if f"{name}14" in path.name]
    if len(fits) == 1 or len(named) == 1:
        return (named or fits)[0]
    sizes = ", ".join(name for name, _ in fits) or "no DINOv2"
    raise ValueError(
        f"{path}: a linear head of {width} channels fits {sizes}: expected the name of the released file, "
        "such as dinov2_vits14_ade20k_linear_head.pth"
    )
