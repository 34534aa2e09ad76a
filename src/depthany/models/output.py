"""What a model predicts: the type of its map, and the tuple that a forward pass returns."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

Kind = Literal["disparity", "depth_m", "classes"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Quantity:
    """What the numbers of a map are.

    Attributes:
        kind: "disparity" (larger is nearer, known up to scale and shift), "depth_m" (depth in metres) or
            "classes" (logits).
        max_depth_m: upper end in metres of a bounded metric head; None if the depth is unbounded.
        class_names: names of the classes, in the order of the channels.
        class_colours: RGB in 0..255 of each class, for pictures; () = none are given.
        trained_to_m: largest depth in metres that an unbounded metric head was trained on; no limit of its
            maps. None if it is not known, and for bounded heads.

    Raises:
        ValueError: the kind is unknown, or an attribute contradicts it.
    """

    kind: Kind
    max_depth_m: float | None = None
    class_names: tuple[str, ...] = ()
    trained_to_m: float | None = None
    class_colours: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of quantity {self.kind!r}; choose from {', '.join(KINDS)}")
        for name in ("max_depth_m", "trained_to_m"):
            if (metres := getattr(self, name)) is not None:
                require_max_depth(metres, name)
                if self.kind != "depth_m":
                    raise ValueError(f"{name}={metres} belongs to depth_m, not to {self.kind}")
        if bool(self.class_names) != (self.kind == "classes"):
            raise ValueError(f"class_names={self.class_names}: expected names if and only if kind is classes")
        if self.class_colours and len(self.class_colours) != len(self.class_names):
            raise ValueError(
                f"{len(self.class_colours)} class_colours of {len(self.class_names)} classes: expected one "
                "for each, or none"
            )

    @property
    def larger_is_nearer(self) -> bool:
        """True for disparity, False for depth."""
        return self.kind == "disparity"

    @property
    def is_metric(self) -> bool:
        """Whether the map holds metres."""
        return self.kind == "depth_m"

    def describe(self, metres: str = "metres") -> str:
        """Returns the quantity in words, for messages.

        Args:
            metres: whose metres they are; see `TrainedOn.unit`.
        """
        if self.kind == "classes":
            return f"{len(self.class_names)} classes"
        if self.kind == "disparity":
            return "disparity"
        limit = "" if self.max_depth_m is None else f" up to {self.max_depth_m:g} m"
        trained = "" if self.trained_to_m is None else f", trained up to {self.trained_to_m:g} m"
        return f"depth in {metres}{limit}{trained}"

    def require(self, kind: Kind, who: str, remedy: str) -> None:
        """Raises a `ValueError` if the quantity is of another kind.

        Args:
            kind: the kind that is needed.
            who: the model in the user's words, such as "stage.teacher=outputs/metric".
            remedy: what the user can do instead.
        """
        if self.kind != kind:
            wanted = {"disparity": "disparity", "depth_m": "depth in metres", "classes": "classes"}[kind]
            raise ValueError(f"{who} predicts {self.describe()}, expected {wanted}: {remedy}")

    def to_config(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint."""
        lists = {"class_names": list(self.class_names), "class_colours": [*map(list, self.class_colours)]}
        return {**asdict(self), **lists}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Quantity":
        """Returns the quantity that `to_config` described."""
        names, trained_to_m = tuple(config.get("class_names", ())), config.get("trained_to_m")
        colours = tuple((int(r), int(g), int(b)) for r, g, b in config.get("class_colours", ()))
        return cls(config["kind"], config.get("max_depth_m"), names, trained_to_m, colours)


class Prediction(NamedTuple):
    """Result of a forward pass. A tuple, so that the hooks of FSDP and DDP and torch.compile see its tensors.

    Attributes:
        map: [b h w] float32 disparity or depth in metres, or [b k h w] class logits.
        features: [b n c] patch tokens of the encoder's last level, if asked for.
        extra: further tensors of a head, such as bin centres.
    """

    map: Tensor
    features: Tensor | None = None
    extra: dict[str, Tensor] | None = None


def require_max_depth(max_depth_m: Any, key: str = "max_depth_m") -> None:
    """Raises a `ValueError` unless `max_depth_m`, that of the setting `key`, is a positive, finite number of
    metres."""
    is_number = isinstance(max_depth_m, int | float) and not isinstance(max_depth_m, bool)
    if not is_number or not 0 < max_depth_m < math.inf:
        raise ValueError(f"{key}={max_depth_m!r}: expected metres above 0")
