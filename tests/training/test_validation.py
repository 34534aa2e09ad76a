"""Validation: what the scores ignore, what they leave out, what they warn of, and numbers by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depthany.data.samples import LabeledSample
from depthany.data.targets import Labels
from depthany.metrics.table import DEFAULT_METRICS, METRICS, Metric
from depthany.models.model import depth_anything
from depthany.models.output import Prediction, Quantity
from depthany.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from depthany.training.validation import evaluate
from depthany.training.validation_check import check_sets

COUNTS = ("negative_scales", "constant_predictions", "degenerate_truths", "unreadable", "images")


def sample(name: str, image: np.ndarray, disparity: np.ndarray, mask: np.ndarray) -> LabeledSample:
    return LabeledSample(name, image, Labels(disparity, "disparity", mask))


class Samples:
    """A labeled set of samples in memory; an index in `damaged` cannot be read."""

    min_depth, max_depth = 0.5, 20.0

    def __init__(self, samples: list[LabeledSample], damaged: tuple[int, ...] = ()) -> None:
        self.samples, self.damaged = samples, damaged

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return self.samples[index].name

    def read(self, index: int, convert_images: bool = False) -> LabeledSample:
        if index in self.damaged:
            raise ValueError(f"{self.name(index)}.png: damaged")
        return self.samples[index]


class RedIsDisparity(nn.Module):
    """Reads the disparity off the image's red, with a scale and shift of its own."""

    preprocessing, quantity = Preprocessing(), Quantity("disparity")

    def __init__(self, scale: float = 3.0, shift: float = 7.0) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(float(scale))), shift

    def forward(self, image: Tensor) -> Prediction:
        red = image[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        return Prediction(self.scale * red + self.shift)


def smooth(height: int, width: int, seed: int = 0) -> LabeledSample:
    """Disparity 0.1 to 0.6 in the red of a slanted plane; its size is the model's own."""
    rows, columns = np.mgrid[:height, :width]
    red = (40 + 150 * (rows / height + (seed % 3 + 1) * columns / width) / (seed % 3 + 2)).astype(np.uint8)
    image = np.repeat(red[:, :, None], 3, axis=2)
    disparity = (0.05 + 0.5 * red / 255).astype(np.float32)
    return sample(f"{seed}", image, disparity, np.ones((height, width), bool))


def scores(model: nn.Module, samples: list[LabeledSample], **options) -> dict[str, float]:
    return evaluate(model, {"set": Samples(samples)}, 28, **options)["set"]


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (3.0, 7.0), (0.01, 5.0)])
def test_scaled_and_shifted_truth_is_perfect(scale: float, shift: float) -> None:
    found = scores(RedIsDisparity(scale, shift), [smooth(28, 42, seed) for seed in range(3)])
    assert found["abs_rel"] < 1e-3
    assert found["delta1"] == 1.0
    assert found["images"] == 3


def test_scores_do_not_depend_on_batch_size(micro: str) -> None:
    torch.manual_seed(0)
    model = depth_anything(micro)
    samples = [
        smooth(*size, seed) for seed, size in enumerate([(28, 42), (42, 28), (28, 42), (30, 44), (28, 42)])
    ]
    one, three, all_of_them = (scores(model, samples, batch_size=n) for n in (1, 3, 8))
    for other in (three, all_of_them):
        assert other == pytest.approx(one, rel=1e-5)
    assert one["images"] == 5


def test_image_size_does_not_weigh() -> None:
    poor = smooth(56, 84)
    poor = sample("poor", poor.image[:, ::-1].copy(), poor.labels.disparity, poor.labels.mask)
    alone = scores(RedIsDisparity(), [poor])["abs_rel"]
    both = scores(RedIsDisparity(), [poor, smooth(28, 42)])["abs_rel"]
    assert alone > 0.05
    assert both == pytest.approx(alone / 2, rel=0.05)


def test_sky_counts_in_neither_fit_nor_score() -> None:
    clear = smooth(28, 42)
    disparity = clear.labels.disparity.copy()
    disparity[:9] = 0  # sky: valid, infinitely far; nothing of the kind is in the image
    with_sky = sample("sky", clear.image, disparity, clear.labels.mask)
    without = sample("none", clear.image, clear.labels.disparity, disparity > 0)
    assert scores(RedIsDisparity(), [with_sky]) == scores(RedIsDisparity(), [without])


def test_images_of_sky_alone_are_left_out() -> None:
    clear = smooth(28, 42)
    sky = sample("sky", clear.image, np.zeros_like(clear.labels.disparity), clear.labels.mask)
    assert scores(RedIsDisparity(), [clear, sky])["images"] == 1
    with pytest.raises(ValueError, match="set: none of 2 images has a valid depth"):
        scores(RedIsDisparity(), [sky, sky])


def one_wall() -> LabeledSample:
    """An image whose truth is one distance."""
    clear = smooth(28, 42)
    return sample("wall", clear.image, np.full((28, 42), 0.3, np.float32), clear.labels.mask)


def one_pixel() -> LabeledSample:
    clear = smooth(28, 42)
    mask = np.zeros((28, 42), bool)
    mask[5, 5] = True
    return sample("pixel", clear.image, clear.labels.disparity, mask)


@pytest.mark.parametrize("scale", [3.0, 0.0])
def test_truth_that_says_nothing_is_not_perfect(scale: float) -> None:
    lines: list[str] = []
    clear, model = smooth(28, 42), RedIsDisparity(scale)
    found = scores(model, [clear, one_wall(), one_pixel()], say=lines.append)
    assert (found["images"], found["degenerate_truths"]) == (1, 2)
    assert found["abs_rel"] == scores(model, [clear])["abs_rel"]
    assert lines[0] == (
        "warning: set: 2 of 3 images left out, as their ground truth is constant or has too few pixels: "
        "wall, pixel"
    )
    with pytest.raises(ValueError, match="set: none of 2 images has a valid depth that varies"):
        scores(model, [one_wall(), one_pixel()])


def test_unreadable_images_are_refused_or_counted() -> None:
    dataset = Samples([smooth(28, 42, seed) for seed in range(3)], damaged=(1,))
    with pytest.raises(
        ValueError, match=r"set: 1\.png: damaged \(data.unreadable=skip leaves such images out\)"
    ):
        evaluate(RedIsDisparity(), {"set": dataset}, 28)
    lines: list[str] = []
    found = evaluate(RedIsDisparity(), {"set": dataset}, 28, max_unreadable_share=0.05, say=lines.append)
    assert (found["set"]["images"], found["set"]["unreadable"]) == (2, 1)
    assert lines == ["warning: set: 1 of 3 images left out: 1: 1.png: damaged"]
    many = Samples(dataset.samples * 20, damaged=tuple(range(11)))
    with pytest.raises(
        ValueError, match=r"11 of 60 set \(validation\) images were left out, more than data.max_"
    ):
        evaluate(RedIsDisparity(), {"set": many}, 28, max_unreadable_share=0.05)


def test_check_names_what_cannot_be_read() -> None:
    dataset = Samples([smooth(28, 42, seed) for seed in range(3)], damaged=(1,))
    with pytest.raises(
        ValueError, match=r"data.val.set: 1 of 3 .* cannot be used: 1\.png: damaged \(data.unr"
    ):
        check_sets({"set": dataset}, "least_squares")
    (line,) = check_sets({"set": dataset}, "least_squares", max_unreadable_share=0.05)
    assert line.startswith(
        "warning: data.val.set: 1 of 3 images that were read cannot be used and will be left"
    )
    assert check_sets({"set": Samples(dataset.samples)}, "least_squares") == []


def test_check_refuses_sets_without_a_score() -> None:
    with pytest.raises(ValueError, match=r"data\.val\.set: none of 2 images has a valid depth that varies"):
        check_sets({"set": Samples([one_wall(), one_pixel()])}, "least_squares")
    assert check_sets({"set": Samples([one_wall()])}, "none") == []


def test_check_of_a_large_set_is_limited() -> None:
    large = Samples([smooth(28, 42)] * 50)
    (line,) = check_sets({"set": large}, "least_squares", longest_s=0)
    assert line == (
        "data.val.set: 16 of 50 images were read before training, as many as 0 s allow; the first validation "
        "reads the others"
    )


class Fixed(nn.Module):
    """Predicts one map whatever it sees."""

    preprocessing, quantity = Preprocessing(), Quantity("disparity")

    def __init__(self, disparity: Tensor) -> None:
        super().__init__()
        self.disparity = nn.Parameter(disparity)

    def forward(self, image: Tensor) -> Prediction:
        return Prediction(self.disparity.expand(len(image), -1, -1))


def test_scores_by_hand_with_clipping() -> None:
    # The line nearest to (0.1, 0.5, 0.5, 1.3) at (0, 1, 2, 3) is 0.36 x + 0.06.
    truth = np.array([[0.1, 0.5, 0.5, 1.3]], np.float32)
    flat = sample("a", np.zeros((1, 4, 3), np.uint8), truth, np.ones((1, 4), bool))
    dataset = Samples([flat])
    dataset.min_depth, dataset.max_depth = (
        1.0,
        10.0,
    )  # what the set calls valid counts, though nearer than 1 m
    found = evaluate(Fixed(torch.tensor([[[0.0, 1.0, 2.0, 3.0]]])), {"set": dataset}, 14)["set"]
    expected_depth = np.array([10.0, 1 / 0.42, 1 / 0.78, 1.0])  # 0.06 -> 0.1, 1.14 -> 1 by the clamp
    true_depth = 1 / np.array([0.1, 0.5, 0.5, 1.3])
    assert found["abs_rel"] == pytest.approx(
        np.mean(np.abs(expected_depth - true_depth) / true_depth), rel=1e-5
    )
    assert found["delta1"] == 0.5  # ratios 1, 1.19, 1.56, 1.3


def test_training_mode_is_restored(micro: str) -> None:
    for training in (True, False):
        model = depth_anything(micro).train(training)
        scores(model, [smooth(28, 42)])
        assert model.training is training


def test_any_side_is_scored_at_truth_size(micro: str) -> None:
    found = scores(RedIsDisparity(), [smooth(43, 61), smooth(100, 31), smooth(9, 13)])
    assert found["images"] == 3
    assert found["abs_rel"] < 0.03


def test_listed_metrics_are_returned_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Metric("bias", "lower", lambda p, g: [len(g), (p - g).sum()])
    monkeypatch.setitem(METRICS, "bias", own)
    found = scores(RedIsDisparity(), [smooth(28, 42)], metrics=["bias", "rmse"])
    assert list(found) == ["bias", "rmse", *COUNTS]
    assert found["bias"] == pytest.approx(0, abs=1e-2)
    assert list(scores(RedIsDisparity(), [smooth(28, 42)]))[: -len(COUNTS)] == list(DEFAULT_METRICS["depth"])


def test_swapped_near_and_far_are_warned_of() -> None:
    lines: list[str] = []
    samples = [smooth(28, 42, seed) for seed in range(3)]
    found = scores(RedIsDisparity(scale=-1), samples, say=lines.append)
    assert found["negative_scales"] == 3
    assert found["abs_rel"] < 1e-3, "the score alone does not show it"
    assert len(lines) == 1
    assert lines[0].startswith("warning: set: 3 of 3 images fitted with a negative scale")


def test_dead_output_is_warned_of_and_not_perfect() -> None:
    lines: list[str] = []
    found = scores(RedIsDisparity(scale=0, shift=0), [smooth(28, 42)], say=lines.append)
    assert (found["constant_predictions"], found["negative_scales"]) == (1, 0)
    assert found["abs_rel"] > 0.1
    assert len(lines) == 1
    assert lines[0].startswith("warning: set: 1 of 1 image with a constant prediction")


def test_good_prediction_has_no_warning() -> None:
    lines: list[str] = []
    scores(RedIsDisparity(), [smooth(28, 42)], say=lines.append)
    assert lines == []


class RedIsDepth(RedIsDisparity):
    """A metric model: depth in metres as the red of the image says."""

    quantity = Quantity("depth_m", max_depth_m=20.0)

    def forward(self, image: Tensor) -> Prediction:
        disparity = super().forward(image).map
        return Prediction(1 / disparity)


def test_metres_are_scored_without_alignment() -> None:
    # disparity is 0.05 + 0.5 * red
    exact, double = (scores(RedIsDepth(k * 0.5, k * 0.05), [smooth(28, 42)]) for k in (1, 0.5))
    assert exact["abs_rel"] < 1e-3
    assert double["abs_rel"] == pytest.approx(1, abs=1e-3)


def test_classes_are_refused() -> None:
    model = RedIsDisparity()
    model.quantity = Quantity("classes", class_names=("sky", "road"))
    with pytest.raises(ValueError, match=r"the model predicts classes, but protocol \w+ scores depth"):
        scores(model, [smooth(28, 42)])
