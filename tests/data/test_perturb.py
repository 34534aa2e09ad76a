"""The student's perturbations: each operation against torchvision's, and the laws of the draw."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as tv

from depthany.data import perturb, perturb_whole
from depthany.data.perturb import Perturb, Share
from depthany.data.perturb_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    box_sides,
    cutmix,
    gaussian_blur,
    inside,
)

NOTHING = Perturb(jitter_p=0, grayscale_p=0, blur_p=0, cutmix_p=0)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def boxes(*sizes_and_generator: Any, **strengths: Any) -> Tensor:
    """[b h w] bool, True inside the boxes of `box_sides`."""
    return inside(*box_sides(*sizes_and_generator, **strengths))


def photos(b: int = 8, h: int = 24, w: int = 31, seed: int = 0) -> Tensor:
    """[b 3 h w] uint8 noise of every colour, with grey, black, white and pure colours in the first rows."""
    image = torch.randint(0, 256, (b, 3, h, w), generator=seeded(seed), dtype=torch.uint8)
    image[:, :, 0] = image[:, :1, 0]
    image[:, :, 1, :8] = torch.tensor([[255 * (i >> c & 1) for i in range(8)] for c in range(3)])
    return image


@pytest.mark.parametrize(
    "ours, theirs, factors",
    [
        (adjust_brightness, tv.adjust_brightness, (0.5, 0.8, 1.0, 1.5)),
        (adjust_contrast, tv.adjust_contrast, (0.5, 0.8, 1.0, 1.5)),
        (adjust_saturation, tv.adjust_saturation, (0.5, 0.8, 1.0, 1.5)),
        (adjust_hue, tv.adjust_hue, (-0.25, -0.01, 0.0, 0.25)),
    ],
)
def test_factors_differ_by_image_as_in_torchvision(ours, theirs, factors):
    image = photos(b=len(factors))
    adjusted = ours(image / 255, torch.tensor(factors))
    in_bytes = ours(image.float(), torch.tensor(factors), white=255.0)
    for i, factor in enumerate(factors):
        expected = theirs(image[i] / 255, factor)
        torch.testing.assert_close(adjusted[i], expected, atol=2e-5, rtol=0)
        # torchvision cuts uint8 down to whole numbers; a float may stand on the other side of one.
        assert (in_bytes[i] - theirs(image[i], factor)).abs().max() <= 1.01


@pytest.mark.parametrize("radius", [0.1, 0.7, 2.0])
def test_blur_equals_torchvision_for_each_radius(radius):
    image = photos(b=2) / 255
    blurred = gaussian_blur(image, torch.tensor([radius, 1.3]), half_width=6)
    torch.testing.assert_close(blurred[0], tv.gaussian_blur(image[0], [13, 13], [radius, radius]))
    torch.testing.assert_close(blurred[1], tv.gaussian_blur(image[1], [13, 13], [1.3, 1.3]))


def test_image_smaller_than_the_blur_is_refused():
    with pytest.raises(ValueError, match=r"image is \(1, 3, 6, 40\); a blur of ± 6 pixels"):
        gaussian_blur(torch.zeros(1, 3, 6, 40), torch.ones(1), half_width=6)


def test_colour_keeps_bytes_bytes_and_floats_in_range():
    image = photos(b=32)
    coloured = Perturb().colour(image, seeded())
    assert coloured.dtype == torch.uint8
    assert coloured.shape == image.shape
    as_float = Perturb().colour(image / 255, seeded())
    assert as_float.dtype == torch.float32
    assert as_float.min() >= 0
    assert as_float.max() <= 1 + 1e-6
    assert (as_float * 255 - coloured).abs().max() < 0.51


def test_input_batch_is_not_changed():
    image = photos()
    before, before_float = image.clone(), image / 255
    as_float = before_float.clone()
    Perturb().colour(image, seeded())
    Perturb().colour(as_float, seeded())
    assert torch.equal(image, before)
    assert torch.equal(as_float, before_float)


def test_with_every_probability_zero_nothing_changes():
    image, target = photos(), torch.rand(8, 24, 31, generator=seeded())
    mask = target > 0.3
    assert torch.equal(NOTHING.colour(image, seeded()), image)
    mixed_image, mixed_target, mixed_mask, box_mask = NOTHING.cutmix(image, target, mask, seeded())
    assert torch.equal(mixed_image, image)
    assert torch.equal(mixed_target, target)
    assert torch.equal(mixed_mask, mask)
    assert not box_mask.any()


@pytest.mark.parametrize(
    "part, share", [("jitter_p", 0.8), ("grayscale_p", 0.2), ("blur_p", 0.5)], ids=lambda value: str(value)
)
def test_perturbation_changes_its_share_of_images(part, share):
    image = photos(b=1000, h=14, w=14)
    coloured = dataclasses.replace(NOTHING, **{part: share}).colour(image, seeded())
    changed = (coloured != image).flatten(1).any(1).float().mean()
    assert changed.item() == pytest.approx(share, abs=0.05)


def test_gray_image_has_three_equal_channels():
    image = photos()
    grey = dataclasses.replace(NOTHING, grayscale_p=1).colour(image, seeded())
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    expected = tv.rgb_to_grayscale(image.float(), num_output_channels=3)
    assert (grey - expected).abs().max() < 0.51


def test_seed_decides_the_perturbation():
    image, target = photos(), torch.rand(8, 24, 31, generator=seeded())
    for run in (
        lambda seed: Perturb().colour(image, seeded(seed)),
        lambda seed: Perturb().cutmix(image, target, target > 0.3, seeded(seed))[1],
    ):
        assert torch.equal(run(1), run(1))
        assert not torch.equal(run(1), run(2))


def test_images_are_jittered_differently():
    # 64 copies of one image under full-strength jitter: no two results alike.
    copies = photos(b=1).expand(64, -1, -1, -1)
    jitter = dataclasses.replace(NOTHING, jitter_p=1)
    assert len(torch.unique(jitter.colour(copies, seeded()).flatten(1), dim=0)) == 64


def test_jitter_is_four_parts_in_some_order():
    # Brightness and contrast do not commute where something is clamped; both orders must appear.
    copies = photos(b=1).expand(64, -1, -1, -1) / 255
    fixed = Perturb(brightness=0.5, contrast=0.5, saturation=0, hue=0, jitter_p=1, grayscale_p=0, blur_p=0)
    both = fixed.colour(copies, seeded())
    generator = seeded()
    torch.rand(3, 64, generator=generator)
    amount = torch.empty(4, 64).uniform_(-1, 1, generator=generator)
    factor = 1 + 0.5 * amount
    brightness_first = adjust_contrast(adjust_brightness(copies, factor[0]), factor[1])
    contrast_first = adjust_brightness(adjust_contrast(copies, factor[1]), factor[0])
    is_first = (both - brightness_first).abs().flatten(1).amax(1) < 1e-5
    is_second = (both - contrast_first).abs().flatten(1).amax(1) < 1e-5
    assert (is_first | is_second).all()
    assert 16 < is_first.sum() < 48


def test_cache_size_does_not_change_the_result(monkeypatch):
    image = photos()
    whole = Perturb().colour(image, seeded())
    monkeypatch.setattr("depthany.data.perturb._CPU_PIXELS", 1)
    assert torch.equal(Perturb().colour(image, seeded()), whole)


@pytest.mark.parametrize("h, w", [(126, 126), (70, 126), (126, 42)])
def test_boxes_are_rectangles_with_area_in_range(h, w):
    box_mask = boxes(2000, h, w, seeded(), p=1.0)
    rows, columns = box_mask.any(2), box_mask.any(1)  # [b h], [b w]
    height, width = rows.sum(1), columns.sum(1)
    assert torch.equal(box_mask, rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):  # one run of ones: at most one rise and one fall
        padded = torch.nn.functional.pad(side.int(), (1, 1))
        assert (padded.diff(dim=1) == 1).sum(1).eq(1).all()
    # Height and width are rounded by half a pixel at most.
    share = height * width / (h * w)
    slack = (height + width + 1) / 2 / (h * w)
    assert (share + slack >= 0.02).all()
    assert (share - slack <= 0.4).all()
    if h == w:
        ratio = height / width
        assert (ratio > 0.25).all()
        assert (ratio < 4).all()


def test_areas_are_uniform_and_corners_reach_every_border():
    box_mask = boxes(4000, 60, 60, seeded(), p=1.0)
    share = box_mask.float().mean((1, 2))
    expected = torch.tensor([0.02 + 0.38 * q for q in (0.1, 0.5, 0.9)])
    torch.testing.assert_close(share.quantile(torch.tensor([0.1, 0.5, 0.9])), expected, atol=0.015, rtol=0)
    for border in (box_mask[:, 0], box_mask[:, -1], box_mask[:, :, 0], box_mask[:, :, -1]):
        assert border.any()


def test_no_box_is_cut_off_by_the_border():
    box_mask = boxes(2000, 60, 60, seeded(), p=1.0, area=(0.25, 0.25), aspect=(1, 1))
    assert (box_mask.any(2).sum(1) == 30).all()
    assert (box_mask.any(1).sum(1) == 30).all()


def test_box_without_fitting_candidate_has_image_shape():
    # Aspect 50 at 30 % of the area would be 3.9 images high: the fallback must step in and stay in range.
    box_mask = boxes(200, 100, 100, seeded(), p=1.0, area=(0.3, 0.3), aspect=(50, 50))
    height, width = box_mask.any(2).sum(1), box_mask.any(1).sum(1)
    assert (height == 55).all()
    assert (width == 55).all()


def test_about_half_the_images_get_a_box():
    box_mask = boxes(4000, 14, 14, seeded())
    assert box_mask.flatten(1).any(1).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_box_holds_the_partner():
    image, target = photos(b=6), torch.rand(6, 24, 31, generator=seeded())
    mask = target > 0.3
    always = dataclasses.replace(NOTHING, cutmix_p=1)
    mixed_image, mixed_target, mixed_mask, box_mask = always.cutmix(image, target, mask, seeded())
    assert box_mask.flatten(1).any(1).all()
    for i in range(6):
        box = box_mask[i]
        for mixed, own in ((mixed_image, image), (mixed_target, target), (mixed_mask, mask)):
            assert mixed.dtype == own.dtype
            assert torch.equal(mixed[i][..., box], own[5 - i][..., box])
            assert torch.equal(mixed[i][..., ~box], own[i][..., ~box])


def test_middle_image_of_odd_batch_has_no_box():
    target = torch.rand(5, 24, 31, generator=seeded())
    always = dataclasses.replace(NOTHING, cutmix_p=1)
    *_, box_mask = always.cutmix(photos(b=5), target, target > 0, seeded())
    assert box_mask.flatten(1).any(1).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("count", [6, 7])
def test_share_is_perturbed_as_in_the_whole(count):
    image, target = photos(b=count), torch.rand(count, 24, 31, generator=seeded())
    strong, place = Perturb(cutmix_p=1), torch.tensor([1, count - 2, 3])
    place = place[: 3 if count == 7 else 2]  # the middle one of seven is its own partner
    here, chance, chance_here = Share(place, count), seeded(), seeded()
    whole = strong.colour(image, chance)
    assert torch.equal(strong.colour(image[place], chance_here, here), whole[place])
    mixed = strong.cutmix(image, target, target > 0.3, chance)
    mixed_here = strong.cutmix(image[place], target[place], target[place] > 0.3, chance_here, here)
    assert all(torch.equal(part, every[place]) for part, every in zip(mixed_here, mixed, strict=True))


def test_image_without_partner_gets_no_box():
    image, target = photos(b=6), torch.rand(6, 24, 31, generator=seeded())
    always = dataclasses.replace(NOTHING, cutmix_p=1)
    *_, boxes = always.cutmix(image, target, target > 0, seeded())
    place = torch.tensor([0, 1, 2, 3, 5])  # 4 is 1's partner
    *_, found = always.cutmix(image[place], target[place], target[place] > 0, seeded(), Share(place, 6))
    assert not found[1].any()
    assert torch.equal(found[[0, 2, 3, 4]], boxes[[0, 2, 3, 5]])


@pytest.mark.parametrize("places", [[0, 0], [1, 3], [-1]])
def test_impossible_places_are_refused(places):
    with pytest.raises(ValueError, match="expected different numbers from 0 to 2"):
        Share(torch.tensor(places), 3)


def test_any_partner_can_be_pasted():
    values = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    box_mask = torch.tensor([[True, False], [False, False]]).expand(3, 2, 2)
    mixed = cutmix(values, box_mask, torch.tensor([1, 2, 0]))
    assert mixed[:, 0, 0].tolist() == [1, 2, 0]
    assert mixed[:, 1, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"jitter_p": 1.5},
        {"hue": 0.6},
        {"blur_radius": (2.0, 0.1)},
        {"cutmix_area": (0.0, 0.4)},
        {"cutmix_aspect": (0.0, 1.0)},
    ],
)
def test_strengths_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Perturb(**wrong)


def test_image_without_batch_axis_is_refused():
    with pytest.raises(ValueError, match=r"image is \(3, 24, 31\)"):
        Perturb().colour(photos()[0], seeded())


@pytest.mark.parametrize("h, w", [(24, 31), (16, 16)])
def test_whole_batch_is_changed_alike(h: int, w: int, monkeypatch: pytest.MonkeyPatch):
    drawn = Perturb(blur_radius=(0.1, 3.0))
    image = torch.cat([photos(16, h, w), photos(16, h, w)[:, :1].expand(-1, 3, -1, -1)])  # half of it grey
    expected = [drawn.colour(each, seeded(4)) for each in (image, image / 255)]
    monkeypatch.setattr(perturb, "changes_whole_batch", lambda device: True)
    found = [drawn.colour(each, seeded(4)) for each in (image, image / 255)]
    assert (found[0].int() - expected[0].int()).abs().max() <= 1
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    nothing = NOTHING.colour(image, seeded(4))
    assert torch.equal(nothing, image)


def test_whole_batch_compiles_to_one_graph():
    image, radius = photos(4, 16, 16), torch.tensor([0.5, 1.0, 2.0, 0.1])
    flags = torch.tensor([True, False, True, True])
    position = torch.rand(4, 4, generator=seeded()).argsort(0)
    packed = perturb_whole.pack(flags, torch.full((4, 4), 0.2), position, ~flags, flags, radius, 3)
    compiled = torch.compile(perturb_whole.change_colours, fullgraph=True, backend="eager")
    assert torch.equal(compiled(image, packed, 3), perturb_whole.change_colours(image, packed, 3))
