"""Files of torchvision's `deeplabv3_resnet50` and `deeplabv3_resnet101`: the same layers, the same logits."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from depthany.models.files.found import Found
from depthany.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from depthany.system.class_names import VOC_NAMES

CLASSIFIER = "classifier.4.weight"
BLOCKS_OF_LAYER3 = {6: "resnet50", 23: "resnet101"}
INPUT_SIZE = 520  # shorter side in torchvision's evaluation
RATES = (6, 12, 18)  # at 16 pixels per cell: 12, 24, 36 at torchvision's 8


def is_torchvision_deeplab(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of one of torchvision's DeepLab V3."""
    return CLASSIFIER in state and "classifier.0.convs.0.0.weight" in state


def read_torchvision_deeplab(path: Path, state: Mapping[str, Tensor]) -> Found:
    """Returns what `state`, a file of torchvision's DeepLab V3, holds, without its auxiliary classifier.

    Raises:
        ValueError: the backbone is not one of these ResNets.
    """
    blocks = {name.split(".")[2] for name in state if name.startswith("backbone.layer3.")}
    if len(blocks) not in BLOCKS_OF_LAYER3:
        raise ValueError(
            f"{path} is a DeepLab V3 of torchvision with another backbone: expected resnet50 or resnet101"
        )
    classes = len(state[CLASSIFIER])
    names = VOC_NAMES if classes == len(VOC_NAMES) else [f"class_{index}" for index in range(classes)]
    used = {name: tensor for name, tensor in state.items() if not name.startswith("aux_classifier.")}
    return Found(
        path,
        {
            "encoder": {
                "name": "atrous",
                "model": BLOCKS_OF_LAYER3[len(blocks)],
                "output_stride": 8,
                "padding": "symmetric",
                "bn_eps": 1e-5,
                "mean": list(IMAGENET_MEAN),
                "std": list(IMAGENET_STD),
            },
            "decoder": {"name": "levels"},
            "head": {
                "name": "classes_deeplab",
                "class_names": list(names),
                "align_corners": False,
                "style": "torchvision",
                "rates": list(RATES),
                "dropout": 0.5,
            },
            "input_size": INPUT_SIZE,
        },
        used,
        torchvision_name,
    )


def torchvision_name(name: str) -> str:
    """Returns the name in such a file of a weight of ours."""
    part, rest = name.split(".", 1)
    if part == "encoder":
        return f"backbone.{rest.removeprefix('timm_model.')}"
    for ours, theirs in (
        ("branches.", "classifier.0.convs."),
        ("project.", "classifier.0.project."),
        ("refine.0.", "classifier.1."),
        ("refine.1.", "classifier.2."),
        ("classifier.", "classifier.4."),
    ):
        if rest.startswith(ours):
            return theirs + rest.removeprefix(ours)
    raise AssertionError(name)
