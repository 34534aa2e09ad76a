"""The predictor: its views, its checks, and the one forward pass."""

import numpy as np
import pytest
import torch
from media import pixels

from depthany.inference.averaging import average
from depthany.inference.model_input import ModelInput
from depthany.inference.predictor import Predictor, PreparedImage
from depthany.models.model import DenseModel


def prepared(predictor: Predictor, image: np.ndarray, name: str = "a.png") -> PreparedImage:
    return PreparedImage(name, predictor.prepare(image, name), (image.shape[0], image.shape[1]))


def predicted(predictor: Predictor, *images: np.ndarray) -> list[np.ndarray]:
    return list(predictor.predict_resized([prepared(predictor, image) for image in images]))


@pytest.mark.parametrize("size", [(40, 50), (1, 1), (28, 28), (61, 33)])
def test_one_view_is_what_infer_gives(model: DenseModel, size: tuple[int, int]) -> None:
    image = pixels(*size)
    assert np.array_equal(predicted(Predictor(model, 28), image)[0], model.infer(image, 28))


def test_margin_is_mirrored_and_cut_off(model: DenseModel) -> None:
    image = pixels(28, 42)  # the input's size, so that nothing is resized
    mirrored = np.pad(image, ((14, 14), (14, 14), (0, 0)), mode="reflect")
    expected = model.infer(mirrored, 56)[14:-14, 14:-14]
    for margin in (0, 1):
        (found,) = predicted(Predictor(model, 28, margin=margin), image)
        assert found.shape == (28, 42)
        assert np.allclose(found, expected, rtol=1e-5) == bool(margin)
    with pytest.raises(ValueError, match=r"margin=2: mirrors 28 pixels, but the shorter side .* has 28"):
        Predictor(model, 28, margin=2)


def test_a_batch_is_what_its_images_are_alone(model: DenseModel) -> None:
    predictor = Predictor(model, 42, scales=(1.0, 1.4), flip=True)
    images = [pixels(50, 60, seed) for seed in range(3)]
    for together, image in zip(predicted(predictor, *images), images):
        (alone,) = predicted(predictor, image)
        assert np.abs(together - alone).max() <= 1e-6 * alone.max()


def test_flip_makes_metric_depth_mirror_symmetric(metric_model: DenseModel) -> None:
    predictor = Predictor(metric_model, 28, flip=True)
    image = pixels(42, 56)
    (depth_m,) = predicted(predictor, image)
    (mirrored,) = predicted(predictor, np.ascontiguousarray(image[:, ::-1]))
    assert np.allclose(mirrored[:, ::-1], depth_m, rtol=1e-5)
    assert not np.allclose(depth_m, metric_model.infer(image, 28), rtol=1e-3)


def test_uint8_inputs_are_normalised_on_the_device(model: DenseModel) -> None:
    image = pixels(28, 42)
    predictor = Predictor(model, 28)
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy())  # [3 h w] uint8
    from_uint8 = predictor.predict([PreparedImage("a", (planes,), (28, 42))])
    assert torch.allclose(from_uint8, predictor.predict([prepared(predictor, image)]), rtol=1e-5)
    assert from_uint8.max() > 0


def test_a_protocol_may_set_the_input_size(model: DenseModel) -> None:
    predictor = Predictor(model, 28, label="a")
    assert predictor.for_protocol("p", ModelInput()) == predictor
    assert predictor.for_protocol("p", ModelInput(42)) == Predictor(model, 42, label="a")
    assert predictor.for_protocol("p", ModelInput(flip=True)).flip


def test_average_ignores_scale_and_shift_of_later_views() -> None:
    first, second = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    expected = average([first, second], align=True)
    assert torch.allclose(average([first, 5 * second - 2], align=True), expected, atol=1e-6)
    assert torch.allclose(average([first, 3 * first + 4], align=True), first, atol=1e-6)


def test_metric_views_are_averaged_as_they_are() -> None:
    views = [torch.full((1, 4, 4), 2.0), torch.full((1, 8, 8), 5.0)]
    assert torch.equal(average(views, align=False), torch.full((1, 8, 8), 3.5))


def test_views_are_averaged_at_the_largest_size() -> None:
    views = [torch.rand(2, 4, 6), torch.rand(2, 8, 12), torch.rand(2, 6, 9)]
    assert average(views, align=True).shape == (2, 8, 12)


def test_a_view_without_contrast_does_no_harm() -> None:
    first = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    mean = average([first, torch.zeros(1, 5, 5)], align=True)
    assert torch.allclose(mean, (first + first.mean()) / 2)


@pytest.mark.parametrize("size, scales", [(0, (1.0,)), (-5, (1.0,)), (28, (1.0, 0.2))])
def test_too_small_input_size_is_refused(model: DenseModel, size: int, scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="14 or more"):
        Predictor(model, size, scales)


def test_too_long_image_is_refused_by_name(model: DenseModel) -> None:
    with pytest.raises(ValueError, match=r"^strip\.png: image is \(1, 12000\)"):
        Predictor(model, 280).prepare(pixels(1, 12_000), "strip.png")


def test_non_finite_prediction_is_refused_by_name(model: DenseModel) -> None:
    predictor = Predictor(model, 28, label="the teacher")
    broken = PreparedImage("b.png", (torch.full((3, 28, 28), torch.nan),), (28, 28))
    with pytest.raises(
        ValueError, match=r"b\.png: the prediction of the teacher is not finite: try precision=fp32"
    ):
        predictor.predict([prepared(predictor, pixels(28, 28)), broken])
    whole, pending = predictor.launch_resized([prepared(predictor, pixels(28, 28)), broken])
    assert np.isfinite(whole.wait()).all()
    with pytest.raises(ValueError, match=r"b\.png: the prediction of the teacher is not finite"):
        pending.wait()  # another image of the batch, in another thread


def test_launched_maps_equal_predicted_ones(model: DenseModel) -> None:
    predictor, seconds = Predictor(model, 28), list[float]()
    images = [prepared(predictor, image) for image in (pixels(40, 30), pixels(80, 60))]
    expected = predictor.predict_resized(images)
    for pending, values in zip(predictor.launch_resized(images), expected, strict=True):
        np.testing.assert_array_equal(pending.wait(), values)
    for pending in predictor.launch(images, lambda values, image: values.mean(), seconds.append):
        assert pending.wait().shape == ()
    assert len(seconds) == 1 and seconds[0] > 0  # once for a batch


def test_out_of_memory_names_the_remedy(model: DenseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."

    def forward(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(DenseModel, "forward", forward)
    with pytest.raises(
        ValueError, match="2 images of 28 x 42 pixels at once: lower batch_size or input_size"
    ):
        predicted(Predictor(model, 28), pixels(28, 42), pixels(28, 42))


def test_rounded_input_sizes_are_said(model: DenseModel) -> None:
    assert Predictor(model, 28).describe_size() == "input_size=28"
    assert Predictor(model, 30).describe_size() == "input_size=30 (shorter side 42: multiples of 14)"
    both = Predictor(model, 28, scales=(1.0, 1.5)).describe_size()
    assert both == "input_size=28 (shorter side 28 and 42: multiples of 14)"
