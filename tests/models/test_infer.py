"""Images to maps: the official input, any size, batches that change nothing, and what is refused."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthany.models.infer import infer_batch, infer_prepared
from depthany.models.model import DenseModel, depth_anything
from depthany.models.output import Prediction
from depthany.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS, Preprocessing

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> DenseModel:
    torch.manual_seed(0)
    return depth_anything("vitt", input_size=126).eval()


def photo(height: int, width: int, seed: int = 0) -> Image:
    """Noise over a ramp."""
    draw = np.random.default_rng(seed)
    ramp = np.linspace(0, 180, width)[None, :, None]
    return (ramp + draw.integers(0, 70, (height, width, 3))).astype(np.uint8)


class CountsPasses(nn.Module):
    """Gives the red of its input back, and remembers the shapes that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Prediction:
        self.shapes.append(tuple(image.shape))
        return Prediction(image[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0])


@pytest.mark.parametrize(
    ("height", "width", "input_size", "expected"),
    [
        (518, 518, 518, (518, 518)),
        (480, 640, 518, (518, 686)),  # 690.67 / 14 = 49.3
        (1080, 1920, 518, (518, 924)),  # 920.9 / 14 = 65.8
        (1920, 1080, 518, (924, 518)),
        (1242, 375, 518, (1722, 518)),  # 1715.6 / 14 = 122.5
        (100, 100, 500, (504, 504)),  # 35.7 rounds up
        (100, 100, 510, (518, 518)),  # 36.4 would round to 504, below the bound
        (100, 140, 510, (518, 714)),  # the longer side rounds freely
        (1, 1, 518, (518, 518)),
        (300, 300, 14, (14, 14)),
    ],
)
def test_the_model_sees_the_official_size(
    height: int, width: int, input_size: int, expected: tuple[int, int]
) -> None:
    assert Preprocessing().input_shape(height, width, input_size) == expected


def test_input_equals_official_in_single_precision() -> None:
    image = photo(100, 160)
    exact = cv2.resize(image / 255.0, (202 // 14 * 14, 126), interpolation=cv2.INTER_CUBIC)
    exact = (exact - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    ours = Preprocessing().prepare(image, 126)
    assert ours.dtype == torch.float32
    assert ours.shape == (3, 126, 196)
    np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), exact, atol=5e-5)
    assert np.ptp(exact) > 4


def test_image_of_input_size_is_only_normalised() -> None:
    image = photo(126, 140)
    as_batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    torch.testing.assert_close(
        Preprocessing().prepare(image, 126), Preprocessing().normalise(as_batch)[0], atol=1e-6, rtol=0
    )


def test_cubic_overshoot_is_kept() -> None:
    step = np.zeros((30, 30, 3), np.uint8)
    step[:, 15:] = 255
    red = Preprocessing().prepare(step, 126)[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    assert red.min() < -0.01
    assert red.max() > 1.01


@pytest.mark.parametrize("size", [(100, 150), (333, 126), (126, 126), (1, 1), (3, 40)])
def test_a_map_has_the_size_of_its_image(model: DenseModel, size: tuple[int, int]) -> None:
    disparity = model.infer(photo(*size))
    assert disparity.shape == size
    assert disparity.dtype == np.float32
    assert np.isfinite(disparity).all()


def test_map_is_resized_with_aligned_corners(model: DenseModel) -> None:
    image = photo(200, 300)
    with torch.no_grad():
        inner = model(Preprocessing().prepare(image, 126)[None]).map[0].numpy()
    found = model.infer(image)
    assert inner.shape == (126, 196)  # 189 / 14 = 13.5 rounds to the even 14
    corners = np.ix_((0, -1), (0, -1))
    np.testing.assert_allclose(found[corners], inner[corners], rtol=1e-5)
    row, column = 77 * 125 / 199, 41 * 195 / 299
    r, c = int(row), int(column)
    a, b = row - r, column - c
    by_hand = (1 - a) * ((1 - b) * inner[r, c] + b * inner[r, c + 1])
    by_hand += a * ((1 - b) * inner[r + 1, c] + b * inner[r + 1, c + 1])
    assert found[77, 41] == pytest.approx(by_hand, rel=1e-4)


def test_a_batch_equals_one_by_one_within_rounding(model: DenseModel) -> None:
    sizes = [(100, 150), (150, 100), (200, 300), (126, 126), (50, 75), (90, 91), (100, 150)]
    images = [photo(*size, seed) for seed, size in enumerate(sizes)]
    together = model.infer_batch(images, batch_size=3)
    for image, found in zip(images, together, strict=True):
        alone = model.infer(image)
        assert found.shape == alone.shape == image.shape[:2]
        assert np.abs(found - alone).max() < 1e-5 * np.ptp(alone)
        assert np.ptp(alone) > 1e-3


def test_equal_inputs_share_passes() -> None:
    network = CountsPasses()
    sizes = [(100, 150), (150, 100), (200, 300), (300, 200), (10, 15), (20, 30)]
    images = [np.full((*size, 3), 10 * i, np.uint8) for i, size in enumerate(sizes)]
    found = infer_batch(network, Preprocessing(), images, 28, batch_size=3)
    assert network.shapes == [(3, 3, 28, 42), (1, 3, 28, 42), (2, 3, 42, 28)]
    for i, each in enumerate(found):
        np.testing.assert_allclose(each, np.full(sizes[i], 10 * i / 255, np.float32), atol=1e-6)


def test_no_image_gives_no_map(model: DenseModel) -> None:
    assert model.infer_batch([]) == []


def test_the_training_size_is_the_default_input_size(model: DenseModel) -> None:
    image = photo(100, 150)
    assert np.array_equal(model.infer(image), model.infer(image, 126))
    assert not np.array_equal(model.infer(image), model.infer(image, 252))


def test_float32_stays_exact_inside_a_callers_autocast(model: DenseModel) -> None:
    image = photo(100, 150)
    exact = model.infer(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(model.infer(image), exact)
    rough = model.infer(image, amp=torch.bfloat16)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.ptp(exact)


def test_weights_in_half_precision_take_a_float32_input() -> None:
    network = CountsPasses().bfloat16()
    (found,) = infer_prepared(network, torch.zeros(1, 3, 14, 14), [(5, 6)])
    assert found.dtype == np.float32
    assert found.shape == (5, 6)


def test_a_metric_model_gives_metres_within_its_range() -> None:
    torch.manual_seed(0)
    depth_m = depth_anything("vitt", max_depth_m=20.0).infer(photo(60, 80), 70)
    assert 0 < depth_m.min() < depth_m.max() < 20
    assert 5 < depth_m.mean() < 15  # a fresh head starts near the middle, not at an end


def test_a_panorama_of_12000_pixels_gives_a_map(model: DenseModel) -> None:
    assert model.infer(photo(600, 12_000)).shape == (600, 12_000)  # 126 x 2520 for the model


def test_too_long_image_is_refused_early(model: DenseModel) -> None:
    image = np.zeros((1, 12_000, 3), np.uint8)
    with pytest.raises(ValueError, match=r"image is \(1, 12000\) and would be \(126, 1512000\)"):
        model.infer(image)
    with pytest.raises(ValueError, match="million pixels"):
        model.infer_batch([photo(20, 20), image])
    side = int(MAX_PIXELS**0.5)
    assert Preprocessing().input_shape(10, 10, side) == (side, side)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 20), np.uint8), r"shape \(20, 20\); expected RGB \[h w 3\]"),
        (np.zeros((20, 20, 4), np.uint8), r"shape \(20, 20, 4\)"),
        (np.zeros((0, 20, 3), np.uint8), "at least one pixel"),
        (np.zeros((20, 20, 3), np.float32), "image is float32; expected uint8"),
        (torch.zeros(20, 20, 3, dtype=torch.uint8), "image is a Tensor; expected a NumPy array"),
    ],
)
def test_what_is_no_rgb_image_is_explained(model: DenseModel, image: Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.infer(image)
    with pytest.raises(ValueError, match=message):
        model.infer_batch([photo(20, 20), image])


@pytest.mark.parametrize("input_size", [0, 13, -518, 51.8, "518", True])
def test_an_impossible_input_size_is_explained(model: DenseModel, input_size: int) -> None:
    with pytest.raises(ValueError, match=r"input_size=.*expected a whole number of pixels, 14 or more"):
        model.infer(photo(20, 20), input_size)
    with pytest.raises(ValueError, match=r"input_size=.*expected a whole number of pixels, 14 or more"):
        depth_anything("vitt", input_size=input_size)


@pytest.mark.parametrize("max_depth", [0, -1.0, float("nan"), float("inf"), "20", True])
def test_an_impossible_max_depth_is_explained(max_depth: float) -> None:
    with pytest.raises(ValueError, match=r"max_depth_m=.*expected metres above 0"):
        depth_anything("vitt", max_depth_m=max_depth)


def test_an_impossible_batch_size_is_explained(model: DenseModel) -> None:
    with pytest.raises(ValueError, match="batch_size=0: expected 1 or more"):
        model.infer_batch([photo(20, 20)], batch_size=0)


@pytest.mark.parametrize("max_depth", [None, 20.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_infer_computes_in_the_type_of_weights(
    micro: str, dtype: torch.dtype, max_depth: float | None
) -> None:
    torch.manual_seed(0)
    model, image = depth_anything(micro, max_depth_m=max_depth, input_size=28).eval(), photo(40, 56)
    expected = model.infer(image)
    found = model.to(dtype).infer(image)
    assert (found.shape, found.dtype) == ((40, 56), np.float32)
    share = {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float64: 1e-4}[dtype]
    assert np.abs(found - expected).max() < share * np.ptp(expected)


def test_input_size_too_large_for_any_image_is_refused() -> None:
    for size in (2801, 100_000):
        with pytest.raises(ValueError, match=rf"^input_size={size}: expected 2800 or less, since"):
            Preprocessing().require_input_size(size)
    Preprocessing().require_input_size(2800)


def test_rounded_input_size_is_a_warning(model: DenseModel) -> None:
    assert [Preprocessing().shorter_side(size) for size in (500, 504, 14)] == [504, 504, 14]
    with pytest.warns(UserWarning, match="input_size=50 is rounded up to 56, a multiple of 14"):
        rounded = model.infer(photo(20, 20), 50)
    assert (rounded == model.infer(photo(20, 20), 56)).all()
