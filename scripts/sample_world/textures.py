"""Tileable textures. Each takes (rng, first, second) sRGB colours in 0..1 and returns uint8 [s s 3]."""

from collections.abc import Callable

import cv2
import numpy as np

SIZE = 64
Rgb = tuple[float, float, float]
Texture = Callable[[np.random.Generator, Rgb, Rgb], np.ndarray]


def fractal_noise(
    rng: np.random.Generator, size: int = SIZE, slope: float = 1.5, stretch: float = 1.0
) -> np.ndarray:
    """[s s] tileable 1/f^slope noise in 0..1; `stretch` > 1 draws it out along the rows."""
    fy, fx = np.meshgrid(np.fft.fftfreq(size) * size, np.fft.fftfreq(size) * size, indexing="ij")
    radius = np.hypot(fy, fx * stretch)
    radius[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.standard_normal((size, size))) * radius**-slope
    field = np.fft.ifft2(spectrum).real
    low, high = np.percentile(field, (2, 98))
    return np.clip((field - low) / (high - low), 0, 1)


def mix(weight: np.ndarray, first: Rgb, second: Rgb) -> np.ndarray:
    """[s s] weight of `second` to uint8 [s s 3]."""
    blend = np.asarray(first) + weight[..., None] * (np.asarray(second) - np.asarray(first))
    return np.round(np.clip(blend, 0, 1) * 255).astype(np.uint8)


def shade(pixels: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.clip(pixels * factor[..., None], 0, 255).astype(np.uint8)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """(v, u), each [s s] in 0..1 at the pixel centres."""
    axis = (np.arange(SIZE) + 0.5) / SIZE
    return tuple(np.meshgrid(axis, axis, indexing="ij"))


def plaster(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    return mix(0.25 * fractal_noise(rng, slope=1.0), first, second)


def wood(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    """Four planks with long grain and dark joints."""
    v, u = grid()
    plank = np.floor(v * 4).astype(int)
    grain = fractal_noise(rng, slope=1.3, stretch=9.0)
    tone = rng.uniform(0.82, 1.1, 4)[plank]
    butt = np.abs(u - rng.random(4)[plank]) < 0.008
    joint = (v * 4 % 1 < 0.05) | butt
    return shade(mix(0.7 * grain, first, second), np.where(joint, 0.6, tone))


def brick(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    """Eight courses of four bricks, every other course shifted by half a brick."""
    v, u = grid()
    row = np.floor(v * 8).astype(int)
    shifted = u * 4 + 0.5 * (row % 2)
    column = np.floor(shifted).astype(int) % 4
    mortar = (v * 8 % 1 < 0.12) | (shifted % 1 < 0.06)
    tone = rng.uniform(0.75, 1.15, (8, 4))[row, column] * (0.9 + 0.2 * fractal_noise(rng, slope=0.6))
    return np.where(
        mortar[..., None], mix(np.ones_like(v), first, second), shade(mix(v * 0, first, second), tone)
    )


def tiles(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    v, u = grid()
    joint = (v * 4 % 1 < 0.06) | (u * 4 % 1 < 0.06)
    tone = rng.uniform(0.9, 1.05, (4, 4))[(v * 4).astype(int), (u * 4).astype(int)]
    return shade(
        mix(np.where(joint, 0.8, 0.08 * fractal_noise(rng)), first, second), np.where(joint, 1, tone)
    )


def checker(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    v, u = grid()
    return mix(((v * 4).astype(int) + (u * 4).astype(int)) % 2 * 1.0, first, second)


def stripes(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    _, u = grid()
    return mix((u * rng.integers(3, 9) % 1 < rng.uniform(0.2, 0.6)) * 1.0, first, second)


def zigzag(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    v, u = grid()
    return mix(((v * 5 + np.abs(u * 4 % 1 - 0.5) * 1.6) % 1 < 0.45) * 1.0, first, second)


def dots(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    v, u = grid()
    shifted = u * 4 + 0.5 * ((v * 4).astype(int) % 2)
    return mix((np.hypot(v * 4 % 1 - 0.5, shifted % 1 - 0.5) < rng.uniform(0.18, 0.34)) * 1.0, first, second)


def marble(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    veins = np.abs(fractal_noise(rng, slope=1.7) - 0.5) * 2
    return mix(np.exp(-veins * 9), first, second)


def camouflage(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    return mix(np.round(fractal_noise(rng, slope=1.8) * 3) / 3, first, second)


def speckle(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    """Asphalt, gravel, carpet."""
    return mix(0.6 * fractal_noise(rng, slope=0.4), first, second)


def leaves(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    return mix(fractal_noise(rng, slope=0.7), first, second)


def painting(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    """An abstract picture: random overlapping shapes in hues between the two colours."""
    canvas = np.ascontiguousarray(mix(fractal_noise(rng, slope=2.0), first, second))
    for _ in range(rng.integers(4, 12)):
        colour = [int(c) for c in rng.integers(20, 250, 3)]
        centre = tuple(int(c) for c in rng.integers(0, SIZE, 2))
        if rng.random() < 0.5:
            cv2.circle(canvas, centre, int(rng.integers(3, 16)), colour, -1, cv2.LINE_AA)
        else:
            cv2.ellipse(
                canvas,
                centre,
                (int(rng.integers(5, 34)), int(rng.integers(2, 10))),
                int(rng.integers(0, 180)),
                0,
                360,
                colour,
                -1,
                cv2.LINE_AA,
            )
    return canvas


def outdoors(rng: np.random.Generator, first: Rgb, second: Rgb) -> np.ndarray:
    """What one sees through a window: sky `first` above blurred greenery `second`."""
    v, _ = grid()
    horizon = rng.uniform(0.45, 0.7) + 0.25 * (fractal_noise(rng, slope=1.6) - 0.5)
    return mix(1 / (1 + np.exp((horizon - v) * 30)), first, second)


TEXTURES: dict[str, Texture] = {
    "plaster": plaster,
    "wood": wood,
    "brick": brick,
    "tiles": tiles,
    "checker": checker,
    "stripes": stripes,
    "zigzag": zigzag,
    "dots": dots,
    "marble": marble,
    "camouflage": camouflage,
    "speckle": speckle,
    "leaves": leaves,
    "painting": painting,
    "outdoors": outdoors,
}
