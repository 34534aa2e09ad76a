"""A named way to score depth maps: every choice that moves a number, and where it comes from."""

from dataclasses import dataclass, field

from depthany.inference.model_input import FixedSize, ModelInput
from depthany.metrics.align import METHODS, SPACES
from depthany.metrics.crops import CROPS, INPUT_CROPS
from depthany.metrics.table import DEFAULT_METRICS, METRICS, require_metrics
from depthany.system.rules import check_fields, setting

UPSAMPLES: dict[str, tuple[str, bool | None]] = {  # mode and align_corners of torch's interpolate
    "bilinear_corners": ("bilinear", True),
    "bilinear": ("bilinear", False),
    "nearest": ("nearest", None),
}


@dataclass(frozen=True)
class Protocol:
    """How a prediction is scored. The files of configs/protocol/ are checked against these types.

    Args:
        name: unique; results and folders of predictions are named after it.
        count: number of images that the set must have; None accepts any number.
        task: depth, ordinal (pairs of points), or classes (segmentation). Of the choices below, classes have
            input_size, eval_size, window, flip and metrics; they are scored by one confusion matrix of the
            whole set, at the size of the masks, to which logits are enlarged as the model's head does it.
        space: space of the fit to the ground truth: disparity, depth, or own (that of the prediction).
        align: how it is fitted; none takes metres as they are.
        align_per: one fit per image, or per sequence (images whose names share a folder).
        crop: which pixels count.
        input_crop: how the image is cropped before the model sees it.
        min_depth: m; nearer ground truth does not count. None does not cut the ground truth.
        max_depth: m; for farther ground truth see `truth_beyond`. None does not cut the ground truth.
        bounds: whether ground truth exactly at min_depth or max_depth counts (inclusive) or not (strict).
        truth_beyond: ground truth beyond max_depth, including sky, is invalid, or clipped to max_depth. In
            metrics over maps (boundary_f1, edge_recall_*) it always counts, clipped to max_depth.
        clip_prediction: nearest and farthest depth in m to which the aligned prediction is clipped. None
            takes min_depth and max_depth.
        not_finite: refuse stops at a prediction with NaN or infinity. clip replaces them in a prediction of
            metres, infinity by the farthest and NaN by the nearest depth of the range, and counts them.
        input_size: pixels of the shorter side at the model's input; None takes the model's own size.
        eval_size: height and width of the model's input, whatever the image; see `FixedSize`.
        keep_aspect: False stretches the image to eval_size; True keeps its aspect at about that size.
        resize_first: height and width to which the image is resized before eval_size.
        flip: the prediction is the mean with that of the mirrored image.
        window: classes: side in pixels of a window that slides over the model's input; None = as a whole.
        stride: pixels between windows; None = two thirds of a window.
        upsample: how the prediction is resized to the ground truth.
        averaging: image (mean over images of their scores) or pixel (one score of all pixels together).
        metrics: names in `metrics.table.METRICS`, in the order of tables; the first one decides which images
            are best and worst. Empty: the default ones of the task.
        sources: where a choice comes from; a key may name several choices, "space, align".
        published: figures of others, name -> metric -> figure.

    Raises:
        ValueError: a choice or a metric is unknown, or a range is empty.
    """

    name: str
    count: int | None = setting(None, least=1)
    task: str = setting("depth", choices=DEFAULT_METRICS)
    space: str = setting("disparity", choices=SPACES)
    align: str = setting("least_squares", choices=METHODS)
    align_per: str = setting("image", choices=("image", "sequence"))
    crop: str = setting("none", choices=CROPS)
    input_crop: str = setting("none", choices=INPUT_CROPS)
    min_depth: float | None = setting(1e-3, above=0)
    max_depth: float | None = setting(80.0, above=0)
    bounds: str = setting("inclusive", choices=("inclusive", "strict"))
    truth_beyond: str = setting("invalid", choices=("invalid", "clip"))
    clip_prediction: tuple[float, float] | None = setting(None, length=2, above=0)
    not_finite: str = setting("refuse", choices=("refuse", "clip"))
    input_size: int | None = setting(None, least=1)
    eval_size: tuple[int, int] | None = setting(None, length=2, least=1)
    keep_aspect: bool = True
    resize_first: tuple[int, int] | None = setting(None, length=2, least=1)
    flip: bool = False
    window: int | None = setting(None, least=1)
    stride: int | None = setting(None, least=1)
    upsample: str = setting("bilinear_corners", choices=UPSAMPLES)
    averaging: str = setting("image", choices=("image", "pixel"))
    metrics: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            check_fields(self)
            self._check_ranges()
            self._check_input()
        except ValueError as error:
            raise ValueError(f"protocol {self.name}: {error}") from None
        if not self.metrics:  # a frozen instance has no other way to set a default that depends on the task
            object.__setattr__(self, "metrics", DEFAULT_METRICS[self.task])
        self._check_metrics()

    def _check_ranges(self) -> None:
        low, high = self.min_depth, self.max_depth
        if low is not None and high is not None and low >= high:
            raise ValueError(f"min_depth={low} and max_depth={high}: expected min_depth < max_depth")
        if self.truth_beyond == "clip" and self.max_depth is None:
            raise ValueError("truth_beyond=clip needs max_depth")
        if self.clip_prediction is None and (low is None or high is None):
            raise ValueError(
                "clip_prediction=null: pass [nearest, farthest] in metres, or both min_depth and max_depth"
            )
        if self.clip_prediction is not None and self.clip_prediction[0] >= self.clip_prediction[1]:
            raise ValueError(
                f"clip_prediction={list(self.clip_prediction)}: expected [nearest, farthest] in metres, "
                "nearest < farthest, or null for [min_depth, max_depth]"
            )

    def _check_input(self) -> None:
        if self.eval_size is not None and self.input_size is not None:
            raise ValueError(
                f"input_size={self.input_size} and eval_size={list(self.eval_size)}: give only one of them; "
                "eval_size with keep_aspect=true keeps the aspect, too"
            )
        if self.eval_size is None and (self.resize_first is not None or not self.keep_aspect):
            given = "keep_aspect=false" if not self.keep_aspect else f"resize_first={self.resize_first}"
            raise ValueError(f"{given} needs eval_size=[height, width]")
        if self.window is not None and self.task != "classes":
            raise ValueError(f"window={self.window} is for task=classes: maps of depth have no common scale")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise ValueError(f"stride={self.stride} window={self.window}: expected stride <= window")

    def _check_metrics(self) -> None:
        require_metrics(self.metrics, self.task, f"protocol {self.name}")
        for who, figures in self.published.items():
            for metric in figures:
                if metric not in METRICS:
                    raise ValueError(
                        f"protocol {self.name}: unknown metric {metric!r} in the figures of {who!r}; choose "
                        f"from {', '.join(METRICS)}"
                    )

    @property
    def prediction_range_m(self) -> tuple[float, float]:
        """Nearest and farthest depth in m to which the aligned prediction is clipped."""
        if self.clip_prediction is not None:
            return self.clip_prediction
        assert self.min_depth is not None and self.max_depth is not None
        return self.min_depth, self.max_depth

    @property
    def model_input(self) -> ModelInput:
        """What a predictor needs to know of the protocol."""
        fixed = None
        if self.eval_size is not None:
            fixed = FixedSize(self.eval_size, self.keep_aspect, self.resize_first)
        clips = self.not_finite == "clip"
        return ModelInput(self.input_size, fixed, self.flip, clips, self.window, self.stride)

    def source_of(self, key: str) -> str:
        """Returns where a choice comes from, "" if the protocol does not say."""
        return next((source for keys, source in self.sources.items() if key in keys.split(", ")), "")

    def fitted_in(self, quantity: str) -> str:
        """Returns the space, disparity or depth, in which a prediction of this quantity is fitted."""
        return quantity if self.space == "own" or self.align == "none" else self.space

    def require_fits(self, quantity: str, who: str) -> None:
        """Raises a `ValueError` if a prediction without scale meets a protocol that does not align, or
        classes one of depth.
        """
        if (quantity == "classes") != (self.task == "classes"):
            what = "classes" if quantity == "classes" else "depth or disparity"
            scored = "classes" if self.task == "classes" else "depth"
            raise ValueError(
                f"{who} predicts {what}, but protocol {self.name} scores {scored}: choose another protocol"
            )
        if self.task == "depth" and self.align == "none" and quantity != "depth":
            raise ValueError(
                f"{who} predicts disparity of unknown scale and shift, but align=none of protocol "
                f"{self.name} takes metres: use override.align=least_squares, or a metric model"
            )
