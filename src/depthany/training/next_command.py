"""What the next command takes over from a run, for the line with which the run ends."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from depthany.config.groups import choices, config_dirs

# Settings that say which images and which kind of model a run is about, and not how long it trains.
SHARED = (
    *("plugins", "experiment", "data", "data.*", "*@data*", "crop_size", "seed"),
    *("model", "model.encoder*", "model.decoder*", "model.weights", "model.pretrained"),
)
FOLDER = "FOLDER"  # stands for a folder that the user names


@dataclass(frozen=True)
class Given:
    """What a run was given that the next command needs, too.

    Attributes:
        words: settings on the command line of the run, not quoted.
        images: a folder with images of the run, for `predict`.
        unlabeled: settings that a student needs, and that the run was not given.
    """

    words: tuple[str, ...] = ()
    images: str = FOLDER
    unlabeled: tuple[str, ...] = ()

    def shared(self, next_stage: str) -> list[str]:
        """Returns the words that another stage shares, with the experiment of that stage."""
        words = list[str]()
        for word in self.words:
            key, _, value = word.partition("=")
            own, _, of_stage = value.rpartition("_")
            if key == "experiment" and of_stage == "teacher":  # v1_vitl_teacher -> v1_vitl_student
                other = f"{own}_{next_stage}"
                words += [f"experiment={other}"] if other in choices("experiment") else []
            elif any(fnmatchcase(key.lstrip("+"), pattern) for pattern in SHARED):
                words.append(word)
        return words


NOTHING = Given()


def command_line(entry: str, words: Sequence[str]) -> str:
    """Returns a command for the shell, with the folder of the user's configuration files if there is one."""
    folders = [word for folder in config_dirs()[1:] for word in ("--config-dir", str(folder))]
    return f"python -m depthany.{entry} {shlex.join([*folders, *words])}"


def student_dir(teacher_dir: Path) -> Path:
    """Returns the folder for the student of a teacher: outputs/my_teacher -> outputs/my_student."""
    name = teacher_dir.name
    other = name.replace("teacher", "student") if "teacher" in name else f"{name}_student"
    return teacher_dir.with_name(other)


def folder_of_images(data: Any) -> str:
    """Returns a folder with images of a run, of its validation if it has any; a placeholder if none is found.

    Args:
        data: `DataSettings` of the run.
    """
    for folder in _folders(data):
        if Path(folder).is_dir():
            return folder
    return FOLDER


def _folders(data: Any) -> Iterator[str]:
    kinds: tuple[Mapping[str, Any], ...] = (data.val, data.unlabeled, data.labeled)
    for entry in (entry for entries in kinds for entry in entries.values()):
        root = entry.get("root")
        if isinstance(root, str):
            yield str(Path(root) / entry.get("images", ""))
