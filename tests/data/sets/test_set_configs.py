"""The data sets in configs/dataset, and the mixtures of the papers."""

from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from set_files import ONE_PAIR

from depthany.config.entry import config_dir
from depthany.data.counts import count_warnings, left_out_notes
from depthany.data.labeled import PairedDepth
from depthany.training import build, checks

LEAVES = {path.stem: path for path in sorted((config_dir() / "dataset").glob("*.yaml"))}
OF_CLASSES = ("ade20k", "cityscapes", "voc")  # tests/data/test_masks.py reads these
READERS = [
    name
    for name, path in LEAVES.items()
    if name not in OF_CLASSES
    and str(OmegaConf.load(path)["_target_"]).startswith(
        ("depthany.data.sets.", "depthany.data.folder_depth.")
    )
]
V1 = ["blendedmvs", "diml", "hrwsi", "irs", "megadepth", "tartanair"]
V2 = ["blendedmvs", "hypersim", "irs", "tartanair", "vkitti2"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def write(root: Path, name: str) -> str:
    root.mkdir(parents=True, exist_ok=True)
    ONE_PAIR[name](root)
    return str(root)


@pytest.mark.parametrize("name", READERS)
def test_labeled_config_needs_only_a_root(name: str, tmp_path: Path) -> None:
    leaf = OmegaConf.load(LEAVES[name])
    leaf.root = write(tmp_path / name, name)
    if name == "folder_depth":
        leaf.depth_scale = 1000
    dataset = instantiate(leaf)
    sample = dataset.read(0)
    assert len(dataset) == 1
    assert sample.image.shape == (2, 3, 3)
    assert sample.labels.mask.tolist() == [[True] * 3, [True, False, True]]
    assert (sample.labels.disparity[sample.labels.mask] > 0).all()


@pytest.mark.parametrize("mixture, members", [("depth_anything_v1", V1), ("depth_anything_v2", V2)])
def test_mixture_has_the_sets_of_its_paper(mixture: str, members: list[str], tmp_path: Path) -> None:
    roots = [f"data.labeled.{name}.root={write(tmp_path / name, name)}" for name in members]
    cfg = compose("stage=teacher", f"data={mixture}", "model.pretrained=false", *roots)
    assert len(cfg.data.unlabeled) == 8
    settings = checks.check(cfg)
    dataset = build.build_training_set(settings)
    assert list(settings.data.labeled) == members
    assert dataset.labeled_count == len(members)


def test_sets_without_root_are_left_out(tmp_path: Path) -> None:
    roots = [f"data.labeled.{name}.root={write(tmp_path / name, name)}" for name in ("irs", "diml")]
    val = f"data.val.nyuv2.root={write(tmp_path / 'nyuv2', 'nyuv2')}"
    cfg = checks.check(
        compose("stage=teacher", "data=depth_anything_v1", "model.pretrained=false", *roots, val)
    )
    assert build.build_training_set(cfg).labeled_count == 2
    assert list(build.build_sets(cfg.data.val, "data.val")) == ["nyuv2"]


def test_mixture_without_root_names_the_keys() -> None:
    with pytest.raises(
        ValueError, match=r"no labeled set has a root.* data\.labeled\.blendedmvs\.root=\.\.\. "
    ):
        checks.check(compose("stage=teacher", "data=depth_anything_v1", "model.pretrained=false"))


def test_v2_student_needs_no_labeled_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    student = [
        "stage=student",
        f"stage.teacher={tmp_path / 'file'}",
        "data=depth_anything_v2",
        "batch_size=8",
    ]
    student += ["model.pretrained=false", "stage.ratio=[0,1]"]
    with pytest.raises(ValueError, match="no unlabeled set has a root, and stage=student needs one"):
        checks.check(compose(*student))
    cfg = checks.check(compose(*student, f"data.unlabeled.sa_1b.root={tmp_path}"))
    assert checks.per_micro_batch(cfg) == (0, 8)


def test_expected_counts_are_those_of_the_papers() -> None:
    counts = {"blendedmvs": 115, "diml": 927, "hrwsi": 20, "irs": 103, "megadepth": 128, "tartanair": 306}
    cfg = compose("stage=teacher", "data=depth_anything_v1")
    assert {name: entry.expected / 1000 for name, entry in cfg.data.labeled.items()} == counts
    cfg = compose("stage=teacher", "data=depth_anything_v2")
    thousands = {name: entry.expected / 1000 for name, entry in cfg.data.labeled.items()}
    assert thousands == {"blendedmvs": 115, "hypersim": 60, "irs": 103, "tartanair": 306, "vkitti2": 20}


class Sized(list):
    """A data set of `found` images, of which the paper counted `expected`."""

    def __init__(self, found: int, expected: int | None) -> None:
        super().__init__(range(found))
        self.expected = expected


@pytest.mark.parametrize(
    "found, expected, warned",
    [
        (306637, 306000, False),  # TartanAir has 306,637: the paper cut it to 306K
        (305000, 306000, True),
        (20378, 20000, False),  # HRWSI
        (10189, 20000, True),  # half of it
        (59543, 60000, False),  # the training split of Hypersim
        (74619, 60000, True),  # all of it
        (654, 654, False),
        (653, 654, True),
        (1, None, False),
    ],
)
def test_size_warning_allows_for_rounding(found: int, expected: int | None, warned: bool) -> None:
    warnings = count_warnings({"data.labeled.x": Sized(found, expected)})
    assert warnings == ([f"data.labeled.x: {found} images found, {expected} expected"] if warned else [])


def test_notes_name_sizes_and_left_out_files(tmp_path: Path) -> None:
    root = write(tmp_path / "tartanair", "tartanair")
    ONE_PAIR["tartanair"](tmp_path / "tartanair/amusement")
    (next((tmp_path / "tartanair/office").rglob("*_left.png")).parent / "000009_left.png").touch()
    settings = ["exclude=[amusement]", "allow_incomplete=true", f"root={root}"]
    overrides = [f"data.labeled.tartanair.{each}" for each in settings]
    cfg = checks.check(
        compose("stage=teacher", "data=depth_anything_v1", "model.pretrained=false", *overrides)
    )
    lines = build.dataset_notes(cfg, build.build_training_set(cfg))
    image = "office/office/Easy/P000/image_left/000009_left.png"
    assert lines == [
        "warning: data.labeled.tartanair: 1 image found, 306000 expected",
        "data.labeled.tartanair: 1 pair(s) in amusement are left out",
        f"data.labeled.tartanair: 1 file(s) without partner are left out, the first: {image}",
    ]


def folder_notes(tmp_path: Path, *words: str) -> list[str]:
    """What a run with one labeled and one validation folder says of their labels."""
    roots = [
        f"data.{group}.mine.root={write(tmp_path / group, 'folder_depth')}" for group in ("labeled", "val")
    ]
    words = ["stage=teacher", "data=folder", "model.pretrained=false", "experiment=none", *roots, *words]
    settings = checks.check(compose(*words))
    val_sets = build.build_sets(settings.data.val, "data.val")
    return build.dataset_notes(settings, build.build_training_set(settings), val_sets)


def test_run_doubts_units_of_training_and_validation(tmp_path: Path) -> None:
    right, wrong = "data.labeled.mine.depth_scale=1000", "data.val.mine.depth_scale=1"
    (line,) = folder_notes(tmp_path, right, wrong)
    assert line.startswith("warning: data.val.mine: the median of the known depth is 5e+03 m, farther than")
    assert line.endswith("the stored values look like millimetres: depth_scale=1000")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], r"data\.labeled\.mine: .*1\.png: depth is stored as uint16.* set depth_scale=1000"),
        (
            ["data.labeled.mine.quantity=disparity", "data.val.mine.quantity=disparity"],
            r"data\.val\.mine: its labels are disparity of unknown scale, but predictions are scored",
        ),
    ],
)
def test_run_needs_units_before_it_begins(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folder_notes(tmp_path, *words)


def test_complete_set_has_no_notes(tmp_path: Path) -> None:
    leaf = OmegaConf.load(LEAVES["folder_depth"])
    dataset = instantiate(leaf, root=write(tmp_path, "folder_depth"), depth_scale=1000)
    assert isinstance(dataset, PairedDepth)
    assert count_warnings({"x": dataset}) + left_out_notes({"x": dataset}) == []
