"""Where the camera stands, and what its lens and sensor do to the picture."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .shapes import mi, rotation_z, translation


@dataclass(frozen=True)
class Camera:
    """Angles in degrees: positive pitch looks up, positive yaw to the left. `fov_deg` is across the width."""

    width: int
    height: int
    fov_deg: float
    position_m: tuple[float, float, float]
    yaw_deg: float
    pitch_deg: float
    roll_deg: float

    def axes(self) -> np.ndarray:
        """[3 3] rows right, down, ahead in the world."""
        pitch, roll = np.radians([self.pitch_deg, self.roll_deg])
        turn = rotation_z(self.yaw_deg)[:3, :3]
        ahead = turn @ [0, np.cos(pitch), np.sin(pitch)]
        right, down = turn @ [1.0, 0, 0], turn @ [0, np.sin(pitch), -np.cos(pitch)]
        return np.stack(
            [right * np.cos(roll) + down * np.sin(roll), down * np.cos(roll) - right * np.sin(roll), ahead]
        )

    def rays(self) -> np.ndarray:
        """Unit directions [h w 3] through the pixel centres."""
        focal_px = self.width / 2 / np.tan(np.radians(self.fov_deg) / 2)
        x = (np.arange(self.width) + 0.5 - self.width / 2) / focal_px
        y = (np.arange(self.height) + 0.5 - self.height / 2) / focal_px
        local = np.stack([*np.meshgrid(x, y), np.ones((self.height, self.width))], -1)
        return local @ self.axes() / np.linalg.norm(local, axis=-1, keepdims=True)

    def planar_z(self, points: np.ndarray) -> np.ndarray:
        """World points [h w 3] to metres along the optical axis."""
        return (points - np.asarray(self.position_m)) @ self.axes()[2]

    def sensor(self, sampler: dict[str, Any]) -> dict[str, Any]:
        right, down, ahead = self.axes()
        # Mitsuba's camera looks along +z with x to the left and y up.
        to_world = translation(*self.position_m)
        to_world[:3, :3] = np.stack([-right, -down, ahead], -1)
        film = {
            "type": "hdrfilm",
            "width": self.width,
            "height": self.height,
            "rfilter": {"type": "box"},
            "pixel_format": "rgba",
            "component_format": "float32",
        }
        return {
            "type": "perspective",
            "fov": self.fov_deg,
            "fov_axis": "x",
            "near_clip": 0.01,
            "far_clip": 1000.0,
            "to_world": mi.ScalarTransform4f(to_world),
            "film": film,
            "sampler": sampler,
        }


def draw_camera(rng: np.random.Generator, breadth: float, indoors: bool) -> Camera:
    """Eye level and a level horizon in the labeled domain; some way off both in the unlabeled one.

    Not far off: no label can tell the student of a view that its teacher has never understood.
    """
    width, height = (168, 126)
    if breadth > 0:
        width, height = ((168, 126), (126, 168), (189, 126))[rng.choice(3, p=[0.8, 0.1, 0.1])]
    fov_deg = rng.uniform(60 - 10 * breadth, 60 + 12 * breadth) if breadth > 0 else rng.normal(60, 2)
    # A portrait picture keeps the angle of its long side.
    fov_deg = fov_deg * min(1.0, width / height)
    eye_m = rng.uniform(1.45 - 0.35 * breadth, 1.7 + 0.3 * breadth)
    x_m = rng.uniform(-1.0, 1.0) if indoors else rng.uniform(-4.0, 4.0)
    y_m = rng.uniform(-1.0, 0.5)
    yaw_deg = rng.uniform(-1, 1) * (18 + 12 * breadth)
    # Low cameras look up a little, high ones down, so that the view stays a plausible one.
    tilt_deg = breadth * ((1.3 - eye_m) * 6 - 2 * indoors) - (1 - breadth) * 4 * indoors
    pitch_deg = tilt_deg + rng.normal(0, 1.5 + 1.5 * breadth)
    roll_deg = rng.normal(0, 0.7 + 2.3 * breadth)
    return Camera(
        width, height, float(fov_deg), (x_m, y_m, eye_m), yaw_deg, float(pitch_deg), float(roll_deg)
    )


def tone_map(linear: np.ndarray, key: float) -> np.ndarray:
    """Exposes so that the mean log luminance becomes `key`, rolls off highlights; sRGB in 0..1 out."""
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    exposed = linear * key / np.exp(np.log(luminance + 1e-4).mean())
    filmic = exposed * (2.51 * exposed + 0.03) / (exposed * (2.43 * exposed + 0.59) + 0.14)
    return np.clip(filmic, 0, 1) ** (1 / 2.2)


def fog(rng: np.random.Generator, rgb: np.ndarray, distance_m: np.ndarray) -> np.ndarray:
    """Koschmieder: air light takes over as exp(-beta d)."""
    near, far = np.percentile(distance_m[np.isfinite(distance_m)], (30, 90))
    beta = rng.uniform(0.4, 1.3) / max(0.5 * (near + far), 1.0)
    air = np.clip(rng.uniform(0.45, 0.85) * np.array([1, 1, 1]) + rng.uniform(-0.08, 0.08, 3), 0, 1)
    clear = np.exp(-beta * np.minimum(distance_m, 1e4))[..., None]
    return rgb * clear + air * (1 - clear)


def low_light(rng: np.random.Generator, rgb: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Under-exposed, with shot and read noise."""
    dark = rgb ** rng.uniform(1.0, 1.4) * rng.uniform(0.45, 0.9)
    sigma = rng.uniform(0.01, 0.03) + rng.uniform(0.02, 0.08) * np.sqrt(dark)
    return dark + sigma * rng.standard_normal(rgb.shape)


def colour_cast(rng: np.random.Generator, rgb: np.ndarray, _: np.ndarray) -> np.ndarray:
    return rgb * rng.uniform(0.55, 1.15, 3) + rng.uniform(0, 0.08, 3)


def vignette(rng: np.random.Generator, rgb: np.ndarray, _: np.ndarray) -> np.ndarray:
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in rgb.shape[:2]), indexing="ij")
    return rgb * (1 - rng.uniform(0.4, 0.75) * (x * x + y * y) / 2)[..., None]


def defocus(rng: np.random.Generator, rgb: np.ndarray, distance_m: np.ndarray) -> np.ndarray:
    """Blur grows with the difference of inverse distance to the focus."""
    inverse = 1 / distance_m
    focus = np.percentile(inverse, rng.choice([10, 90]))
    radius_px = np.clip(np.abs(inverse - focus) / (np.ptp(inverse) + 1e-6) * rng.uniform(2.5, 6), 0, 5)
    levels = [rgb] + [cv2.GaussianBlur(rgb, (0, 0), s * 0.6) for s in range(1, 6)]
    level = np.clip(cv2.GaussianBlur(radius_px, (0, 0), 1.5), 0, 4.999)[..., None]
    stack, lower = np.stack(levels), np.floor(level).astype(int)
    low = np.take_along_axis(stack, lower[None], 0)[0]
    high = np.take_along_axis(stack, lower[None] + 1, 0)[0]
    return low + (level - lower) * (high - low)


def motion_blur(rng: np.random.Generator, rgb: np.ndarray, _: np.ndarray) -> np.ndarray:
    length, angle = rng.uniform(3, 8), rng.uniform(0, np.pi)
    kernel = np.zeros((11, 11), np.float32)
    step = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    start, end = (tuple(int(v) for v in np.round((5 + s * step) * 16)) for s in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, 4)
    return cv2.filter2D(rgb, -1, kernel / kernel.sum())


def contrast(rng: np.random.Generator, rgb: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Washed out or crushed."""
    curve = np.clip(rgb, 0, 1) ** rng.choice([rng.uniform(0.45, 0.7), rng.uniform(1.5, 2.2)])
    pivot = curve.mean()
    return pivot + rng.choice([rng.uniform(0.45, 0.65), rng.uniform(1.2, 1.6)]) * (curve - pivot)


def jpeg_blocks(rng: np.random.Generator, rgb: np.ndarray, _: np.ndarray) -> np.ndarray:
    pixels = np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(10, 26))])[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR).astype(np.float64) / 255


def greyscale(rng: np.random.Generator, rgb: np.ndarray, _: np.ndarray) -> np.ndarray:
    grey = rgb @ [0.299, 0.587, 0.114]
    return grey[..., None] * rng.uniform(0.85, 1.05, 3)


# In the order light meets them: air, lens, sensor, file.
SHIFTS = (fog, defocus, motion_blur, vignette, low_light, colour_cast, contrast, greyscale, jpeg_blocks)


def degrade(rng: np.random.Generator, rgb: np.ndarray, distance_m: np.ndarray, share: float) -> np.ndarray:
    """One to three strong shifts to a share of pictures; sRGB [h w 3], distance [h w] with sky infinite."""
    if rng.random() >= share:
        return rgb
    weights = np.array([2, 1.5, 1, 1, 2, 2, 2, 0.6, 1])
    chosen = rng.choice(
        len(SHIFTS), size=rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]), replace=False, p=weights / weights.sum()
    )
    for i in sorted(chosen):
        rgb = np.clip(SHIFTS[i](rng, rgb, distance_m), 0, 1)
    # Several dark shifts on one picture must not leave it black.
    return np.clip(rgb * max(1.0, 0.1 / (rgb.mean() + 1e-3)), 0, 1)
