"""Sun and sky of the streets."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .textures import Rgb, fractal_noise


@dataclass(frozen=True)
class Sky:
    """Linear colours. `sun_dir` points to the sun; `clouds` is the covered share."""

    zenith: Rgb
    horizon: Rgb
    sun_rgb: Rgb
    sun_dir: tuple[float, float, float]
    clouds: float
    night: bool = False


# name: (zenith, horizon, sun, sun elevation span in degrees, cloud span)
SKIES: dict[str, tuple[Rgb, Rgb, Rgb, tuple[float, float], tuple[float, float]]] = {
    "day": ((0.22, 0.42, 0.85), (0.62, 0.75, 0.95), (3.2, 3.0, 2.7), (30, 65), (0.05, 0.5)),
    "overcast": ((0.55, 0.58, 0.62), (0.75, 0.77, 0.8), (0.25, 0.25, 0.25), (40, 70), (0.7, 1.0)),
    "sunset": ((0.2, 0.2, 0.45), (1.1, 0.5, 0.22), (4.0, 1.7, 0.6), (7, 20), (0.1, 0.6)),
    "dusk": ((0.1, 0.08, 0.3), (0.7, 0.3, 0.42), (0.5, 0.2, 0.3), (10, 25), (0.2, 0.7)),
    "night": ((0.006, 0.01, 0.03), (0.03, 0.035, 0.06), (0.02, 0.03, 0.06), (30, 60), (0.0, 0.4)),
    "storm": ((0.16, 0.2, 0.2), (0.42, 0.45, 0.34), (0.5, 0.5, 0.35), (25, 50), (0.6, 0.9)),
}


def draw_sky(rng: np.random.Generator, any_hour: bool) -> Sky:
    name = str(rng.choice(list(SKIES))) if any_hour else "day"
    zenith, horizon, sun, elevation_span, cloud_span = SKIES[name]
    elevation, azimuth = np.radians(rng.uniform(*elevation_span)), rng.uniform(0, 2 * np.pi)
    sun_dir = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
    return Sky(zenith, horizon, sun, sun_dir, rng.uniform(*cloud_span), name == "night")


def dome_radiance(sky: Sky) -> np.ndarray:
    """Linear colour [3] of the even dome that lights the street."""
    return 0.6 * np.asarray(sky.zenith) + 0.4 * np.asarray(sky.horizon)


def sky_lights(sky: Sky) -> dict[str, Any]:
    """Mitsuba emitters: an even dome and a distant sun."""
    return {
        "dome": {
            "type": "constant",
            "radiance": {"type": "rgb", "value": [float(c) for c in dome_radiance(sky)]},
        },
        "sun": {
            "type": "directional",
            "direction": [-float(c) for c in sky.sun_dir],
            "irradiance": {"type": "rgb", "value": list(sky.sun_rgb)},
        },
    }


def paint_sky(rng: np.random.Generator, sky: Sky, rays: np.ndarray) -> np.ndarray:
    """Linear colour [h w 3] behind the scene along unit world directions `rays` [h w 3]."""
    up = np.clip(rays[..., 2], 0, 1)[..., None]
    glow = np.clip(rays @ np.asarray(sky.sun_dir), 0, 1)[..., None] ** 24
    clear = np.asarray(sky.horizon) + (1 - (1 - up) ** 4) * (np.asarray(sky.zenith) - np.asarray(sky.horizon))
    clear = clear + 0.25 * glow * np.asarray(sky.sun_rgb)
    field = fractal_noise(rng, 256, slope=1.9).astype(np.float32)
    u, v = (rays[..., axis] / (up[..., 0] + 0.25) * 60 for axis in (0, 1))
    cloud = cv2.remap(
        field, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    cover = np.clip((cloud - (1 - sky.clouds)) * 3.5, 0, 1)[..., None] * 0.9
    white = 0.75 * np.asarray(sky.horizon) + 0.25 * (np.asarray(sky.sun_rgb) * 0.5 + 0.3 * (not sky.night))
    # Darker than the dome that lights the street, as behind a graduated filter: else every sky is blown out.
    return 0.55 * (clear * (1 - cover) + white * (0.8 + 0.4 * cloud[..., None]) * cover)
