"""One furnished room. The camera stands near the back wall and looks along +y."""

import numpy as np

from .furniture import PIECES, armchair, ball, dining_set, round_table, square_table
from .shapes import Frame, World
from .style import Material, Style

WARM, COOL, DAY = (1.0, 0.72, 0.42), (0.55, 0.7, 1.0), (1.0, 0.98, 0.95)


def light(style: Style) -> tuple[Material, Material, Material, Material]:
    """(window, lamp, fill wall, lamp shade): daylight in the labeled domain, any mood in the unlabeled."""
    rng = style.rng
    daylight = ((0.75, 0.85, 0.95), 9.0, DAY, 4.0, DAY, 0.9)
    moods = (
        daylight,
        ((0.95, 0.55, 0.3), 8.0, WARM, 2.0, WARM, 0.35),
        ((0.08, 0.1, 0.2), 0.4, WARM, 14.0, WARM, 0.08),
        (
            (0.15, 0.2, 0.45),
            1.0,
            tuple(rng.uniform(0.2, 1.0, 3)),
            12.0,
            tuple(rng.uniform(0.2, 1.0, 3)),
            0.15,
        ),
        ((0.7, 0.75, 0.8), 3.0, COOL, 5.0, COOL, 0.5),
    )
    sky, window, lamp_rgb, lamp, fill_rgb, fill = (
        moods[rng.integers(len(moods))] if style.strays() else daylight
    )
    green = tuple(np.asarray(sky) * [0.5, 0.62, 0.4])
    return (
        style.lamp(sky, window, "outdoors", green),
        style.lamp(lamp_rgb, lamp),
        style.lamp(fill_rgb, fill),
        style.lamp(lamp_rgb, lamp * 0.3),
    )


def window(wall: Frame, style: Style, x: float, size: tuple[float, float], glass: Material) -> None:
    """A shining pane with a frame, a sill and perhaps curtains, on a wall that faces -y."""
    wall = wall.of("window")
    (width, height), z, trim = size, 0.9 + size[1] / 2, style.material("trim")
    wall.pane((x, -0.02, z), size, glass)
    for side in (-1, 0, 1):
        wall.box((x + side * width / 2, -0.03, z), (0.06, 0.06, height + 0.06), trim)
        wall.box((x, -0.03, z + side * height / 2), (width + 0.06, 0.06 if side else 0.04, 0.06), trim)
    wall.box((x, -0.1, z - height / 2 - 0.04), (width + 0.2, 0.2, 0.04), trim)
    if style.rng.random() < 0.6:
        cloth = style.material("cloth")
        for side in (-1, 1):
            place = wall.of("decoration").at(x + side * (width / 2 + 0.12), -0.12)
            curtain(place, cloth, 0.45, z + height / 2 + 0.15)


def curtain(frame: Frame, cloth: Material, width: float, height: float) -> None:
    x = np.linspace(-width / 2, width / 2, 40)
    rail = np.stack([x, 0.04 * np.sin(x * 55), np.zeros_like(x)], -1)
    frame.sheet(np.stack([np.add(rail, (0, 0, 0.05)), np.add(rail, (0, 0, height))]), cloth)


def picture(wall: Frame, style: Style, x: float, z: float) -> None:
    width, height = style.rng.uniform(0.4, 1.0), style.rng.uniform(0.35, 0.7)
    canvas = style.material("picture")
    canvas = Material(canvas.texture, max(width, height))
    wall = wall.of("decoration")
    wall.box((x, -0.02, z), (width + 0.06, 0.04, height + 0.06), style.material("trim"))
    wall.pane((x, -0.045, z), (width, height), canvas)


def shell(
    world: World, style: Style, size: tuple[float, float, float], fill: Material
) -> list[tuple[Frame, float]]:
    """Floor, ceiling and walls. Returns the far, left and right wall as (frame that faces in, width)."""
    width, length, height = size
    back = 1.5
    middle, span = (length - back) / 2, length + back
    wall, trim = style.material("wall"), style.material("trim")
    feature = style.material("wall") if style.rng.random() < 0.5 else wall
    frames = [
        (world.frame("wall", 0, length), width),
        (world.frame("wall", -width / 2, middle, 0, 90), span),
        (world.frame("wall", width / 2, middle, 0, -90), span),
    ]
    world.frame("floor").slab((0, middle, 0), (width, span), style.material("floor"))
    world.frame("ceiling").box((0, middle, height + 0.05), (width, span, 0.1), style.material("ceiling"))
    for i, (frame, run) in enumerate(frames):
        frame.pane((0, 0, height / 2), (run, height), wall if i else feature)
        frame.box((0, -0.01, 0.05), (run, 0.02, 0.1), trim)
    # The wall behind the camera shines: soft light without grain, and never in view.
    world.frame("wall", 0, -back, 0, 180).pane((0, 0, height / 2), (width, height), fill)
    return frames


def furnish_wall(
    wall: Frame, style: Style, span: tuple[float, float], names: list[str]
) -> list[tuple[float, str]]:
    """Sets pieces side by side between span[0] and span[1]; returns (x, name) of each."""
    placed, x = [], span[0] + style.rng.uniform(0.05, 0.5)
    for name in names:
        piece, width, _ = PIECES[name]
        if x + width > span[1]:
            continue
        piece(wall.of("furniture").at(x + width / 2, -0.05), style, width * style.rng.uniform(0.9, 1.0))
        placed.append((x + width / 2, name))
        x += width + style.rng.uniform(0.1, 0.8)
    return placed


def decorate_wall(
    wall: Frame, style: Style, span: tuple[float, float], glass: Material, placed: list[tuple[float, str]]
) -> None:
    """A window or pictures above low furniture."""
    tall = [x for x, name in placed if name in ("shelf", "cupboard", "television", "lamp", "plant", "desk")]
    free = [x for x in np.arange(span[0] + 0.9, span[1] - 0.6, 1.1) if all(abs(x - t) > 1.0 for t in tall)]
    style.rng.shuffle(free)
    if free and style.rng.random() < 0.55:
        x = free.pop()
        window(wall, style, x, (style.rng.uniform(0.9, 1.5), style.rng.uniform(1.0, 1.3)), glass)
        free = [other for other in free if abs(other - x) > 1.6]
    for x in free[:3]:
        if style.rng.random() < 0.6:
            picture(wall, style, x, style.rng.uniform(1.45, 1.7))


def middle_group(frame: Frame, style: Style) -> None:
    """What stands free in the room: a rug and a table, perhaps chairs."""
    rng, choice = style.rng, style.rng.integers(5)
    if rng.random() < 0.75:
        width = rng.uniform(1.4, 2.2)
        rug = style.material("cloth")
        place = frame.of("decoration").at(0, 0, 0, rng.uniform(-8, 8))
        place.box((0, 0, 0.008), (width, width * 0.7, 0.016), rug)
    floor = frame.at(0, 0, 0.016, rng.uniform(-15, 15))
    if choice == 0:
        dining_set(floor, style)
    elif choice == 1:
        round_table(floor, style, rng.uniform(0.35, 0.55), rng.uniform(0.4, 0.75))
    elif choice == 2:
        square_table(floor, style, rng.uniform(0.7, 1.1), 0.42)
        armchair(floor.at(rng.choice([-1.0, 1.0]) * 0.95, 0.3, 0, rng.uniform(-60, 60)), style, 0.95)
    elif choice == 3:
        for _ in range(rng.integers(2, 6)):
            ball(floor.at(*rng.uniform(-0.8, 0.8, 2)), style, rng.uniform(0.2, 0.4))


def build_room(world: World, style: Style) -> None:
    """Adds a whole room to `world`; all its light comes from its own emitters."""
    rng = style.rng
    size = width, length, height = rng.uniform(3.6, 6.0), rng.uniform(3.6, 7.5), rng.uniform(2.4, 3.1)
    glass, lamp, fill, shade = light(style)
    walls = shell(world, style, size, fill)
    for i, (wall, run) in enumerate(walls):
        names = list(rng.permutation(list(PIECES)))
        # A side wall is furnished from the middle of the room on; which end that is depends on its direction.
        span = (-run / 2 + 0.3, run / 2 - 0.3) if i == 0 else (-run / 2 + 2.6, run / 2 - 1.1)
        span = (-span[1], -span[0]) if i == 2 else span
        if i:
            names = [name for name in names if PIECES[name][2] < width * 0.2]
        placed = furnish_wall(wall, style, span, names)
        decorate_wall(wall, style, span, glass, placed)
    middle_group(world.frame("furniture", rng.uniform(-0.5, 0.5), length * rng.uniform(0.42, 0.55)), style)
    ceiling_lamp(world.frame("decoration", 0, length * 0.5, height), style, lamp, shade)


def ceiling_lamp(frame: Frame, style: Style, lamp: Material, shade: Material) -> None:
    """A flat panel, or a ball on a cord."""
    if style.rng.random() < 0.5:
        frame.box((0, 0, -0.03), (0.9, 0.5, 0.05), style.material("trim"))
        frame.at(0, 0, -0.056).lamp("rectangle", np.diag([0.42, -0.22, -1.0, 1.0]), lamp)
        return
    frame.pole((0, 0, -0.5), 0.008, 0.5, style.material("metal"))
    frame.ball((0, 0, -0.6), 0.14, shade)
