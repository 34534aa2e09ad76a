"""From files and overrides to protocols: what is checked, and what counts as changed."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from depthany.config.entry import config_dir
from depthany.evaluation.protocol import Protocol
from depthany.evaluation.protocol_files import Chosen, load_protocol
from depthany.metrics.table import DEFAULT_METRICS, METRICS, Metric

NOT_OVERRIDDEN = {"name", "task", "sources", "published"}


def load(tmp_path: Path, text: str, **override: Any) -> Chosen:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_protocol(str(path), OmegaConf.create({"mine": "/data"}), OmegaConf.create(override))


def test_empty_file_has_the_defaults_of_the_dataclass(tmp_path: Path) -> None:
    chosen = load(tmp_path, "")
    assert chosen.protocol == Protocol("mine")
    assert chosen.protocol.metrics == DEFAULT_METRICS["depth"]
    assert chosen.dataset["max_depth"] == 80.0
    assert chosen.changed == {}


def test_file_and_override_set_values(tmp_path: Path) -> None:
    text = "name: garden\ndataset: {root: '${roots.mine}/a'}\nmax_depth: 9\nclip_prediction: [1, 9]\n"
    chosen = load(tmp_path, text, max_depth=20, metrics=["abs_rel"], align="least_squares")
    assert chosen.dataset["root"] == "/data/a"
    assert chosen.protocol.clip_prediction == (1.0, 9.0)
    assert chosen.changed == {"max_depth": 20.0, "metrics": ("abs_rel",)}  # align has its value already


def test_clipped_truth_is_read_beyond_the_range(tmp_path: Path) -> None:
    depth_m = np.array([[2.0, 50.0]], np.float32)
    for folder, name in (("images", "a.png"), ("depth", "a.npy")):
        (tmp_path / folder).mkdir()
        if folder == "images":
            Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(tmp_path / folder / name)
        else:
            np.save(tmp_path / folder / name, depth_m)
    text = f"dataset: {{root: {tmp_path}}}\nmax_depth: 20\n"
    for override, known in (
        ({}, 1),
        ({"truth_beyond": "clip"}, 2),
        ({"metrics": ["abs_rel", "boundary_f1"]}, 2),
    ):
        dataset = load(tmp_path, text, **override).open()
        assert dataset.read(0).labels.mask.sum() == known


@pytest.mark.parametrize(
    "text, override, message",
    [
        ("alignment: median", {}, r"protocol .*mine\.yaml: alignment: Key 'alignment' not in 'Protocol'"),
        ("max_depth: far", {}, r"mine\.yaml: max_depth: Value 'far'"),
        ("- 3", {}, "expected `setting: value` lines"),
        ("dataset: 3", {}, "and settings below dataset"),
        ("a: [", {}, r"mine\.yaml: while parsing"),
        ("", {"min_depth": "near"}, r"^override\.min_depth: Value 'near'"),
        ("", {"align": "magic"}, "unknown align 'magic'; choose from least_squares, median, robust_l1, none"),
        ("metrics: [absrel]", {}, "unknown metric 'absrel' of task depth; choose from abs_rel, delta1"),
        ("", {"metrics": ["accuracy"]}, "unknown metric 'accuracy' of task depth"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load(tmp_path, text, **override)
    assert "\n" not in str(raised.value)


def test_protocol_may_list_an_own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "mine", Metric("mine", "lower", lambda p, g: [len(g), 0.0]))
    assert load(tmp_path, "metrics: [mine]").protocol.metrics == ("mine",)


def test_every_choice_can_be_overridden() -> None:
    override = OmegaConf.load(config_dir() / "evaluate.yaml").override
    assert set(override) == {field.name for field in fields(Protocol)} - NOT_OVERRIDDEN
