"""The commands that README files, docs/ and `--help` show, as argument lists."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "data/README.md", "docs/plugin_example/README.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
INLINE = re.compile(r"(?<!`)`((?:PYTHONPATH=\S+ )?(?:python|torchrun|sbatch|tensorboard|pip|pytest)\s[^`]+)`")
LAUNCHERS = {"torchrun": "-m", "sbatch": "scripts/slurm_train.sbatch"}  # the word before what is launched


@dataclass(frozen=True)
class Command:
    """A command of a document.

    Attributes:
        where: the document that shows it first.
        words: as the shell passes them.
        is_whole: False if the document leaves out settings, by "...".
        is_launched: whether torchrun or Slurm starts it.
        python_path: value of PYTHONPATH, set before the command or exported above it; "" if it is not set.
    """

    where: str
    words: tuple[str, ...]
    is_whole: bool
    is_launched: bool
    python_path: str = ""

    @property
    def entry(self) -> str | None:
        """Such as "train" for `python -m depthany.train`; None for other programs."""
        if self.words[0] == "sbatch":
            return "train"
        found = [word for word in self.words if word.startswith("depthany.")]
        return found[0].removeprefix("depthany.") if found and "-m" in self.words else None

    @property
    def is_sweep(self) -> bool:
        """Whether it runs several jobs, by a -m of its own."""
        return "-m" in self.arguments

    @property
    def arguments(self) -> list[str]:
        """What follows the entry."""
        before = LAUNCHERS.get(self.words[0], "-m")
        skip = 1 if before.startswith("scripts/") else 2
        return list(self.words[self.words.index(before) + skip :])

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def documented_commands() -> list[Command]:
    """Returns every command once, in the order of the documents."""
    found: dict[tuple[str, ...], Command] = {}
    for name in DOCUMENTS:
        exported = ""
        for line in _lines_of_markdown((ROOT / name).read_text(encoding="utf-8")):
            if set_to := re.match(r"export PYTHONPATH=(\S+)", line):
                exported = set_to[1]
            for command in _commands(line, name, exported):
                found.setdefault(command.words, command)
    for path in sorted(ROOT.glob("configs/*.yaml")):
        header = (yaml.safe_load(path.read_text()).get("hydra", {}).get("help") or {}).get("header", "")
        for line in re.findall(r"^ *((?:python|torchrun|tensorboard) .*)$", header, re.MULTILINE):
            for command in _commands(line.split("  ")[0], f"{path.stem} --help"):  # two blanks: a comment
                found.setdefault(command.words, command)
    return list(found.values())


def _lines_of_markdown(text: str) -> list[str]:
    """Returns the lines of the shell blocks, with the values of their variables, and the inline commands."""
    lines, variables = list[str](), dict[str, str]()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if assigned := re.fullmatch(r'([A-Z_]+)="([^"]*)"(?:\s+#.*)?', line.strip()):
                variables[assigned[1]] = assigned[2]
            else:
                lines.append(line)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return lines + [" ".join(each.split()) for each in INLINE.findall(prose)]


def _commands(line: str, where: str, exported: str = "") -> list[Command]:
    commands = []
    for part in line.split(" && "):
        words = shlex.split(part, comments=True)
        if words and words[0].startswith("PYTHONPATH="):
            exported = words.pop(0).removeprefix("PYTHONPATH=")
        if words and words[0] != "export":
            whole = tuple(word for word in words if word != "..." and not word.endswith("..."))
            is_launched = words[0] in LAUNCHERS
            commands.append(Command(where, whole, len(whole) == len(words), is_launched, exported))
    return commands


# A setting whose braces, or brackets with a blank, stand without quotes: a shell would take it apart.
UNQUOTED = re.compile(r"(?<![\w'\"@./{=])[+~]*[a-z_][\w.@/]*=(?:\{[^}`]*\}|\[[^\]`]*\s[^\]`]*\])")


def unquoted_settings() -> list[str]:
    """Returns the documented settings that a shell takes apart, with their files."""
    files = [*DOCUMENTS, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))]
    texts = ((name, (ROOT / name).read_text(encoding="utf-8")) for name in files)
    return [f"{name}: {found}" for name, text in texts for found in UNQUOTED.findall(text)]
