"""One street. The camera stands at its near end and looks along +y; something always closes the far end."""

from dataclasses import dataclass

import numpy as np

from .shapes import Frame, World
from .style import Material, Style

END_M = 50.0


@dataclass(frozen=True)
class Plan:
    """Cross-section of the street: half width of the road, then a pavement, then plots."""

    road_m: float
    pavement_m: float

    @property
    def plot_m(self) -> float:
        return self.road_m + self.pavement_m


def ground(world: World, style: Style, plan: Plan) -> None:
    frame, far = world.frame("ground"), END_M + 8
    lane = frame.of("road")
    pavement, grass, paint = style.material("pavement"), style.material("grass"), style.material("trim")
    frame.slab((0, far / 2 - 4, -0.02), (110, far + 8), grass)
    lane.slab((0, far / 2 - 4, 0), (2 * plan.road_m, far + 8), style.material("road"))
    for side in (-1, 1):
        x = side * (plan.road_m + plan.pavement_m / 2)
        frame.box((x, far / 2 - 4, 0.06), (plan.pavement_m, far + 8, 0.12), pavement)
    if style.rng.random() < 0.8:
        for y in np.arange(1, END_M, 4.5):
            lane.slab((0, y, 0.006), (0.14, 2.2), paint)
    if style.rng.random() < 0.35:
        y = style.rng.uniform(6, 14)
        for x in np.arange(-plan.road_m + 0.4, plan.road_m - 0.2, 0.9):
            lane.slab((x, y, 0.007), (0.45, 2.6), paint)


@dataclass(frozen=True)
class FacadeParts:
    """Materials that repeat over one building."""

    wall: Material
    trim: Material
    glass: Material
    door: Material


def facade_window(wall: Frame, x: float, z: float, size: tuple[float, float], parts: FacadeParts) -> None:
    width, height = size
    wall.box((x, 0, z), (width + 0.16, 0.12, height + 0.16), parts.trim)
    wall.pane((x, -0.065, z), size, parts.glass)
    wall.box((x, -0.07, z), (0.06, 0.02, height), parts.trim)
    wall.box((x, -0.12, z - height / 2 - 0.1), (width + 0.3, 0.25, 0.07), parts.trim)


def facade(wall: Frame, style: Style, width: float, floors: int, storey: float, parts: FacadeParts) -> None:
    """Windows by storey and a door or a shop front below, on a wall that faces -y."""
    rng = style.rng
    columns = max(2, int(width / rng.uniform(2.0, 2.8)))
    pitch, size = width / columns, (rng.uniform(0.9, 1.3), rng.uniform(1.2, 1.7))
    door = rng.integers(columns)
    for row in range(floors):
        for column in range(columns):
            x, z = (column - (columns - 1) / 2) * pitch, row * storey + storey * 0.55
            if row or column != door:
                facade_window(wall, x, z, size, parts)
    x = (door - (columns - 1) / 2) * pitch
    wall.box((x, 0, 1.1), (1.25, 0.16, 2.3), parts.trim)
    wall.box((x, -0.05, 1.05), (1.0, 0.16, 2.1), parts.door)
    if rng.random() < 0.4:
        wall.box((0, -0.6, storey * 0.92), (width * 0.9, 1.2, 0.08), style.material("cloth"))


def roof(frame: Frame, style: Style, width: float, depth: float, height: float, trim: Material) -> None:
    """Gable with its ridge along the street, or a flat roof with an edge."""
    if style.rng.random() < 0.55:
        rise, over = style.rng.uniform(1.2, 2.6), 0.3
        ridge = np.array([[-width / 2 - over, 0, rise], [width / 2 + over, 0, rise]])
        front = ridge * [1, 0, 0] + [0, -depth / 2 - over, 0]
        grid = np.stack([front, ridge, ridge * [1, 0, 0] + [0, depth / 2 + over, 0]])
        frame.at(0, depth / 2, height).sheet(grid, style.material("facade"))
        return
    frame.box((0, depth / 2, height + 0.1), (width + 0.3, depth + 0.3, 0.3), trim)


def building(frame: Frame, style: Style, width: float, depth: float) -> None:
    """Its front is at y = 0 of the frame, facing -y."""
    rng = style.rng
    parts = FacadeParts(
        style.material("facade"), style.material("trim"), style.material("glass"), style.material("accent")
    )
    floors, storey = int(rng.integers(1, 5)), rng.uniform(2.8, 3.3)
    height = floors * storey + 0.4
    frame.box((0, depth / 2, height / 2), (width, depth, height), parts.wall)
    frame.box((0, 0, 0.25), (width + 0.04, 0.1, 0.5), parts.trim)
    facade(frame, style, width, floors, storey, parts)
    # The end walls are seen where a garden lies next door.
    for side, yaw in ((-1, -90), (1, 90)):
        end = frame.at(side * width / 2, depth / 2, 0, yaw)
        for row in range(floors):
            facade_window(end, 0, (row + 0.55) * storey, (1.0, 1.4), parts)
    roof(frame, style, width, depth, height, parts.trim)


def tree(frame: Frame, style: Style, height: float) -> None:
    frame = frame.of("vegetation")
    rng, crown = style.rng, height * style.rng.uniform(0.26, 0.36)
    frame.pole((0, 0, 0), height * 0.022, height * 0.6, style.material("bark"))
    leaf = style.material("leaf")
    if rng.random() < 0.25:
        cones = np.linspace(0, 1, 7)
        centers = np.stack([0 * cones, 0 * cones, height * (0.25 + 0.7 * cones)], -1)
        radii = (crown * (1.05 - cones))[:, None] * [0.9, 0.9, 0.55]
    else:
        centers = rng.normal((0, 0, height * 0.72), crown * 0.42, (14, 3))
        radii = crown * rng.uniform(0.35, 0.6, (14, 1)) * [1, 1, 0.85]
        for center, radius in zip(centers, radii):
            # A solid core keeps the crown from being a cloud of confetti that one sees through.
            frame.ball(tuple(center), float(radius[2]) * 0.72, leaf)
    frame.foliage(rng, centers, radii, 0.16, 2600, leaf)


def hedge(frame: Frame, style: Style, length: float, height: float) -> None:
    """Along x."""
    frame = frame.of("vegetation")
    rng, leaf = style.rng, style.material("leaf")
    frame.box((0, 0, height / 2), (length, 0.6, height), leaf)
    count = max(4, int(length * 2.5))
    centers = np.stack(
        [np.linspace(-length / 2, length / 2, count), np.zeros(count), np.full(count, height / 2)], -1
    )
    radii = np.broadcast_to([0.4, 0.38, height * 0.56], (count, 3))
    frame.foliage(rng, centers, radii, 0.1, int(420 * length), leaf)


def fence(frame: Frame, style: Style, length: float, height: float) -> None:
    frame, wood = frame.of("street furniture"), style.material("wood")
    for x in np.arange(-length / 2, length / 2, 0.28):
        frame.box((x, 0, height / 2), (0.16, 0.03, height), wood)
    for z in (0.25, 0.8):
        frame.box((0, 0.03, z * height), (length, 0.04, 0.08), wood)


def car(frame: Frame, style: Style) -> None:
    """Along y."""
    rng, paint, glass, tyre = (
        style.rng,
        style.material("car"),
        style.material("glass"),
        style.material("metal"),
    )
    length, height, van = rng.uniform(3.7, 4.6), rng.uniform(1.4, 1.6), rng.random() < 0.2
    cabin = (0.95 if van else 0.56) * length
    top = height * (1.25 if van else 1.0)
    frame.cushion((0, 0, 0.58), (1.75, length, 0.75), paint, 0.22)
    frame.cushion((0, -0.15, top * 0.66), (1.55, cabin, top * 0.6), glass, 0.35)
    frame.cushion((0, -0.15, top * 0.93), (1.4, cabin * 0.82, 0.14), paint, 0.35)
    for y in (-cabin * 0.3, cabin * 0.05, cabin * 0.34):
        frame.box((0, y - 0.15, top * 0.72), (1.54, 0.07, top * 0.4), paint)
    lights = style.material("trim")
    for x in (-1, 1):
        for y in (-1, 1):
            wheel(frame.at(x * 0.74, y * length * 0.31, 0.32), tyre, lights)
            frame.box((x * 0.62, y * length * 0.487, 0.66), (0.3, 0.06, 0.13), lights)
    frame.box((0, -length * 0.5, 0.45), (0.5, 0.03, 0.12), lights)


def wheel(frame: Frame, tyre: Material, rim: Material) -> None:
    """A disc that stands upright, its axle along x."""
    turn = np.eye(4)
    turn[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    axle = Frame(frame.world, frame.to_world @ turn, frame.label)
    axle.lathe([(0, -0.12), (0.28, -0.12), (0.32, -0.07), (0.32, 0.07), (0.28, 0.12), (0, 0.12)], tyre)
    axle.lathe([(0.18, -0.125), (0.18, 0.125), (0, 0.125)], rim, 12)
    axle.lathe([(0, -0.126), (0.18, -0.125)], rim, 12)


def person(frame: Frame, style: Style) -> None:
    frame = frame.of("person")
    rng, trousers, coat, skin = (
        style.rng,
        style.material("fabric"),
        style.material("fabric"),
        style.material("skin"),
    )
    tall, stride = rng.uniform(0.88, 1.06), rng.uniform(0.02, 0.16)
    for side in (-1, 1):
        x = side * 0.09
        frame.cushion((x, side * stride, 0.42 * tall), (0.15, 0.18, 0.9 * tall), trousers, 0.6)
        frame.cushion((x, side * stride - 0.06, 0.05), (0.11, 0.28, 0.1), style.material("metal"), 0.6)
        frame.cushion((side * 0.25, -side * stride, 1.12 * tall), (0.11, 0.14, 0.66 * tall), coat, 0.7)
    frame.cushion((0, 0, 1.14 * tall), (0.42, 0.26, 0.72 * tall), coat, 0.6)
    frame.cushion((0, 0, 1.62 * tall), (0.18, 0.21, 0.26), skin, 0.9)
    frame.cushion((0, 0.02, 1.68 * tall), (0.2, 0.22, 0.2), style.material("bark"), 0.9)


def bench(frame: Frame, style: Style) -> None:
    """Faces -y."""
    wood, metal = style.material("wood"), style.material("metal")
    for i in range(3):
        frame.box((0, -0.12 * i, 0.45), (1.5, 0.1, 0.04), wood)
        frame.box((0, 0.08, 0.58 + 0.13 * i), (1.5, 0.03, 0.1), wood)
    for x in (-0.6, 0.6):
        frame.box((x, -0.12, 0.22), (0.05, 0.36, 0.44), metal)
        frame.box((x, 0.11, 0.5), (0.05, 0.04, 0.9), metal)


def lamp_post(frame: Frame, style: Style, lamp: Material | None) -> None:
    """The arm reaches along -y; at night `lamp` is its light."""
    metal, height = style.material("metal"), style.rng.uniform(3.8, 5.0)
    frame.pole((0, 0, 0), 0.06, height, metal)
    frame.box((0, -0.45, height), (0.07, 0.9, 0.07), metal)
    if lamp is None:
        frame.cushion((0, -0.85, height - 0.05), (0.22, 0.5, 0.12), metal, 0.5)
    else:
        frame.ball((0, -0.85, height - 0.16), 0.15, lamp)


def planter(frame: Frame, style: Style) -> None:
    frame.box((0, 0, 0.25), (0.9, 0.6, 0.5), style.material("accent"))
    centers = style.rng.normal((0, 0, 0.7), 0.12, (8, 3))
    frame.of("vegetation").foliage(
        style.rng, centers, np.full((8, 3), 0.25), 0.07, 500, style.material("leaf")
    )


def bin_(frame: Frame, style: Style) -> None:
    frame.lathe([(0.24, 0), (0.3, 0.9), (0.31, 0.95), (0, 1.02)], style.material("accent"))


def side_of_street(world: World, style: Style, side: int, x: float) -> None:
    """Buildings and gardens from the camera to the far end, fronts facing the road."""
    rng, y = style.rng, -7.0
    while y < END_M:
        width = rng.uniform(6.0, 13.0)
        # A frame with its -y towards the road: right side looks to -x, left side to +x.
        plot = world.frame("building", side * x, y + width / 2, 0.0, 90 if side < 0 else -90)
        if rng.random() < 0.72:
            setback = 0.0 if rng.random() < 0.6 else rng.uniform(1.0, 4.0)
            building(plot.at(0, setback), style, width - 0.3, rng.uniform(7, 9))
            if setback > 1.5:
                barrier(plot, style, width)
        else:
            garden(plot, style, width)
        y += width


def barrier(plot: Frame, style: Style, width: float) -> None:
    if style.rng.random() < 0.6:
        hedge(plot.at(0, 0.4), style, width - 0.4, style.rng.uniform(0.7, 1.3))
    else:
        fence(plot.at(0, 0.3), style, width - 0.4, style.rng.uniform(0.8, 1.4))


def garden(plot: Frame, style: Style, width: float) -> None:
    """Trees behind a hedge or fence, and a tall hedge that closes the view."""
    barrier(plot, style, width)
    for _ in range(style.rng.integers(2, 5)):
        spot = plot.at(style.rng.uniform(-width / 3, width / 3), style.rng.uniform(2, 9))
        tree(spot, style, style.rng.uniform(4, 8))
    hedge(plot.at(0, 11), style, width, 3.0)


def far_end(world: World, style: Style, plan: Plan) -> None:
    """Buildings across the road with trees before them."""
    rng, x = style.rng, -30.0
    end = END_M - rng.uniform(0, 18)
    while x < 30:
        width = rng.uniform(8, 14)
        building(world.frame("building", x + width / 2, end), style, width, 7)
        x += width
    for x in rng.uniform(-plan.plot_m, plan.plot_m, rng.integers(0, 4)):
        tree(world.frame("vegetation", x, end - rng.uniform(2, 5)), style, rng.uniform(4, 8))


def kerbside(world: World, style: Style, plan: Plan, side: int, lamp: Material | None) -> None:
    """Parked cars on the road; trees, lamps, people and furniture on the pavement."""
    rng, street_tree = style.rng, style.rng.random() < 0.6
    inward = -90 if side > 0 else 90
    for y in np.arange(rng.uniform(3, 7), END_M - 20, 5.6):
        if rng.random() < 0.5:
            turned = 180 * int(rng.random() < 0.5) + rng.uniform(-2, 2)
            car(world.frame("vehicle", side * (plan.road_m - 1.1), y, 0, turned), style)
    for y in np.arange(rng.uniform(4, 8), END_M - 20, rng.uniform(7, 11)):
        spot = world.frame("street furniture", side * (plan.road_m + 0.45), y, 0.12, inward)
        if street_tree and rng.random() < 0.7:
            tree(spot, style, rng.uniform(3.5, 6.5))
        else:
            lamp_post(spot, style, lamp)
    for _ in range(rng.integers(3, 9)):
        x = side * rng.uniform(plan.road_m + 1.0, plan.plot_m - 0.6)
        spot = world.frame("street furniture", x, rng.uniform(3.5, 26), 0.12, inward)
        thing = (person, person, person, bench, planter, bin_)[rng.integers(6)]
        thing(spot.at(0, 0, 0, rng.uniform(0, 360) if thing is person else 0), style)


def build_street(world: World, style: Style, lamp: Material | None) -> None:
    """Adds a whole street; sun and sky are the caller's, `lamp` lights the posts at night."""
    rng = style.rng
    plan = Plan(rng.uniform(2.8, 4.6), rng.uniform(2.0, 3.6))
    ground(world, style, plan)
    for side in (-1, 1):
        side_of_street(world, style, side, plan.plot_m)
        kerbside(world, style, plan, side, lamp)
    far_end(world, style, plan)
    for _ in range(rng.integers(0, 3)):
        x, y = rng.uniform(-plan.road_m, plan.road_m), rng.uniform(7, 25)
        person(world.frame("person", x, y, 0, rng.uniform(0, 360)), style)
