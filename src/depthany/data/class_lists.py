"""The classes of public sets, in the order of their class numbers.

Sources: PASCAL VOC 2012 development kit; SceneParse150 of ADE20K (objectInfo150), first name of each class;
Cityscapes, `labels.py` of cityscapesScripts.
"""

from depthany.data.class_list import ClassList, voc_colours
from depthany.system.class_names import ADE20K_NAMES, VOC_NAMES

VOC = ClassList.numbered(VOC_NAMES, where="PASCAL VOC")

# The files count from 1, and 0 is everything else.
ADE20K = ClassList(
    ADE20K_NAMES,
    tuple(voc_colours(len(ADE20K_NAMES))),
    tuple((number + 1,) for number in range(len(ADE20K_NAMES))),
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
