"""Where a model lies: a local path, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from depthany.models.files.download import missing_file
from depthany.models.files.hub import hub_file
from depthany.models.files.huggingface import PREPROCESSOR_NAME
from depthany.models.model import CONFIG_NAME, WEIGHTS_NAME

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def local_path(source: str | Path) -> Path:
    """Returns the path of a local source, with the home folder for ~."""
    return Path(source).expanduser()


def is_hub_id(source: str | Path) -> bool:
    """Whether a source that is not a local path can be a model on the hub, such as organisation/name."""
    path = Path(source)
    is_file = path.suffix in (".safetensors", ".pt", ".pth")
    return bool(HUB_ID.fullmatch(str(source))) and not path.parent.is_dir() and not is_file


def locate(source: str | Path) -> Path:
    """Returns the local path of a source; a hub id that is not a local path is downloaded."""
    path = local_path(source)
    if path.exists():
        return path
    if line := missing_file(str(source)):
        raise FileNotFoundError(line)
    if not is_hub_id(source):
        raise FileNotFoundError(
            f"{source} does not exist; pass a run directory, a .safetensors, .pt or .pth file, a Hugging "
            "Face folder or the id of one on the hub"
        )
    way_out = "it is not a local path either: pass the path of a file or folder"
    for name in (CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME):
        file = hub_file(str(source), name, f"{name} of {source} from the Hugging Face hub", way_out)
    return file.parent
