"""Training settings: every choice composes, and a mistake ends in one line before anything is written."""

import importlib
import re
import signal
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from depthany.config.entry import config_dir, run_entry
from depthany.config.words import hydra_words
from depthany.system import files
from depthany.system.distributed import Processes
from depthany.system.files import whole_file
from depthany.training import checks

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def compose(*overrides: str, command: str = "train") -> DictConfig:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(command, list(overrides))


def with_paths(tmp_path: Path, *overrides: str) -> DictConfig:
    """A composed configuration whose files exist and whose required values are given."""
    (tmp_path / "file").touch()
    cfg = compose(*overrides)
    if cfg.model.weights is not None:
        cfg.model.weights = str(tmp_path / "file")
    if cfg.model.init is not None:
        cfg.model.init = str(tmp_path / "file")
    if cfg.stage.name == "student":
        cfg.stage.teacher = str(tmp_path / "file")
    for kind in ("labeled", "unlabeled"):
        for each in cfg.data[kind].values():
            each.root = str(tmp_path)
    return cfg


def test_checkout_uses_its_own_configs() -> None:
    assert config_dir() == CONFIGS


def fits(experiment: str, stage: str) -> bool:
    """A recipe is for the stage that its name has, or for all."""
    if experiment == "deeplab_voc":
        return stage == "segmentation"
    return stage in experiment or not any(each in experiment for each in choices("stage"))


def side_by_side(one: list[str], other: list[str]) -> list[tuple[str, str]]:
    """Pairs in which each element of both lists is, the shorter one from its start again."""
    return [(one[i % len(one)], other[i % len(other)]) for i in range(max(len(one), len(other)))]


@pytest.mark.parametrize("stage", choices("stage"))
def test_every_choice_of_every_group_is_valid(stage: str, tmp_path: Path) -> None:
    models, data = choices("model"), choices("data")
    combinations = [  # each model and each data once; no rule is about both
        *((f"model={one}", f"data={other}") for one, other in side_by_side(models, data)),
        *((f"perturb={perturb}", "experiment=none") for perturb in choices("perturb")),
        *((f"experiment={experiment}",) for experiment in choices("experiment") if fits(experiment, stage)),
    ]
    for overrides in combinations:
        assert checks.check(with_paths(tmp_path, f"stage={stage}", *overrides)).stage.name == stage


def test_bundled_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("stage=teacher", "data=folder", "data.labeled.mine.root=mine")
    settings = checks.check(compose(*words))
    assert settings.model.weights == str(ROOT / "data/sample/encoder_vitt.safetensors")
    assert settings.data.labeled["mine"]["root"] == "mine", "what the user names is below the current folder"
    sample = compose("stage=teacher").data
    assert sample.labeled.sample.root == str(ROOT / "data/sample/labeled/train")
    with pytest.raises(
        ValueError, match=rf"no file at model.weights={tmp_path}/e \(looked from {tmp_path}\): pass the path"
    ):
        checks.check(compose(*words, f"model.weights={tmp_path}/e"))


def test_bundled_files_keep_their_path_in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert compose("stage=teacher").model.weights == "data/sample/encoder_vitt.safetensors"


def test_package_without_checkout_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "checkout_dir", lambda: None)
    get_it = "an installed package does not contain the sample: clone depthany's repository"
    lacks = f"there is no data/sample in {tmp_path}: {get_it}"
    for stage in ("student", "metric"):  # before a missing teacher, model or encoder
        with pytest.raises(ValueError, match=f"^{lacks}.* data=folder"):
            checks.check(compose(f"stage={stage}"))
    own = ("stage=teacher", "data=folder", "data.labeled.mine.root=mine")
    with pytest.raises(ValueError, match=f"the encoder of the sample, which is not here.*{get_it}"):
        checks.check(compose(*own))
    checks.check(compose(*own, "experiment=none"))
    of_evaluate = ["checkpoint=x", "protocols=all"]
    for entry, words in {"check_data": [], "evaluate": of_evaluate}.items():
        run = importlib.import_module(f"depthany.{entry}").run
        with pytest.raises(ValueError, match=lacks):
            run(compose(f"out={tmp_path / 'out'}", *words, command=entry))


def test_kind_that_is_not_drawn_needs_no_root(tmp_path: Path) -> None:
    cfg = with_paths(tmp_path, "stage=student", "data=folder", "stage.ratio=[0,1]")
    cfg.data.labeled.mine.root = "???"
    settings = checks.check(cfg)
    assert (settings.data.labeled, list(settings.data.unlabeled)) == ({}, ["mine"])
    cfg = with_paths(tmp_path, "stage=student", "data=folder")
    cfg.data.labeled.mine.root = "???"
    with pytest.raises(ValueError, match=r"these settings need a value: data\.labeled\.mine\.root"):
        checks.check(cfg)


def test_experiment_none_keeps_the_papers_recipe() -> None:
    cfg, written = compose("stage=teacher", "experiment=none"), OmegaConf.load(CONFIGS / "train.yaml")
    for key in ("crop_size", "batch_size", "epochs", "passes"):
        assert cfg[key] == written[key]
    assert cfg.optimizer == written.optimizer
    assert "experiment" not in cfg


def test_defaults_are_the_papers_numbers() -> None:
    cfg = compose("stage=student", "experiment=none")
    assert (cfg.optimizer.name, cfg.optimizer.lr) == ("adamw", 5e-6)
    assert dict(cfg.optimizer.lr_factors) == {"encoder": 1, "decoder": 10, "head": 10}
    assert (cfg.schedule.name, cfg.schedule.power, cfg.schedule.warmup_steps) == ("poly", 1.0, 0)
    assert dict(cfg.stage.terms) == {"affine_invariant": 1.0}
    assert (cfg.epochs, cfg.passes, cfg.crop_size) == (20, 1, 518)
    assert list(cfg.stage.ratio) == [1, 2]
    assert cfg.stage.feature_alignment.alpha == 0.15
    assert cfg.perturb.cutmix_p == 0.5
    assert sum(cfg.stage.weights.values()) == pytest.approx(1)


def test_numbers_of_the_second_paper(tmp_path: Path) -> None:
    teacher = with_paths(tmp_path, "stage=teacher", "experiment=v2_vitg_teacher")
    sizes = ("vits", "vitb", "vitl", "vitg")
    students = [with_paths(tmp_path, "stage=student", f"experiment=v2_{size}_student") for size in sizes]
    assert [cfg.model.encoder.size for cfg in students] == list(sizes)
    for cfg in (teacher, *students):
        assert dict(cfg.stage.terms) == {"affine_invariant": 1, "gradient": 2}
        assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.weight_decay) == ("adam", 5e-6, 0)
        assert dict(cfg.optimizer.lr_factors) == {"encoder": 1, "decoder": 10, "head": 10}
        assert (cfg.model.encoder.taps, cfg.crop_size) == ("v2", 518)
    assert (teacher.batch_size, teacher.steps, teacher.model.encoder.size) == (64, 160_000, "vitg")
    for cfg in students:
        assert (cfg.batch_size, cfg.steps, list(cfg.stage.ratio)) == (192, 480_000, [0, 1])
        assert dict(cfg.stage.weights) == {"labeled": 0, "unlabeled": 0.5, "feature": 0.5}
        assert (cfg.stage.trim, cfg.loss.scales, cfg.loss.trim_gradient) == (0.1, 4, False)
        settings = checks.check(cfg)
        assert checks.per_micro_batch(settings) == (0, 192)
        assert settings.data.labeled == {}


def test_terms_are_added_on_the_command_line() -> None:
    words = ["stage.terms={gradient: 2}", "stage.terms.gradient=2", "+stage.terms.gradient=2"]
    for word in words:
        cfg = compose("stage=teacher", *hydra_words([word]))
        assert dict(cfg.stage.terms) == {"affine_invariant": 1, "gradient": 2}
    metric = compose("stage=metric", "experiment=v2_metric_vkitti2")
    assert {name: weight for name, weight in metric.stage.terms.items() if weight} == {"silog_v2": 1}


def test_sample_v2_has_settings_of_both_stages() -> None:
    teacher, student = (compose(f"stage={stage}", "experiment=sample_v2") for stage in ("teacher", "student"))
    assert (teacher.run_dir, student.stage.teacher) == ("outputs/v2_teacher", "outputs/v2_teacher")
    assert dict(teacher.stage.terms) == dict(student.stage.terms) == {"affine_invariant": 1, "gradient": 2}
    assert list(student.stage.ratio) == [0, 1]
    assert (student.run_dir, student.crop_size) == ("outputs/v2_student", 126)
    first = compose("stage=student", "experiment=sample")
    assert (student.batch_size, student.optimizer.lr) == (first.batch_size, first.optimizer.lr)
    assert student.passes / 24 == first.passes / 16, "as many steps"


def test_stage_chooses_its_perturbations() -> None:
    off = ("jitter_p", "grayscale_p", "blur_p", "cutmix_p")
    assert not any(compose("stage=teacher").perturb[key] for key in off)
    assert all(compose("stage=student").perturb[key] for key in off)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_setting_has_a_comment(path: Path) -> None:
    if path.parent.name.startswith("experiment"):
        assert path.read_text().count("#") >= 2, "an experiment file says at its head what it is"
        return
    comment_above = False
    for line in path.read_text().split("\nhydra:")[0].splitlines():
        if found := re.match(r"(\w+):", line):
            is_group = not line.split("#")[0].partition(":")[2].strip()
            allowed = is_group or found[1].startswith("_") or found[1] in ("defaults", "name")
            assert "#" in line or comment_above or allowed, f"{path.name}: {found[1]} has no comment"
        comment_above = line.startswith("#") or (comment_above and bool(line.strip()))


TEACHER_MISTAKES = {
    "eval_metrics=[accuracy]": "eval_metrics: unknown metric 'accuracy' of task depth; choose from abs_rel",
    "run_dir=": "run_dir= is empty: expected a path (. is the current folder)",
    "data.index_dir=": "data.index_dir= is empty: expected a path",
    "stepz=3": "unknown setting 'stepz'; did you mean steps?",
    "optimizer.lrr=1": "did you mean optimizer.lr?",
    "data.labeled.mine.depth_scal=3": "did you mean data.labeled.mine.depth_scale?",
    "+foo=1": "unknown setting 'foo'; --help lists all",
    "model.encoder.siz=vits": "unknown setting 'model.encoder.siz'; did you mean model.encoder.size?",
    "model=vitx": "unknown model 'vitx'; choose from mobilenetv2, resnet50, timm, vitb, vitg, vitl",
    "stage=pupil": "unknown stage 'pupil'; choose from metric, segmentation, student, teacher",
    "experiment=v9": "unknown experiment 'v9'; choose from deeplab_voc, none, sample",
    "optimizer.lr=fast": "optimizer.lr: Value 'fast'",
    "steps=1.5": "steps: Value '1.5'",
    "steps=0": "the run has no step",
    "seed=-1": "seed=-1: expected 0 or more",
    "threads=0": "threads=0: expected 1 or more",
    "workers=-1": "workers=-1: expected 0 or more",
    "batch_size=0": "batch_size=0: expected 1 or more",
    "schedule.warmup_steps=-1": "schedule.warmup_steps=-1: expected 0 or more",
    "optimizer.name=lion": "unknown optimizer.name 'lion'; choose from adamw, adam, sgd",
    "schedule.name=step": "unknown schedule.name 'step'; choose from poly, onecycle, cosine, constant",
    "stage.terms.affine_invariant=0": "stage.terms: no loss has a weight above 0; choose from",
    "+stage.terms.gradiant=1": "stage.terms: unknown loss 'gradiant'; choose from affine_invariant",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: expected 2 numbers",
    "optimizer.clip_norm=-1": "optimizer.clip_norm=-1.0: expected more than 0",
    "optimizer.clip_norm=0": "optimizer.clip_norm=0.0: expected more than 0",
    "optimizer.lr_factors={encoder:0,decoder:0,head:0}": "encoder=0 decoder=0 head=0: nothing would learn",
    "optimizer.lr=-1": "optimizer.lr=-1.0: expected 0 or more",
    "optimizer.lr_factors.head=-1": "optimizer.lr_factors.head=-1.0: expected 0 or more",
    "optimizer.lr_factors.tail=1": "unknown setting 'optimizer.lr_factors.tail'",
    "schedule.pct_start=1": "schedule.pct_start=1.0: expected more than 0 and less than 1",
    "schedule.div_factor=0": "schedule.div_factor=0.0: expected more than 0",
    "model.init_parts=head": "unknown model.init_parts 'head'; choose from encoder, encoder+decoder, all",
    "model.freeze=all": "unknown model.freeze 'all'; choose from none, encoder, encoder+decoder",
    "log_every=-1": "log_every=-1: expected 0 or more",
    "experiment=v1_vits_student": "stage.teacher: not of stage=teacher but of stage=student",
    "crop_size=30": "crop_size=30 is not a multiple of 14: try 28",
    "accumulate=4": "make it a multiple of 4",
    "loss.normalisation=l2": "choose from median_mad, least_squares",
    "loss.reduction=sum": "choose from batch, image",
    "cuda_graphs=true": "cuda_graphs=true needs compile=true accumulate=1 activation_checkpointing=false",
    "compile=true cuda_graphs=true activation_checkpointing=true": "got compile=true accumulate=1",
    "precision=fp8": "choose from auto, bf16, fp16, fp32",
    "precision=fp16": "precision=fp16 needs a CUDA device",
    "device=abacus": "device=abacus cannot be used",
    "model.encoder.size=vitx": "unknown size of DINOv2 'vitx'; choose from vitt, vits",
    "model.encoder.taps=v9": "unknown taps 'v9'",
    "data.unreadable=ignore": "choose from error, skip",
    "data.max_unreadable_share=-1": "data.max_unreadable_share=-1.0: expected 0 or more",
    "data.min_side=0": "data.min_side=0: expected 1 or more",
    "data.order=random": "unknown data.order 'random'; choose from shuffle, shards",
    "data.window=0": "data.window=0: expected 1 or more",
    "data.labeled.mine.root=/no/such": "data.labeled.mine: /no/such: no such folder",
    "data.labeled.mine.root=???": "these settings need a value: data.labeled.mine.root=...",
    "data.val.mine.root=/no/such": "data.val.mine: /no/such: no such folder",
    "data.labeled.mine.max_depth=0": "expected 0 < min_depth < max_depth",
}
STUDENT_MISTAKES = {
    "stage.teacher=/no/such": "no teacher at stage.teacher=/no/such: train one first",
    "stage.teacher=depth_anything_v2_vitl.pth": "huggingface.co/depth-anything/Depth-Anything-V2-Large",
    "model.init=depth_anything_v2_vits.pth": "huggingface.co/depth-anything/Depth-Anything-V2-Small",
    "stage.ratio=[1]": "stage.ratio=[1]: expected 2 numbers",
    "stage.trim=1": "stage.trim=1.0: expected at least 0 and less than 1",
    "stage.weights.labeled=-1": "stage.weights.labeled=-1.0: expected 0 or more",
    "stage.trim=most": "stage.trim: Value 'most'",
    "+stage.feature_alignment.alfa=1": "did you mean stage.feature_alignment.alpha?",
    "stage.ratio=[0,0]": "expected two shares",
    "batch_size=4": "cannot be split into accumulate=1 micro-batches of 1:2 images: make it a multiple of 3",
    "stage.feature_alignment.mean_over=some": "choose from kept, all",
    "stage.feature_alignment.frozen_input=dirty": "choose from perturbed, clean",
    "data.unlabeled.mine.root=???": "these settings need a value: data.unlabeled.mine.root=...",
    "stage.feature_alignment.weights=w.pth": "stage.feature_alignment.weights belong to another frozen",
    "perturb.hue=0.7": "perturb.hue=0.7: expected 0 to 0.5",
    "perturb.blur_radius=[2,1]": "perturb.blur_radius=[2.0, 1.0]: expected the smaller number first",
    "stage.name=pupil": "unknown stage.name 'pupil'; choose from teacher, student",
}


def _assert_one_line(ended, run_dir: Path, expected: str) -> None:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert expected in ended.err
    assert not run_dir.exists(), "nothing is written before the mistake is found"


@pytest.mark.parametrize("mistake, expected", TEACHER_MISTAKES.items(), ids=TEACHER_MISTAKES)
def test_mistake_ends_in_one_line(start, tiny_world, tmp_path: Path, mistake: str, expected: str) -> None:
    ended = start(tiny_world.settings("teacher", tmp_path / "run", *mistake.split()))
    _assert_one_line(ended, tmp_path / "run", expected)


@pytest.mark.parametrize("mistake, expected", STUDENT_MISTAKES.items(), ids=STUDENT_MISTAKES)
def test_mistake_of_student_ends_in_one_line(
    start, tiny_world, teacher_run: Path, tmp_path: Path, mistake: str, expected: str
) -> None:
    ended = start(tiny_world.settings("student", tmp_path / "run", f"stage.teacher={teacher_run}", mistake))
    _assert_one_line(ended, tmp_path / "run", expected)


def test_cuda_graphs_need_one_gpu(start, tiny_world, tmp_path: Path) -> None:
    words = tiny_world.settings("teacher", tmp_path / "run", "compile=true", "cuda_graphs=true")
    _assert_one_line(
        start(words), tmp_path / "run", "cuda_graphs=true needs a CUDA GPU, but the device is cpu"
    )
    with pytest.raises(ValueError, match="cuda_graphs=true is for one process, but 2 were started"):
        checks.check_processes(checks.check(compose(*words)), Processes(rank=0, size=2))


def test_missing_stage_lists_the_stages(start, tmp_path: Path) -> None:
    _assert_one_line(
        start([f"run_dir={tmp_path / 'run'}"]),
        tmp_path / "run",
        "choose a stage: stage=metric|segmentation|student|teacher",
    )


def test_missing_encoder_weights_name_the_remedy(start, tiny_world, tmp_path: Path) -> None:
    settings = tiny_world.settings(
        "teacher", tmp_path / "run", "model.pretrained=true", "model.weights=/no/such.pth"
    )
    _assert_one_line(start(settings), tmp_path / "run", "model.pretrained=false")


def test_offline_without_weights_ends_in_one_line(
    start, tiny_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    settings = tiny_world.settings(
        "teacher", tmp_path / "run", "model.pretrained=true", "model.encoder.size=vits"
    )
    _assert_one_line(start(settings), tmp_path / "run", "model.weights=/path/to/dinov2_vits14_pretrain.pth")


@pytest.mark.parametrize("model", ["vits", "timm"])
def test_other_model_on_the_sample_names_remedies(start, tmp_path: Path, model: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ["stage=teacher", f"model={model}", "crop_size=224", f"run_dir={tmp_path / 'run'}", "steps=1"]
    small = ["model.encoder.model=vit_tiny_patch16_224"] if model == "timm" else []
    ended = start([*words, *small, "device=cpu", "threads=1"])
    _assert_one_line(ended, tmp_path / "run", "pass model.weights=null to download those of ")
    assert ended.err.endswith("or model.pretrained=false to start at random\n")
    for remedy in ("model.weights=null", "model.pretrained=false"):
        assert checks.check(compose(*words, *small, remedy)).model.encoder


def test_mistake_has_no_traceback(start_elsewhere, tmp_path: Path) -> None:
    ended = start_elsewhere(["stage=teacher", "stepz=3"], cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: unknown setting 'stepz'; did you mean steps?\n"
    assert not list(tmp_path.iterdir())


def test_help_shows_groups_settings_and_commands(start_elsewhere, tmp_path: Path) -> None:
    ended = start_elsewhere(["--help"], cwd=tmp_path)
    assert ended.code == 0
    for part in (
        "stage: metric, segmentation, student, teacher",
        "head: bins, bins_nk, deeplab, dpt, linear, sigmoid",
        "model: mobilenetv2, resnet50, timm, vitb, vitg, vitl, vits, vitt",
        "stage=student",
        "crop_size: ",
    ):
        assert part in ended.out
    assert not list(tmp_path.iterdir())


def test_sigterm_leaves_no_partial_file(tmp_path: Path, monkeypatch, capsys) -> None:
    def job(_cfg: DictConfig) -> int:
        with whole_file(tmp_path / "result") as partial:
            partial.write_text("half")
            signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("sys.argv", ["predict", "checkpoint=x", "images=y"])
    assert run_entry("predict", job) == 143
    assert capsys.readouterr().err == "terminated; files saved before are complete\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
