"""Furniture and small things.

A piece stands in its frame with its back at y = 0 and its front towards -y; z = 0 is the floor. In the masks
it is furniture; lamps and small things are decoration, leaves and stems vegetation.
"""

from collections.abc import Callable

import numpy as np

from .shapes import Frame
from .style import Style


def legs(frame: Frame, style: Style, width: float, depth: float, height: float, radius: float = 0.03) -> None:
    wood = style.material("wood")
    for x in (-width / 2 + radius, width / 2 - radius):
        for y in (-depth + radius, -radius):
            frame.pole((x, y, 0), radius, height, wood)


def sofa(frame: Frame, style: Style, width: float) -> None:
    rng, fabric = style.rng, style.material("fabric")
    soft = rng.uniform(0.15, 0.4)
    frame.box((0, -0.45, 0.2), (width - 0.1, 0.8, 0.2), fabric)
    frame.cushion((0, -0.13, 0.55), (width, 0.26, 0.7), fabric, soft)
    seats = max(1, round((width - 0.4) / 0.75))
    pitch = (width - 0.4) / seats
    for i in range(seats):
        x = (i - (seats - 1) / 2) * pitch
        frame.cushion((x, -0.52, 0.38), (pitch, 0.75, 0.24), fabric, soft)
        frame.cushion((x, -0.26, 0.65), (pitch, 0.22, 0.5), fabric, soft)
    for side in (-1, 1):
        frame.cushion((side * (width / 2 - 0.1), -0.45, 0.35), (0.22, 0.9, 0.62), fabric, soft)
    for x in rng.uniform(-width / 3, width / 3, rng.integers(0, 3)):
        frame.at(x, -0.45, 0.62, rng.uniform(-20, 20)).cushion(
            (0, 0, 0), (0.42, 0.16, 0.4), style.material("cloth")
        )


def armchair(frame: Frame, style: Style, width: float) -> None:
    sofa(frame, style, min(width, style.rng.uniform(0.85, 1.0)))


def bed(frame: Frame, style: Style, width: float) -> None:
    rng, wood, sheet, cover = (
        style.rng,
        style.material("wood"),
        style.material("cloth"),
        style.material("fabric"),
    )
    width, length = min(width, rng.uniform(1.2, 1.8)), 2.05
    frame.box((0, -length / 2, 0.2), (width, length, 0.18), wood)
    frame.box((0, -0.03, 0.5), (width + 0.05, 0.06, rng.uniform(0.7, 1.1)), wood)
    frame.cushion((0, -length / 2, 0.38), (width - 0.04, length - 0.05, 0.26), sheet, 0.15)
    frame.cushion((0, -length * 0.64, 0.42), (width + 0.06, length * 0.7, 0.26), cover, 0.2)
    for x in (-width / 4, width / 4):
        frame.cushion((x, -0.32, 0.56), (width * 0.42, 0.4, 0.2), sheet, 0.5)
    legs(frame, style, width, length, 0.12, 0.04)


def books(frame: Frame, style: Style, width: float, depth: float, room_above: float) -> None:
    """A row from the left edge of a board, until it is full or the gap comes."""
    rng, x, end = style.rng, -width / 2 + 0.02, width / 2 * style.rng.uniform(-0.2, 1.0)
    palette = [style.material("accent") for _ in range(5)]
    while x < end - 0.06:
        thick, tall = rng.uniform(0.025, 0.06), room_above * rng.uniform(0.6, 0.92)
        frame.of("decoration").box(
            (x + thick / 2, -depth * 0.55, tall / 2),
            (thick * 0.94, depth * 0.7, tall),
            palette[rng.integers(5)],
        )
        x += thick
    if width / 2 - end > 0.25:
        frame_at = frame.at((end + width / 2) / 2, -depth / 2)
        ornament(frame_at, style, min(room_above * 0.9, 0.35))


def shelf(frame: Frame, style: Style, width: float) -> None:
    rng, wood = style.rng, style.material("wood")
    width, depth, height = min(width, rng.uniform(0.8, 1.6)), 0.32, rng.uniform(1.2, 2.1)
    levels = round(height / 0.38)
    gap = (height - 0.03) / levels
    frame.box((0, -0.01, height / 2), (width, 0.02, height), wood)
    for side in (-1, 1):
        frame.box((side * (width / 2 - 0.015), -depth / 2, height / 2), (0.03, depth, height), wood)
    for i in range(levels + 1):
        frame.box((0, -depth / 2, 0.015 + i * gap), (width, depth, 0.03), wood)
        if i < levels:
            books(frame.at(0, 0, 0.03 + i * gap), style, width - 0.08, depth, gap - 0.04)


def cupboard(frame: Frame, style: Style, width: float) -> None:
    rng, body, front = style.rng, style.material("wood"), style.material("wood")
    width, height = min(width, rng.uniform(0.9, 1.6)), rng.uniform(1.6, 2.1)
    frame.box((0, -0.28, height / 2), (width, 0.56, height), body)
    doors = 2 if width < 1.3 else 3
    for i in range(doors):
        x = (i - (doors - 1) / 2) * width / doors
        frame.box((x, -0.57, height / 2), (width / doors - 0.03, 0.025, height - 0.1), front)
        frame.box(
            (x + width / doors * 0.35, -0.6, height * 0.5), (0.025, 0.03, 0.16), style.material("metal")
        )


def sideboard(frame: Frame, style: Style, width: float) -> None:
    rng, body, front = style.rng, style.material("wood"), style.material("wood")
    width, height = min(width, rng.uniform(1.0, 1.8)), rng.uniform(0.55, 0.85)
    frame.box((0, -0.23, height / 2 + 0.05), (width, 0.44, height - 0.1), body)
    for i in range(3):
        x = (i - 1) * width / 3
        frame.box((x, -0.46, height / 2 + 0.05), (width / 3 - 0.03, 0.02, height - 0.16), front)
        frame.ball((x, -0.48, height * 0.65), 0.018, style.material("metal"))
        if rng.random() < 0.65:
            ornament(frame.at(x + rng.uniform(-0.1, 0.1), -0.22, height), style, 0.45)
    legs(frame, style, width, 0.44, 0.1)


def television(frame: Frame, style: Style, width: float) -> None:
    sideboard(frame, style, width)
    screen_m = min(width, style.rng.uniform(0.9, 1.3))
    z = 0.95 + screen_m * 0.3
    frame.box((0, -0.05, z), (screen_m, 0.06, screen_m * 0.58), style.material("glass"))


def desk(frame: Frame, style: Style, width: float) -> None:
    rng, wood = style.rng, style.material("wood")
    width, depth = min(width, rng.uniform(1.1, 1.6)), 0.65
    frame.box((0, -depth / 2, 0.73), (width, depth, 0.04), wood)
    legs(frame, style, width, depth, 0.71)
    frame.box((width / 2 - 0.22, -depth / 2, 0.42), (0.4, depth - 0.08, 0.56), wood)
    frame.box((-0.15, -0.2, 1.02), (0.55, 0.03, 0.34), style.material("glass"))
    frame.box((-0.15, -0.18, 0.8), (0.05, 0.03, 0.14), style.material("metal"))
    ornament(frame.at(width / 2 - 0.2, -0.3, 0.75), style, 0.35)
    chair(frame.at(-0.15, -depth - 0.1, 0, 180 + rng.uniform(-25, 25)), style)


def chair(frame: Frame, style: Style) -> None:
    """Centred on its seat, unlike the pieces that stand against a wall."""
    wood, seat = style.material("wood"), style.material("fabric")
    for x in (-0.19, 0.19):
        frame.pole((x, -0.19, 0), 0.02, 0.44, wood)
        frame.pole((x, 0.19, 0), 0.02, 0.92, wood)
    frame.cushion((0, 0, 0.45), (0.44, 0.44, 0.07), seat, 0.2)
    for z in (0.62, 0.74, 0.86):
        frame.box((0, 0.19, z), (0.4, 0.025, 0.06), wood)


def round_table(frame: Frame, style: Style, radius: float, height: float) -> None:
    wood = style.material("wood")
    frame.lathe([(0, height - 0.04), (radius, height - 0.04), (radius, height), (0, height)], wood, 28)
    frame.lathe([(radius * 0.45, 0), (radius * 0.4, 0.03), (0.05, 0.08), (0.05, height - 0.04)], wood)
    for angle in style.rng.uniform(0, 2 * np.pi, 2):
        ornament(frame.at(radius * 0.5 * np.cos(angle), radius * 0.5 * np.sin(angle), height), style, 0.3)


def square_table(frame: Frame, style: Style, size: float, height: float) -> None:
    frame.box((0, 0, height - 0.02), (size, size * 0.7, 0.04), style.material("wood"))
    legs(frame.at(0, size * 0.33), style, size * 0.92, size * 0.66, height - 0.04)
    for x in style.rng.uniform(-size * 0.4, size * 0.4, style.rng.integers(1, 3)):
        ornament(frame.at(x, 0, height), style, 0.3)


def dining_set(frame: Frame, style: Style) -> None:
    rng, size = style.rng, style.rng.uniform(1.0, 1.5)
    square_table(frame, style, size, 0.75)
    for side in (-1, 1):
        for x in (-size / 4, size / 4) if size > 1.2 else (0,):
            y = side * (size * 0.35 + rng.uniform(0.05, 0.25))
            chair(frame.at(x, y, 0, (0 if side > 0 else 180) + rng.uniform(-15, 15)), style)


def vase(frame: Frame, style: Style, height: float) -> None:
    rng = style.rng
    belly, neck = height * rng.uniform(0.2, 0.4), height * rng.uniform(0.07, 0.16)
    profile = [
        (0, 0),
        (belly * 0.6, 0),
        (belly, height * 0.35),
        (belly * 0.7, height * 0.65),
        (neck, height * 0.85),
        (neck * 1.3, height),
    ]
    frame.lathe(profile, style.material("accent"))


def potted_plant(frame: Frame, style: Style, height: float) -> None:
    rng, pot, plant = style.rng, height * 0.3, frame.of("vegetation")
    frame.of("decoration").lathe(
        [(0, 0), (pot * 0.4, 0), (pot * 0.55, pot), (pot * 0.45, pot), (0, pot * 0.9)],
        style.material("accent"),
    )
    centers = rng.normal((0, 0, height * 0.66), height * 0.13, (9, 3))
    radii = np.full((9, 3), height * 0.14)
    plant.foliage(rng, centers, radii, height * 0.07, 500, style.material("leaf"))
    plant.pole((0, 0, pot * 0.8), height * 0.015, height * 0.4, style.material("bark"))


def bowl(frame: Frame, style: Style, height: float) -> None:
    radius = height * 0.6
    frame.lathe(
        [(0, 0), (radius * 0.4, 0), (radius, radius * 0.5), (radius * 0.92, radius * 0.5), (0, 0.03)],
        style.material("accent"),
    )
    fruit = style.material("accent")
    for angle in np.arange(3) * 2.1:
        frame.ball(
            (radius * 0.4 * np.cos(angle), radius * 0.4 * np.sin(angle), radius * 0.5), radius * 0.3, fruit
        )


def stack_of_books(frame: Frame, style: Style, height: float) -> None:
    for i in range(style.rng.integers(2, 5)):
        book = frame.at(0, 0, i * 0.04, style.rng.uniform(-25, 25))
        book.box((0, 0, 0.02), (0.26, 0.19, 0.038), style.material("accent"))


def table_lamp(frame: Frame, style: Style, height: float) -> None:
    frame.lathe(
        [(height * 0.22, 0), (height * 0.2, 0.02), (0.015, 0.05), (0.015, height * 0.6)],
        style.material("metal"),
    )
    frame.lathe([(height * 0.32, height * 0.55), (height * 0.2, height)], style.material("cloth"))


def ball(frame: Frame, style: Style, height: float) -> None:
    radius = min(height * 0.4, 0.16)
    frame.of("decoration").ball((0, 0, radius), radius, style.material("accent"))


def ornament(frame: Frame, style: Style, height: float) -> None:
    """Something small on a board or a table top."""
    makers: tuple[Callable[[Frame, Style, float], None], ...] = (
        vase,
        potted_plant,
        bowl,
        stack_of_books,
        table_lamp,
        ball,
    )
    maker = makers[style.rng.integers(len(makers))]
    maker(frame.of("decoration"), style, height * style.rng.uniform(0.6, 1.0))


def floor_lamp(frame: Frame, style: Style, width: float) -> None:
    metal, y = style.material("metal"), -0.25
    lamp = frame.of("decoration").at(0, y)
    lamp.lathe([(0.16, 0), (0.15, 0.03), (0.015, 0.05), (0.015, 1.45)], metal)
    lamp.lathe([(0.24, 1.35), (0.14, 1.7)], style.material("cloth"))


def big_plant(frame: Frame, style: Style, width: float) -> None:
    potted_plant(frame.at(0, -0.35), style, style.rng.uniform(0.9, 1.7))


# name: (piece, width it needs in metres, depth it needs)
PIECES: dict[str, tuple[Callable[[Frame, Style, float], None], float, float]] = {
    "sofa": (sofa, 2.0, 1.0),
    "armchair": (armchair, 1.0, 1.0),
    "bed": (bed, 1.8, 2.2),
    "shelf": (shelf, 1.3, 0.4),
    "cupboard": (cupboard, 1.3, 0.65),
    "sideboard": (sideboard, 1.6, 0.55),
    "television": (television, 1.5, 0.55),
    "desk": (desk, 1.5, 1.3),
    "lamp": (floor_lamp, 0.6, 0.55),
    "plant": (big_plant, 0.7, 0.7),
}
