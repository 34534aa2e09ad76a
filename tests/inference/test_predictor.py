"""Views of an image: what averaging over them must not change, and what it must."""

import numpy as np
import pytest
import torch
from media import pixels

from depthany.inference.predictor import Predictor, average
from depthany.models.model import DenseModel


def predicted(predictor: Predictor, *images: np.ndarray) -> list[np.ndarray]:
    values = predictor.predict([predictor.prepare(image) for image in images])
    return predictor.resize(values, [image.shape[:2] for image in images])


@pytest.mark.parametrize("size", [(40, 50), (1, 1), (28, 28), (61, 33)])
def test_one_view_is_what_infer_gives(model: DenseModel, size: tuple[int, int]) -> None:
    image = pixels(*size)
    assert np.array_equal(predicted(Predictor(model, 28), image)[0], model.infer(image, 28))


def test_a_batch_is_what_its_images_are_alone(model: DenseModel) -> None:
    predictor = Predictor(model, 42, scales=(1.0, 1.4), flip=True)
    images = [pixels(50, 60, seed) for seed in range(3)]
    for together, image in zip(predicted(predictor, *images), images):
        (alone,) = predicted(predictor, image)
        assert np.abs(together - alone).max() <= 1e-6 * alone.max()


def test_with_flip_the_mirrored_metric_image_has_the_mirrored_depth(metric_model: DenseModel) -> None:
    predictor = Predictor(metric_model, 28, flip=True)
    image = pixels(42, 56)
    (depth_m,) = predicted(predictor, image)
    (mirrored,) = predicted(predictor, np.ascontiguousarray(image[:, ::-1]))
    assert np.allclose(mirrored[:, ::-1], depth_m, rtol=1e-5)
    assert not np.allclose(depth_m, metric_model.infer(image, 28), rtol=1e-3)


def test_scale_and_shift_of_a_later_view_do_not_matter() -> None:
    first, second = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    expected = average([first, second], align=True)
    assert torch.allclose(average([first, 5 * second - 2], align=True), expected, atol=1e-6)
    assert torch.allclose(average([first, 3 * first + 4], align=True), first, atol=1e-6)


def test_metric_views_are_averaged_as_they_are() -> None:
    views = [torch.full((1, 4, 4), 2.0), torch.full((1, 8, 8), 5.0)]
    assert torch.equal(average(views, align=False), torch.full((1, 8, 8), 3.5))


def test_views_of_several_sizes_are_averaged_at_the_largest() -> None:
    assert average([torch.rand(2, 4, 6), torch.rand(2, 8, 12), torch.rand(2, 6, 9)], align=True).shape == (
        2,
        8,
        12,
    )


def test_a_view_without_contrast_does_no_harm() -> None:
    first = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    mean = average([first, torch.zeros(1, 5, 5)], align=True)
    assert torch.allclose(mean, (first + first.mean()) / 2)


@pytest.mark.parametrize("size, scales", [(0, (1.0,)), (-5, (1.0,)), (28, (1.0, 0.2))])
def test_an_input_size_that_cannot_be_is_refused_at_once(
    model: DenseModel, size: int, scales: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="14 or more"):
        Predictor(model, size, scales)


def test_a_prediction_that_is_not_finite_is_told(model: DenseModel) -> None:
    predictor = Predictor(model, 28)
    with pytest.raises(ValueError, match="not finite: try precision=fp32"):
        predictor.predict([[torch.full((3, 28, 28), torch.nan)]])


def test_memory_that_is_not_enough_is_told_with_the_way_out(
    model: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."

    def forward(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(DenseModel, "forward", forward)
    with pytest.raises(ValueError, match="batch_size=1 with input_size=28: lower one of them"):
        predicted(Predictor(model, 28), pixels(28, 28))
