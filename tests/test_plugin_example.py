"""docs/plugin_example, a project that extends the package from outside, and the code of docs/extending.md."""

import csv
import importlib
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from depthany.losses.table import LOSSES
from depthany.system import plugins
from nursery import Ended

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "docs/plugin_example"
CONFIGS = ["--config-dir", str(PROJECT / "configs")]
PLUGIN = "plugins=[my_project.depth]"
TINY = ["model.encoder.size=micro", "model.pretrained=false", "crop_size=28", "steps=2", "workers=0"]
TINY += ["device=cpu", "precision=fp32", "threads=1", "log_every=1", "eval_every=0", "save_every=1"]
# `before` of a process: Python finds my_project, and loader processes are started afresh instead of forked.
FIND = f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
SPAWN = "import torch.multiprocessing\ntorch.multiprocessing.set_start_method('spawn')\n"

pytestmark = pytest.mark.usefixtures("in_checkout")


@pytest.fixture
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@contextmanager
def own_tables() -> Iterator[None]:
    """What a plug-in adds in this process is gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(str(PROJECT))
        patch.setattr(plugins, "_loaded", [])
        rows = dict(LOSSES)
        yield
    LOSSES.clear()
    LOSSES.update(rows)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
        del sys.modules[name]


@pytest.fixture
def depth() -> Iterator[ModuleType]:
    """The module my_project.depth."""
    with own_tables():
        yield importlib.import_module("my_project.depth")


def settings(run_dir: Path, *more: str) -> list[str]:
    """Two steps of a teacher with the recipe of the project, on 4 of its images."""
    words = [*CONFIGS, PLUGIN, "stage=teacher", "experiment=my_experiment", *TINY, "batch_size=4"]
    return [*words, "data.val.rooms.root=null", f"run_dir={run_dir}", *more]


def curves(run_dir: Path) -> list[dict[str, float]]:
    """The losses of each step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [{key: line[key] for key in line if key.startswith("loss/")} for line in lines]
    return [line for line in losses if line]  # the last line has scores


def weights(run_dir: Path) -> bytes:
    return (run_dir / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def run_dir(start: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of one process."""
    folder = tmp_path_factory.mktemp("plugin") / "run"
    with own_tables():
        ended = start(settings(folder))
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert "micro on 60 labeled images, 2 steps" in ended.out
    return folder


def test_loss_of_plugin_is_a_weighted_term(run_dir: Path) -> None:
    assert len(curves(run_dir)) == 2
    for line in curves(run_dir):
        affine_invariant, edges = (line[f"loss/labeled/{name}"] for name in ("affine_invariant", "edges"))
        assert edges > 0
        assert line["loss/total"] == pytest.approx(affine_invariant + 0.5 * edges, rel=1e-5)


def test_run_names_its_plugins(run_dir: Path) -> None:
    assert json.loads((run_dir / "config.json").read_text())["plugins"] == ["my_project.depth"]
    checkpoints = [torch.load(path, weights_only=True) for path in run_dir.rglob("*.pt")]
    assert [checkpoint["plugins"] for checkpoint in checkpoints] == [["my_project.depth"]] * len(checkpoints)
    assert checkpoints


OWN_TARGET = """
from depthany.data.targets import TARGETS
from depthany.training.stages.table import STAGES
from depthany.training.stages.teacher import TeacherStage
class OwnStage(TeacherStage):
    target = "own"
TARGETS["own"], STAGES["own"] = TARGETS["disparity01"], OwnStage
"""


@pytest.mark.parametrize("before", ["", pytest.param(SPAWN, marks=pytest.mark.slow)], ids=["fork", "spawn"])
def test_loader_processes_know_set_and_target(
    start_elsewhere: Callable, run_dir: Path, tmp_path: Path, before: str
) -> None:
    (tmp_path / "own_target.py").write_text(OWN_TARGET)
    words = settings(tmp_path / "run", "workers=1", "stage.name=own")
    words[words.index(PLUGIN)] = "plugins=[my_project.depth,own_target]"
    ended = start_elsewhere(words, f"{FIND}sys.path.insert(0, {str(tmp_path)!r})\n{before}")
    assert ended.code == 0, ended.err
    assert weights(tmp_path / "run") == weights(run_dir)


def test_two_ranks_have_the_loss_of_one(torchrun: Callable, run_dir: Path, tmp_path: Path) -> None:
    ended = torchrun(settings(tmp_path / "run", "workers=1"), before=FIND)
    assert ended.code == 0, ended.err
    assert "2 processes (DDP)" in ended.out
    for found, expected in zip(curves(tmp_path / "run"), curves(run_dir), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_stopped_run_resumes_to_same_weights(
    start_elsewhere: Callable, signal_at: Callable, run_dir: Path, tmp_path: Path
) -> None:
    ended = start_elsewhere(settings(tmp_path / "run"), FIND + signal_at(signal.SIGTERM, 1))
    assert "stopped at step 1, all saved; the same command continues" in ended.out, ended.err
    again = start_elsewhere(settings(tmp_path / "run"), FIND)
    assert "continuing at step 1 of 2" in again.out, again.err
    assert weights(tmp_path / "run") == weights(run_dir)


def test_recipe_without_plugin_names_unknown_loss(start: Callable, tmp_path: Path) -> None:
    ended = start([word for word in settings(tmp_path / "run", "plugins=[]") if word != PLUGIN])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "error: stage.terms: unknown loss 'edges'; choose from affine_invariant" in ended.err


def test_model_of_own_parts_needs_no_plugin(nursery, run_dir: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("00000.jpg", "00002.jpg"):
        (images / name).symlink_to(ROOT / "data/sample/labeled/train/images/rooms" / name)
    words = [f"checkpoint={run_dir}", f"images={images}", "save=npy", "device=cpu", "threads=1"]
    for out, more in ("without", []), ("with", [PLUGIN]):
        before = FIND + "import depthany.predict"
        ended = nursery.start("predict", [*words, f"out={tmp_path / out}", *more], before).result()
        assert ended.code == 0, ended.err
    without, with_it = (np.load(tmp_path / out / "00002.npy") for out in ("without", "with"))
    assert np.array_equal(without, with_it)


def readme_commands() -> list[list[str]]:
    """The commands of the first code block of the project's README, as words."""
    block = re.findall(r"```bash\n(.+?)```", (PROJECT / "README.md").read_text(), re.DOTALL)[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.mark.slow
def test_commands_of_readme_run(nursery, tmp_path: Path) -> None:
    (path, *commands) = readme_commands()
    assert path == ["export", f"PYTHONPATH={PROJECT.relative_to(ROOT)}"]
    assert [words[:2] for words in commands] == [["python", "-m"]] * len(commands)
    for name in ("data", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    quick = {
        "check_data": ["workers=1", "limit=4"],
        "train": [*TINY, "batch_size=6", "data.val.rooms.root=null"],
        "evaluate": ["limit=2", "device=cpu", "threads=1"],
        "predict": ["save=npy", "device=cpu", "threads=1"],
    }
    for _, _, module, *words in commands:
        command = module.removeprefix("depthany.")
        before = f"{FIND}import depthany.{command}"
        ended: Ended = nursery.start(command, [*words, *quick[command]], before, tmp_path).result()
        assert ended.code == 0, ended.err
    assert (tmp_path / "outputs/my_student/model.safetensors").exists()
    assert len(list((tmp_path / "outputs/my_rooms").glob("*.npy"))) == 50


def maps(*values: list[list[float]]) -> tuple[Tensor, ...]:
    """Maps [1 h w]."""
    return tuple(torch.tensor([rows], dtype=torch.float64) for rows in values)


def test_edge_loss_by_hand(depth: ModuleType) -> None:
    # Without median and MAD (1 and 2/3) the prediction is 1.5, 0, -1.5 and the target its opposite: the error
    # changes by 3 twice, and alpha is 0.5.
    prediction, target = maps([[2, 1, 0]], [[0, 1, 2]])
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    assert float(depth.edge_loss(prediction, target, mask)) == pytest.approx(log(7))
    assert float(depth.edge_loss(prediction.mT, target.mT, mask.mT)) == pytest.approx(log(7))  # pairs below
    assert float(depth.edge_loss(5 * target + 3, target, mask)) == pytest.approx(0)


def random_maps() -> tuple[Tensor, Tensor, Tensor]:
    """prediction, target, mask [4 6 7]; the last target has no valid pixel."""
    draw = torch.rand(3, 4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = draw[2] < 0.7
    mask[3] = False
    return draw[0], draw[1], mask


def test_edge_loss_ignores_pairs_with_invalid_pixel(depth: ModuleType) -> None:
    prediction, target, mask = random_maps()
    loss = depth.edge_loss(prediction, target, mask)
    assert depth.edge_loss(prediction, target.masked_fill(~mask, torch.nan), mask) == loss
    # The third of four pixels is unknown. The others have median 0 and MAD 1/3 (prediction) and 4/3 (target),
    # so the error of the one pair changes from 0 to 3.
    prediction, target = maps([[0, 1, 9, 0]], [[0, 0, 9, 4]])
    mask = torch.tensor([[[True, True, False, True]]])
    assert float(depth.edge_loss(prediction, target, mask)) == pytest.approx(log(1 + 3 / 0.5))


def test_edge_loss_has_no_gradient_off_mask(depth: ModuleType) -> None:
    prediction, target, mask = random_maps()
    prediction = prediction.masked_fill(~mask, torch.nan).requires_grad_()
    depth.edge_loss(prediction, target, mask).backward()
    assert (prediction.grad[~mask] == 0).all()
    assert (prediction.grad[mask] != 0).any()
    depth.edge_loss(prediction[3:], target[3:], mask[3:]).backward()  # no pair at all
    assert prediction.grad.isfinite().all()


def test_edge_loss_of_parts_is_that_of_whole(depth: ModuleType) -> None:
    prediction, target, mask = random_maps()
    counts: list[Tensor] = []

    def note(count: Tensor) -> Tensor:
        counts.append(count)
        return count

    whole = depth.edge_loss(prediction, target, mask)
    parts = [slice(0, 1), slice(1, 4)]  # the images of two ranks
    for part in parts:
        depth.edge_loss(prediction[part], target[part], mask[part], mean_over_ranks=note)
    mean = torch.stack(counts).double().mean()
    losses = [
        depth.edge_loss(prediction[part], target[part], mask[part], mean_over_ranks=lambda count: mean)
        for part in parts
    ]
    torch.testing.assert_close(torch.stack(losses).mean(), whole)


def write_list(folder: Path, *rows: str) -> Path:
    """A CSV file with these rows, and the one depth file that they may name."""
    Image.fromarray(np.array([[0, 500, 1500, 4000]], np.uint16)).save(folder / "depth.png")
    Image.new("RGB", (4, 1)).save(folder / "a.png")
    Image.new("RGB", (4, 1)).save(folder / "b.png")
    path = folder / "list.csv"
    path.write_text("\n".join(("image,depth,metres_per_unit,farthest_m", *rows)) + "\n")
    return path


def test_csv_pair_has_own_unit_and_range(depth: ModuleType, tmp_path: Path) -> None:
    rows = "a.png,depth.png,0.001,2", "b.png,depth.png,0.01,50"
    dataset = depth.CsvDepth(str(tmp_path), str(write_list(tmp_path, *rows)))
    near, far = (dataset.read(index).labels for index in range(2))
    assert near.values.tolist() == [pytest.approx([0, 0.5, 1.5, 4])]
    assert near.valid.tolist() == [[False, True, True, False]]
    assert far.values.tolist() == [pytest.approx([0, 5, 15, 40])]
    assert far.valid.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize(
    "row, message",
    [
        ("c.png,depth.png,0.001,2", r"list.csv: 1 file\(s\) do not exist below .*, the first: c.png"),
        ("a.png,depth.png,many,2", "list.csv: .*not convert string to float: 'many'.*expects A CSV file"),
        ("a.png,depth.png", "list.csv: .*expects A CSV file with the columns image, depth"),
    ],
)
def test_bad_list_is_refused(depth: ModuleType, tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depth.CsvDepth(str(tmp_path), str(write_list(tmp_path, row)))


@pytest.fixture(scope="module")
def project_of_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the code in docs/extending.md, by the names at the head of each block, with five scans."""
    project = tmp_path_factory.mktemp("page")
    text = (ROOT / "docs/extending.md").read_text()
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.+?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python") + text.count("```yaml")
    for name, code in blocks:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    for i in range(5):
        (project / f"scans/room_{i % 2}").mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(i)
        for kind, values in (
            ("photo_{}.jpg", draw.integers(0, 256, (40, 50, 3), np.uint8)),
            ("depth_{}.png", draw.integers(0, 900, (40, 50), np.uint16)),
        ):
            Image.fromarray(values).save(project / f"scans/room_{i % 2}" / kind.format(i))
    (project / "scans.yaml").write_text(
        f"dataset:\n  _target_: my_project.sets.Scans\n  root: {project / 'scans'}\nalign: none\n"
        "space: depth\nmax_depth: 10\nmetrics: [mae, abs_rel]\n"
    )
    return project


def page_words(project: Path, run_dir: Path, *more: str) -> list[str]:
    names = [path.stem for path in sorted((project / "my_project").glob("*.py"))]
    assert names == ["encoders", "heads", "loggers", "losses", "metrics", "sets", "stages"]
    modules = ",".join(f"my_project.{name}" for name in names)
    words = ["--config-dir", str(project / "configs"), f"plugins=[{modules}]"]
    words += ["model=plain", "experiment=none", "data=scans", f"data.labeled.scans.root={project / 'scans'}"]
    words += [f"data.val.scans.root={project / 'scans'}", *TINY[2:], "crop_size=32", "batch_size=4"]
    return [*words, "optimizer.lr=1e-3", f"run_dir={run_dir}", *more]


@pytest.fixture(scope="module")
def page_run(start_elsewhere: Callable, project_of_page: Path) -> Path:
    """A run of two steps with the stage, head, encoder and data set of the page."""
    words = page_words(project_of_page, project_of_page / "run", "stage=huber", "model.head.name=softplus")
    ended = start_elsewhere([*words, "workers=1", "loggers=[jsonl,csv]"], cwd=project_of_page)
    assert ended.code == 0, ended.err
    assert "plain8 on 5 labeled images, 2 steps" in ended.out
    return project_of_page / "run"


def test_stage_of_page_learns_metres(page_run: Path) -> None:
    config = json.loads((page_run / "config.json").read_text())
    assert config["quantity"]["kind"] == "depth_m"
    assert config["model"]["encoder"] == {"name": "plain", "width": 8}
    # Depth is 0 to 9 m and the head starts at 5 m: 2.3 m off, half a metre less where it is linear
    assert 1 < curves(page_run)[0]["loss/total"] < 2.5


def test_logger_of_page_holds_the_curves(page_run: Path) -> None:
    with (page_run / "metrics.csv").open() as file:
        rows = {(int(step), name): float(value) for step, name, value in csv.reader(file)}
    lines = [json.loads(line) for line in (page_run / "metrics.jsonl").read_text().splitlines()]
    found = {(line["step"], name): line[name] for line in lines for name in line.keys() - {"step"}}
    assert rows == pytest.approx(found, nan_ok=True)


def test_loss_of_page_is_a_term(start_elsewhere: Callable, project_of_page: Path, tmp_path: Path) -> None:
    words = page_words(project_of_page, tmp_path / "run", "stage=teacher", "+stage.terms.l1=2")
    ended = start_elsewhere([*words, "activation_checkpointing=true"], cwd=project_of_page)
    assert ended.code == 0, ended.err
    for line in curves(tmp_path / "run"):
        parts = line["loss/labeled/affine_invariant"] + 2 * line["loss/labeled/l1"]
        assert line["loss/total"] == pytest.approx(parts, rel=1e-5)


def test_metric_of_page_is_scored(nursery, page_run: Path, project_of_page: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={page_run}", "protocol=scans.yaml", f"out={tmp_path / 'out'}"]
    words += ["plugins=[my_project.encoders,my_project.heads,my_project.metrics]"]
    words += ["device=cpu", "threads=1", "workers=1"]
    ended = nursery.start("evaluate", words, "import depthany.evaluate", project_of_page).result()
    assert ended.code == 0, ended.err
    assert "MAE" in ended.out


def test_model_of_page_names_missing_modules(nursery, page_run: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={page_run}", f"images={ROOT / 'data/sample/unlabeled/test/images/rooms'}"]
    before = "import depthany.predict"
    ended = nursery.start("predict", [*words, f"out={tmp_path}", "device=cpu"], before).result()
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "unknown encoder 'plain'; choose from dinov2, timm" in ended.err
    assert "it was trained with plugins=[my_project.encoders,my_project.heads,my_project.loggers" in ended.err
