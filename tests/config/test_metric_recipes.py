"""The recipes of metric training have the numbers of the papers' code."""

from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from depthany.config.entry import config_dir

WHOLE = {"view": "whole", "rotation": 1, "colour_p": 0.5, "gamma": [0.9, 1.1], "channels": [0.9, 1.1]}
ROADS = {**WHOLE, "brightness": [0.9, 1.1], "bottom_centre": {"kitti": [352, 1216]}}
V1: dict[str, Any] = {
    "model.encoder.size": "vitl",
    "model.encoder.taps": "v1",
    "model.init_parts": "all",
    "model.head.attractor_alpha": 300,
    "crop_size": [392, 518],
    "batch_size": 16,
    "epochs": 5,
    "stage.terms": {"silog": 1},
    "stage.near_m": 0.001,
    "optimizer.lr": 1.61e-4,
    "optimizer.lr_factors": {"encoder": 0.02, "decoder": 0.02, "head": 1},
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": 0.1,
    "schedule.name": "onecycle",
    "schedule.pct_start": 0.7,
    "schedule.div_factor": 1,
    "schedule.final_div_factor": 1e4,
    "schedule.momentum": [0.85, 0.95],
    "precision": "fp32",
    "seed": 43,
}
V2: dict[str, Any] = {
    "model.encoder.taps": "v2",
    "model.init_parts": "encoder",
    "model.head.name": "metric_sigmoid",
    "crop_size": 518,
    "batch_size": 32,
    "epochs": 120,
    "stage.terms": {"silog": 0, "silog_v2": 1},
    "stage.near_m": 0.001,
    "stage.views": {"view": "crop", "rotation": 0, "colour_p": 0, "bottom_centre": None},
    "optimizer.lr": 5e-6,
    "optimizer.lr_factors": {"encoder": 1, "decoder": 10, "head": 10},
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": None,
    "schedule.name": "poly",
    "schedule.power": 0.9,
}
RECIPES: dict[str, dict[str, Any]] = {
    "v1_metric_nyu": {
        **V1,
        "model.head.name": "metric_bins",
        "model.head.max_depth_m": 10,
        "stage.views": {**WHOLE, "brightness": [0.75, 1.25], "bottom_centre": None},
        "data.labeled.nyuv2_raw.expected": 24231,
        "eval_every": 379,
    },
    "v1_metric_kitti": {
        **V1,
        "model.head.name": "metric_bins",
        "model.head.max_depth_m": 80,
        "stage.views": ROADS,
        "data.labeled.kitti.expected": 23158,
        "eval_every": 362,
    },
    "v1_metric_nk": {
        **V1,
        "model.head.name": "metric_bins_nk",
        "model.head.domains": {"nyu": 10, "kitti": 80},
        "stage.domains": {"nyuv2_raw": "nyu"},
        "stage.w_domain": 100,
        "stage.views": ROADS,
        "epochs": 10,
        "optimizer.lr": 2.512e-4,
        "eval_every": 740,
    },
    "v2_metric_hypersim": {**V2, "model.head.max_depth_m": 20, "eval_every": 1860},
    "v2_metric_vkitti2": {
        **V2,
        "model.head.max_depth_m": 80,
        "data.labeled.vkitti2.expected": 19559,
        "eval_every": 611,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_metric_recipe_has_the_papers_numbers(name: str) -> None:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose("train", ["stage=metric", f"experiment={name}"])
    for key, wanted in RECIPES[name].items():
        found = OmegaConf.select(cfg, key, default="no such setting")
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        if key == "stage.views":  # the others do nothing
            found = {each: found[each] for each in wanted}
        assert found == wanted, key


def test_validations_are_fractions_of_an_epoch() -> None:
    for name, images, batch, per_epoch in (
        ("v1_metric_nyu", 24231, 16, 4),
        ("v1_metric_kitti", 23158, 16, 4),
        ("v1_metric_nk", 24231 + 23158, 16, 4),
        ("v2_metric_vkitti2", 19559, 32, 1),
    ):
        assert RECIPES[name]["eval_every"] == round(images / batch / per_epoch), name
