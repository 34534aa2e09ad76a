"""Colour maps equal those of matplotlib; their last colour is near."""

import matplotlib
import numpy as np
import pytest

from depthany.display.pictures import COLOUR_MAPS, colour


@pytest.mark.parametrize("name", ["spectral_r", "inferno", "magma", "viridis", "turbo", "gray"])
def test_colour_maps_are_those_of_matplotlib(name: str) -> None:
    theirs = matplotlib.colormaps["Spectral_r" if name == "spectral_r" else name](np.arange(256))[:, :3] * 255
    assert np.abs(COLOUR_MAPS[name] - theirs).max() <= 3


def test_nearest_pixel_gets_the_last_colour() -> None:
    shades = colour(np.array([[0.0, 5.0, 10.0]]), 0.0, 10.0, colour_map="spectral_r")
    assert shades[0].tolist() == [[94, 79, 162], *COLOUR_MAPS["spectral_r"][127:128].tolist(), [158, 1, 66]]


def test_unknown_colour_map_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown colour map 'jet'; choose from inferno, magma"):
        colour(np.zeros((1, 1)), 0, 1, colour_map="jet")
