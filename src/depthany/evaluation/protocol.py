"""A named way to score depth maps: every choice that moves a number, and where it comes from."""

from dataclasses import dataclass, field

from depthany.metrics.align import METHODS, SPACES
from depthany.metrics.crops import CROPS, INPUT_CROPS
from depthany.system.rules import check_fields, setting

UPSAMPLES: dict[str, tuple[str, bool | None]] = {  # mode and align_corners of torch's interpolate
    "bilinear_corners": ("bilinear", True),
    "bilinear": ("bilinear", False),
    "nearest": ("nearest", None),
}


@dataclass(frozen=True)
class Protocol:
    """How a prediction is scored; configs/evaluate.yaml and configs/protocol/ say what each choice means.

    Attributes:
        name: unique; results and folders of predictions go by it.
        count: images that the set must have; None: any number.
        task: depth, or ordinal (pairs of points).
        space: where a prediction is fitted to the truth: disparity, depth, or own (that of the prediction).
        align: how it is fitted; none takes metres as they are.
        align_per: one fit for each image, or for each sequence (images whose names share a folder).
        crop: which pixels count. input_crop: what is cut before the model sees the image.
        min_depth, max_depth: metres; None: the truth is not cut.
        truth_beyond: what truth beyond max_depth, sky included, becomes: invalid, or clip to max_depth.
        clip_prediction: metres; the aligned prediction is held to this. None: to [min_depth, max_depth].
        input_size: pixels of the shorter side as the model sees it; None: the model's own.
        upsample: from the prediction to the size of the truth.
        averaging: image (mean over images of each one's score) or pixel (all pixels pooled).
        boundary_f1: score Depth Pro's boundary F1 too.
        sources: of each choice, or of several ("space, align").
        published: name -> metric -> figure of others.

    Raises:
        ValueError: a choice is unknown, or a range is none.
    """

    name: str
    count: int | None = setting(None, least=1)
    task: str = setting("depth", choices=("depth", "ordinal"))
    space: str = setting("disparity", choices=SPACES)
    align: str = setting("least_squares", choices=METHODS)
    align_per: str = setting("image", choices=("image", "sequence"))
    crop: str = setting("none", choices=CROPS)
    input_crop: str = setting("none", choices=INPUT_CROPS)
    min_depth: float | None = setting(1e-3, above=0)
    max_depth: float | None = setting(80.0, above=0)
    truth_beyond: str = setting("invalid", choices=("invalid", "clip"))
    clip_prediction: tuple[float, float] | None = setting(None, length=2, above=0)
    input_size: int | None = setting(None, least=1)
    upsample: str = setting("bilinear_corners", choices=UPSAMPLES)
    averaging: str = setting("image", choices=("image", "pixel"))
    boundary_f1: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            check_fields(self)
            self._check_ranges()
        except ValueError as error:
            raise ValueError(f"protocol {self.name}: {error}") from None

    def _check_ranges(self) -> None:
        low, high = self.min_depth, self.max_depth
        if low is not None and high is not None and low >= high:
            raise ValueError(f"min_depth={low} and max_depth={high}: expected min_depth < max_depth")
        if self.truth_beyond == "clip" and self.max_depth is None:
            raise ValueError("truth_beyond=clip needs max_depth")
        if self.clip_prediction is None and (low is None or high is None):
            raise ValueError("clip_prediction=null: pass [nearest, farthest] in metres, or both depths")
        if self.clip_prediction is not None and self.clip_prediction[0] >= self.clip_prediction[1]:
            raise ValueError(
                f"clip_prediction={list(self.clip_prediction)}: expected [nearest, farthest] in metres, "
                "nearest < farthest, or null for [min_depth, max_depth]"
            )

    @property
    def prediction_range_m(self) -> tuple[float, float]:
        """What the aligned prediction is held to, in metres."""
        if self.clip_prediction is not None:
            return self.clip_prediction
        assert self.min_depth is not None and self.max_depth is not None
        return self.min_depth, self.max_depth

    def source_of(self, key: str) -> str:
        """Where a choice comes from, "" if it is not said; `sources` may name several keys, with commas."""
        return next((told for keys, told in self.sources.items() if key in keys.split(", ")), "")

    def fitted_in(self, quantity: str) -> str:
        """The space, disparity or depth, in which a prediction of this quantity is fitted."""
        return quantity if self.space == "own" or self.align == "none" else self.space

    def require_fits(self, quantity: str, who: str) -> None:
        """Refuse a relative prediction where nothing is aligned."""
        if self.task == "depth" and self.align == "none" and quantity != "depth":
            raise ValueError(
                f"{who} predicts disparity of unknown scale and shift, and align=none of protocol "
                f"{self.name} takes metres: use override.align=least_squares, or a metric model"
            )
