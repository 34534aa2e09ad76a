"""Where the released files of Depth Anything are, for messages about a file that is missing."""

import re
from pathlib import Path

OF_V2 = "huggingface.co/depth-anything/Depth-Anything-V2-"
OF_V1 = "huggingface.co/spaces/LiheYoung/Depth-Anything (folders checkpoints and checkpoints_metric_depth)"
SIZES = {"s": "Small", "b": "Base", "l": "Large"}
SETS = {"hypersim": "Hypersim", "vkitti": "VKITTI"}
V2_NAME = re.compile(r"depth_anything_v2_(?:metric_(hypersim|vkitti)_)?vit([sbl])")
V1_NAME = re.compile(r"depth_anything_(vit[sbl]14|metric_depth_(in|out)door)")
FILE_TYPES = (".pth", ".pt", ".safetensors")


def page_of(name: str) -> str | None:
    """Returns the address of the page with a released file of this name; None for another name."""
    stem = Path(name).stem
    if found := V2_NAME.fullmatch(stem):
        middle = f"Metric-{SETS[found[1]]}-" if found[1] else ""
        return f"{OF_V2}{middle}{SIZES[found[2]]}"
    return OF_V1 if V1_NAME.fullmatch(stem) else None


def missing_file(source: str) -> str | None:
    """Returns a line about a file of weights that is missing, with its address if it is a released one;
    None if the name is not that of such a file.
    """
    if Path(source).suffix not in FILE_TYPES:
        return None
    where = f"{source} does not exist (looked from {Path.cwd()})"
    if page := page_of(source):
        return f"{where}: download it from {page}"
    advice = "correct the path, or train that model first"
    return f"{where}: {advice}; official files: huggingface.co/depth-anything"
