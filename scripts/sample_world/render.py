"""From (seed, split, index) to one picture with its exact depth and classes."""

from dataclasses import dataclass

import cv2
import numpy as np

from .camera import Camera, degrade, draw_camera, tone_map
from .classes import number
from .rooms import build_room
from .shapes import Scene, World, mi
from .sky import Sky, dome_radiance, draw_sky, paint_sky, sky_lights
from .streets import build_street
from .style import Style

NEAREST_M, FARTHEST_M = 0.5, 60.0


def trace_centres(scene: Scene, camera: Camera, aovs: str) -> np.ndarray:
    """Mitsuba's `aovs` [h w c] of the one ray through each pixel's centre.

    An average over a pixel would exist nowhere along an edge; a stratified sampler with one sample and no
    jitter puts the ray on the centre.
    """
    sensor = mi.load_dict(camera.sensor({"type": "stratified", "sample_count": 1, "jitter": False}))
    integrator = mi.load_dict({"type": "aov", "aovs": aovs})
    return np.array(mi.render(scene.mitsuba, sensor=sensor, integrator=integrator, spp=1), np.float64)


def exact_depth(scene: Scene, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Planar z in metres and the sky mask, both [h w], of the rays through the pixels' centres."""
    layers = trace_centres(scene, camera, "distance:depth,point:position")
    sky = layers[..., 0] == 0
    return np.where(sky, np.inf, camera.planar_z(layers[..., 1:4])), sky


def exact_classes(scene: Scene, camera: Camera) -> np.ndarray:
    """Class numbers [h w] uint8 of what the rays of `exact_depth` meet; sky where they meet nothing."""
    layers = trace_centres(scene, camera, "shape:shape_index,face:prim_index")
    shapes, faces = (layers[..., i].astype(np.int64) for i in range(2))
    classes = np.full(shapes.shape, number("sky"), np.uint8)
    for i, shape in enumerate(scene.mitsuba.shapes(), 1):  # 0: the ray meets nothing
        hit = shapes == i
        found = scene.classes[shape.id()]
        classes[hit] = found if isinstance(found, int) else found[faces[hit]]
    return classes


def acceptable(depth_m: np.ndarray, sky: np.ndarray) -> bool:
    """False for a camera in an object, a view of almost nothing, or a view without depth."""
    seen = depth_m[~sky]
    if sky.mean() > 0.6 or seen.min() < NEAREST_M or seen.max() > FARTHEST_M:
        return False
    near, far = np.percentile(seen, (5, 95))
    return (depth_m < 1.0).mean() <= 0.6 and far / near >= 1.5


def denoise(radiance: np.ndarray, albedo: np.ndarray, normal: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Edge-avoiding a-trous filter (Dammertz et al. 2010) of log irradiance, so textures stay sharp.

    All arguments are [h w 3] means over the samples of a pixel.
    """
    irradiance = radiance / (albedo + 0.02)
    scale = np.median(irradiance) + 1e-6
    field = np.log1p(irradiance / scale)
    # A lone bright pixel is a path that met a lamp by chance.
    field = np.minimum(field, cv2.medianBlur(field, 3) + 0.5)
    reach = 0.05 * np.linalg.norm(point, axis=-1, keepdims=True) + 0.05
    guides = np.concatenate([normal / 0.35, point / reach], -1)
    taps = np.array([1, 4, 6, 4, 1]) / 16.0
    # The floor lets the pixels of an edge, which resemble nothing, still borrow light from their neighbours.
    for step, tolerance, floor in ((1, 0.6, 0.15), (2, 0.4, 0.0), (4, 0.25, 0.0)):
        field = filter_once(field, guides, taps, step, tolerance, floor)
    return np.expm1(field) * scale * (albedo + 0.02)


def filter_once(
    field: np.ndarray, guides: np.ndarray, taps: np.ndarray, step: int, tolerance: float, floor: float
) -> np.ndarray:
    """One pass over 5 x 5 neighbours `step` pixels apart; `floor` is the least weight of a neighbour."""
    height, width = field.shape[:2]
    margin = 2 * step
    # Compares blurred brightness: that of single pixels is the grain itself.
    brightness = cv2.GaussianBlur(field.mean(-1), (0, 0), 1.2)[..., None]
    padded = np.pad(
        np.concatenate([field, brightness, guides], -1),
        ((margin, margin), (margin, margin), (0, 0)),
        mode="edge",
    )
    total, weights = np.zeros_like(field), np.zeros((height, width, 1), field.dtype)
    for i, j in np.ndindex(5, 5):
        other = padded[i * step : i * step + height, j * step : j * step + width]
        apart = np.square(other[..., 4:] - guides).sum(-1) * 0.5
        apart += np.square(other[..., 3] - brightness[..., 0]) / tolerance**2
        weight = (taps[i] * taps[j] * (np.exp(-apart) + floor))[..., None]
        total += weight * other[..., :3]
        weights += weight
    return total / weights


def photograph(scene: Scene, camera: Camera, dome: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """[h w 4]: path-traced, denoised linear colour with the dome blanked, and coverage by surfaces."""
    sensor = mi.load_dict(camera.sensor({"type": "independent", "sample_count": samples}))
    # The depth integrator is here for its alpha: the path's own counts the dome as a surface.
    integrator = mi.load_dict(
        {
            "type": "aov",
            "aovs": "albedo:albedo,normal:geo_normal,point:position",
            "image": {"type": "path", "max_depth": 3},
            "surface": {"type": "depth"},
        }
    )
    layers = np.array(
        mi.render(scene.mitsuba, sensor=sensor, integrator=integrator, spp=samples, seed=seed), np.float32
    )
    # image rgb, image alpha, surface rgb, surface alpha, then the three guides
    image, _, cover, albedo, normal, point = np.split(layers, (3, 7, 8, 11, 14), axis=-1)
    surface = np.maximum(image - (1 - cover) * dome.astype(np.float32), 0)
    offset = point - cover * np.asarray(camera.position_m, np.float32)
    return np.concatenate([denoise(surface, albedo, normal, offset), cover], -1)


def build_scene(rng: np.random.Generator, breadth: float, indoors: bool) -> tuple[Scene, Sky | None]:
    """The scene, and its sky if it has one."""
    world, style = World(), Style(rng, breadth)
    if indoors:
        build_room(world, style)
        return world.scene({}), None
    sky = draw_sky(rng, style.strays())
    build_street(world, style, style.lamp((1.0, 0.72, 0.4), 60.0) if sky.night else None)
    return world.scene(sky_lights(sky)), sky


@dataclass(frozen=True)
class View:
    """A scene and a camera that make a usable picture, and the generator for what is drawn next."""

    rng: np.random.Generator
    breadth: float
    scene: Scene
    sky: Sky | None
    camera: Camera
    depth_m: np.ndarray
    is_sky: np.ndarray


def draw_view(key: list[int], broad: bool, indoors: bool) -> View:
    """The first usable view of the stream `key`; a pure function of its arguments.

    Args:
        key: [seed, split, index], the root of all random draws.
        broad: the unlabeled domain instead of the labeled one: how far a picture goes from the latter is
            drawn for each, evenly from not at all to altogether.
    """
    for attempt in range(100):
        rng = np.random.default_rng([*key, attempt])
        breadth = rng.random() if broad else 0.0
        scene, sky = build_scene(rng, breadth, indoors)
        for _ in range(4):
            camera = draw_camera(rng, breadth, indoors)
            depth_m, is_sky = exact_depth(scene, camera)
            if acceptable(depth_m, is_sky):
                return View(rng, breadth, scene, sky, camera, depth_m, is_sky)
    raise RuntimeError(f"no usable view of {key} in 100 scenes: loosen `acceptable`")


def view_classes(view: View) -> np.ndarray:
    """Class numbers [h w] uint8; draws nothing from the view's generator."""
    classes = exact_classes(view.scene, view.camera)
    assert np.array_equal(classes == number("sky"), view.is_sky)
    return classes


def take_picture(
    rng: np.random.Generator,
    breadth: float,
    scene: Scene,
    sky: Sky | None,
    camera: Camera,
    depth_m: np.ndarray,
    samples: int,
) -> np.ndarray:
    """The picture [h w 3] uint8 of a camera, with lens, air and sensor of this breadth.

    Args:
        depth_m: [h w] planar z of this camera, infinite in the sky.
        samples: paths per pixel.
    """
    dome = dome_radiance(sky) if sky else np.zeros(3)
    shot = photograph(scene, camera, dome, samples, int(rng.integers(2**31)))
    linear, cover = shot[..., :3], shot[..., 3:]
    if sky:
        linear = linear + (1 - cover) * paint_sky(rng, sky, camera.rays())
    exposure = rng.uniform(0.17 - 0.06 * breadth, 0.2 + 0.06 * breadth)
    rgb = tone_map(linear, exposure * (0.35 if sky and sky.night else 1.0))
    if breadth > 0:
        rgb = degrade(rng, rgb, depth_m, share=0.9 * breadth)
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
