"""How a domain looks: which colours and textures each part of a scene may take."""

import colorsys
from dataclasses import dataclass

import numpy as np

from .textures import TEXTURES, Rgb


@dataclass(frozen=True)
class Material:
    """A surface. `tile_m` is the width of one repeat of the texture; `emission` scales it into a lamp."""

    texture: np.ndarray
    tile_m: float = 1.0
    gloss: bool = False
    emission: float = 0.0


@dataclass(frozen=True)
class Role:
    """What one kind of surface may be: `narrow` in the labeled domain, `broad_*` in the unlabeled one."""

    narrow: tuple[Rgb, ...]
    narrow_textures: tuple[str, ...]
    broad_textures: tuple[str, ...]
    saturation: tuple[float, float] = (0.1, 0.85)
    value: tuple[float, float] = (0.15, 0.95)
    hue: tuple[float, float] = (0.0, 1.0)
    tile_m: tuple[float, float] = (0.8, 1.6)
    gloss: float = 0.0


FABRICS = ("plaster", "stripes", "zigzag", "dots", "camouflage", "checker", "speckle")
ROLES: dict[str, Role] = {
    "wall": Role(
        ((0.86, 0.83, 0.77), (0.8, 0.82, 0.82), (0.84, 0.8, 0.72), (0.75, 0.8, 0.8)),
        ("plaster",),
        ("plaster", "plaster", "stripes", "brick", "dots", "zigzag", "tiles", "wood", "camouflage"),
        (0.05, 0.75),
        (0.25, 0.95),
    ),
    "floor": Role(
        ((0.62, 0.45, 0.3), (0.7, 0.55, 0.4), (0.55, 0.4, 0.28)),
        ("wood",),
        ("wood", "tiles", "checker", "marble", "speckle", "camouflage", "zigzag"),
        (0.05, 0.6),
        (0.15, 0.85),
        gloss=0.35,
    ),
    "ceiling": Role(
        ((0.9, 0.9, 0.88),), ("plaster",), ("plaster", "plaster", "wood"), (0.0, 0.3), (0.5, 0.95)
    ),
    "wood": Role(
        ((0.6, 0.42, 0.27), (0.72, 0.57, 0.42), (0.45, 0.32, 0.22), (0.85, 0.84, 0.8)),
        ("wood",),
        ("wood", "plaster", "marble", "speckle"),
        (0.1, 0.9),
        (0.1, 0.95),
        gloss=0.15,
    ),
    "fabric": Role(
        ((0.45, 0.48, 0.5), (0.62, 0.57, 0.5), (0.35, 0.42, 0.5), (0.42, 0.48, 0.42)),
        ("plaster",),
        FABRICS,
        tile_m=(0.3, 0.8),
    ),
    "cloth": Role(
        ((0.85, 0.83, 0.78), (0.6, 0.65, 0.68), (0.7, 0.6, 0.5)),
        ("plaster", "stripes"),
        FABRICS,
        tile_m=(0.3, 0.9),
    ),
    "accent": Role(
        ((0.55, 0.62, 0.65), (0.75, 0.68, 0.5), (0.6, 0.4, 0.32), (0.4, 0.5, 0.45), (0.85, 0.83, 0.8)),
        ("plaster",),
        ("plaster", "stripes", "dots", "marble", "checker", "zigzag"),
        (0.3, 1.0),
        (0.15, 1.0),
        tile_m=(0.2, 0.5),
        gloss=0.3,
    ),
    "metal": Role(
        ((0.3, 0.3, 0.32), (0.6, 0.6, 0.6)), ("plaster",), ("plaster",), (0.0, 0.5), (0.08, 0.8), gloss=0.5
    ),
    "leaf": Role(
        ((0.25, 0.38, 0.16), (0.3, 0.42, 0.2), (0.2, 0.33, 0.15)),
        ("leaves",),
        ("leaves",),
        (0.3, 0.9),
        (0.15, 0.75),
        (0.0, 0.42),
    ),
    "bark": Role(
        ((0.35, 0.28, 0.22),), ("speckle",), ("speckle", "wood"), (0.1, 0.5), (0.12, 0.6), (0.02, 0.15)
    ),
    "facade": Role(
        ((0.6, 0.36, 0.28), (0.8, 0.74, 0.62), (0.72, 0.7, 0.66), (0.66, 0.45, 0.35)),
        ("brick", "plaster"),
        ("brick", "plaster", "plaster", "stripes", "tiles", "camouflage", "checker", "wood"),
        (0.05, 0.8),
        (0.2, 0.95),
        tile_m=(1.2, 2.4),
    ),
    "road": Role(
        ((0.33, 0.33, 0.34),),
        ("speckle",),
        ("speckle", "tiles", "brick", "marble"),
        (0.0, 0.3),
        (0.1, 0.6),
        tile_m=(1.5, 3.0),
    ),
    "pavement": Role(
        ((0.6, 0.58, 0.55),),
        ("tiles",),
        ("tiles", "speckle", "checker", "brick"),
        (0.0, 0.4),
        (0.2, 0.85),
        tile_m=(1.5, 2.5),
    ),
    "grass": Role(
        ((0.32, 0.42, 0.2),), ("leaves",), ("leaves", "speckle"), (0.1, 0.7), (0.15, 0.9), (0.05, 0.4)
    ),
    "car": Role(
        ((0.75, 0.76, 0.77), (0.2, 0.22, 0.25), (0.45, 0.2, 0.18), (0.25, 0.32, 0.42)),
        ("plaster",),
        ("plaster", "plaster", "checker", "stripes"),
        (0.2, 1.0),
        (0.1, 1.0),
        gloss=0.8,
    ),
    "skin": Role(
        ((0.75, 0.58, 0.48), (0.5, 0.36, 0.28), (0.35, 0.24, 0.18)),
        ("plaster",),
        ("plaster",),
        (0.3, 0.5),
        (0.25, 0.85),
        (0.04, 0.08),
    ),
    "glass": Role(
        ((0.28, 0.34, 0.4), (0.22, 0.27, 0.32)),
        ("plaster",),
        ("plaster", "outdoors"),
        (0.1, 0.6),
        (0.08, 0.6),
        gloss=1.0,
    ),
    "trim": Role(((0.9, 0.9, 0.88), (0.3, 0.28, 0.26)), ("plaster",), ("plaster",), (0.0, 0.8), (0.1, 0.95)),
    "picture": Role(((0.6, 0.6, 0.55), (0.45, 0.5, 0.55)), ("painting",), ("painting",)),
}


@dataclass
class Style:
    """Draws materials for one scene; `breadth`, 0 to 1, is the share that the labeled domain lacks."""

    rng: np.random.Generator
    breadth: float

    def strays(self) -> bool:
        """Whether the next choice leaves the labeled domain, where nothing is drawn for it."""
        return self.breadth > 0 and bool(self.rng.random() < self.breadth)

    def colour(self, name: str, broad: bool) -> Rgb:
        role = ROLES[name]
        if not broad:
            base = np.asarray(role.narrow[self.rng.integers(len(role.narrow))])
            return tuple(
                np.clip(base * self.rng.uniform(0.9, 1.08) + self.rng.uniform(-0.015, 0.015, 3), 0, 1)
            )
        hue, saturation, value = (self.rng.uniform(*span) for span in (role.hue, role.saturation, role.value))
        return colorsys.hsv_to_rgb(hue, saturation, value)

    def material(self, name: str) -> Material:
        """A fresh draw: keep the result if two parts must match."""
        role, broad = ROLES[name], self.strays()
        first = self.colour(name, broad)
        # Related second colour in the narrow domain, an unrelated one in a third of the broad draws.
        contrast = broad and self.rng.random() < 0.35
        second = (
            self.colour(name, broad) if contrast else tuple(np.clip(np.asarray(first) * self.tint(), 0, 1))
        )
        names = role.broad_textures if broad else role.narrow_textures
        texture = TEXTURES[names[self.rng.integers(len(names))]](self.rng, first, second)
        return Material(texture, self.rng.uniform(*role.tile_m), bool(self.rng.random() < role.gloss))

    def tint(self) -> float:
        return self.rng.uniform(0.5, 0.75) if self.rng.random() < 0.7 else self.rng.uniform(1.25, 1.5)

    def lamp(self, rgb: Rgb, power: float, texture: str = "plaster", second: Rgb | None = None) -> Material:
        pixels = TEXTURES[texture](self.rng, rgb, rgb if second is None else second)
        return Material(pixels, 1.0, emission=power)
