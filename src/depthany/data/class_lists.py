"""The classes of public sets, in the order of their class numbers.

Sources: PASCAL VOC 2012 development kit; SceneParse150 of ADE20K (objectInfo150), first name of each class;
Cityscapes, `labels.py` of cityscapesScripts.
"""

from depthany.data.class_list import ClassList, voc_colours

_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
)
VOC = ClassList.numbered(_VOC.split(), where="PASCAL VOC")

_ADE20K = """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa,
shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand,
sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool
table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet,
flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning,
streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer
belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle,
lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
clock, flag"""
_ADE20K_NAMES = tuple(name.strip() for name in _ADE20K.replace("\n", " ").split(","))
# The files count from 1, and 0 is everything else.
ADE20K = ClassList(
    _ADE20K_NAMES,
    tuple(voc_colours(len(_ADE20K_NAMES))),
    tuple((number + 1,) for number in range(len(_ADE20K_NAMES))),
    ignored=(0,),
    where="ADE20K",
)

_CITYSCAPES = {  # name -> number in the files *_labelIds.png, RGB
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
_STORED = tuple(number for number, _ in _CITYSCAPES.values())
CITYSCAPES = ClassList.numbered(
    tuple(_CITYSCAPES), tuple(colour for _, colour in _CITYSCAPES.values()), where="Cityscapes (train ids)"
)
CITYSCAPES_RAW = ClassList(
    CITYSCAPES.names,
    CITYSCAPES.colours,
    tuple((number,) for number in _STORED),
    ignored=tuple(number for number in range(34) if number not in _STORED),
    where="Cityscapes (label ids)",
)
