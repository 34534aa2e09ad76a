"""From draws to batches, and what happens to files that cannot be read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.data.dataset import BadFile, Batch, TrainingSet, disparity_range, normalise_disparity
from depthany.data.labeled import FolderDepth
from depthany.data.loader import read_batches
from depthany.data.sampler import Draw, MixedBatches
from depthany.data.unlabeled import FolderImages

SIZE = 28


def training_set(world, **options) -> TrainingSet:
    labeled = [FolderDepth(str(world.root / "labeled")), FolderDepth(str(world.root / "val"))]
    return TrainingSet(labeled, [FolderImages(str(world.root / "unlabeled"))], SIZE, **options)


def read(dataset: TrainingSet, tmp_path: Path, workers: int = 0) -> list[Batch]:
    sampler = MixedBatches(dataset.labeled_count, dataset.unlabeled_count, 1, 2, total=12, seed=0)
    return list(read_batches(dataset, sampler, workers, tmp_path / "unreadable.txt", pin=False))


def equal(a: Batch, b: Batch) -> bool:
    names = ("labeled_image", "disparity", "mask", "unlabeled_image")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def normalised(disparity: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return normalise_disparity(disparity, mask, disparity_range(disparity, mask))


def test_disparity_is_brought_to_0_to_1_over_its_valid_pixels() -> None:
    disparity = np.array([[0.2, 0.4, 0.7, 99.0]], np.float32)
    mask = np.array([[True, True, True, False]])
    np.testing.assert_allclose(normalised(disparity, mask), [[0, 0.4, 1, 0]], atol=1e-6)


def test_constant_disparity_gives_zeros_and_no_nan() -> None:
    assert normalised(np.full((2, 2), 0.3, np.float32), np.ones((2, 2), bool)).tolist() == [[0, 0], [0, 0]]


def test_disparity_is_normalised_over_the_map_and_not_over_its_crop(tmp_path: Path) -> None:
    depth_mm = np.repeat(np.linspace(1000, 9000, 200).astype(np.uint16)[None], 30, axis=0)
    (tmp_path / "images").mkdir()
    (tmp_path / "depth").mkdir()
    Image.new("RGB", (200, 30)).save(tmp_path / "images/a.png")
    Image.fromarray(depth_mm).save(tmp_path / "depth/a.png")
    dataset = TrainingSet([FolderDepth(str(tmp_path))], [], SIZE)
    views = [dataset[[Draw(True, 0, seed)]].disparity for seed in range(40)]
    assert min(view.min() for view in views) < 0.01
    assert max(view.max() for view in views) > 0.8
    assert sum(view.max() - view.min() > 0.99 for view in views) == 0  # no crop spans the map


def photo(path: Path, height: int, width: int, **options) -> Path:
    """A JPEG of smooth colours, the same at any size."""
    rows, columns = np.mgrid[:height, :width]
    bands = [255 * rows / height, 255 * columns / width, 127 + 100 * np.sin(9 * columns / width)]
    Image.fromarray(np.stack(bands, axis=2).astype(np.uint8)).save(path, quality=95, **options)
    return path


@pytest.mark.parametrize("height, width", [(54, 90), (57, 90), (90, 57), (113, 240), (447, 500)])
def test_reduced_decoding_shifts_nothing_and_hardly_changes_a_smooth_image(
    tmp_path: Path, height: int, width: int
) -> None:
    photo(tmp_path / "a.jpg", height, width)
    sets = [TrainingSet([], [FolderImages(str(tmp_path))], SIZE, decode=way) for way in ("exact", "reduced")]
    for seed in range(10):
        exact, reduced = (each[[Draw(False, 0, seed)]].unlabeled_image.float() for each in sets)
        assert not torch.equal(exact, reduced)
        assert (exact - reduced).abs().mean() < 2
        assert (exact - reduced).mean(dim=(0, 2, 3)).abs().max() < 1


def test_reduced_decoding_leaves_alone_what_the_crop_would_enlarge_by_more_than_a_twentieth(
    tmp_path: Path,
) -> None:
    photo(tmp_path / "a.jpg", 2 * 26, 90)  # 27 = 28 / 1.05
    sets = [TrainingSet([], [FolderImages(str(tmp_path))], SIZE, decode=way) for way in ("exact", "reduced")]
    assert equal(*(each[[Draw(False, 0, 7)]] for each in sets))


def test_reduced_decoding_checks_the_size_of_the_depth_against_the_whole_image(tmp_path: Path) -> None:
    for folder in ("images", "depth"):
        (tmp_path / folder).mkdir()
    photo(tmp_path / "images/a.jpg", 60, 90)
    for shape, fits in (((60, 90), True), ((30, 45), False)):
        Image.fromarray(np.full(shape, 1000, np.uint16)).save(tmp_path / "depth/a.png")
        batch = TrainingSet([FolderDepth(str(tmp_path))], [], SIZE, decode="reduced")[[Draw(True, 0, 0)]]
        assert isinstance(batch, Batch) is fits
    assert isinstance(batch, BadFile)
    assert "depth is 45x30, its image" in batch.message
    assert "a.png" in batch.message and "a.jpg is 90x60" in batch.message


def test_labeled_sets_are_concatenated_in_their_order(tiny_world) -> None:
    dataset = training_set(tiny_world)
    assert (dataset.labeled_count, dataset.unlabeled_count) == (4 + 3, 6)
    joined = dataset[[Draw(True, i, seed=1) for i in (3, 4)]]
    apart = [part[[Draw(True, i, seed=1)]] for part, i in zip(_single_sets(tiny_world), (3, 0))]
    for k in (0, 1):
        assert torch.equal(joined.labeled_image[k], apart[k].labeled_image[0])
        assert torch.equal(joined.disparity[k], apart[k].disparity[0])


def _single_sets(world) -> list[TrainingSet]:
    return [TrainingSet([FolderDepth(str(world.root / name))], [], SIZE) for name in ("labeled", "val")]


def test_images_of_all_sizes_and_orientations_become_one_batch(tiny_world) -> None:
    draws = [Draw(True, i, seed=i) for i in range(7)] + [Draw(False, i, seed=i) for i in range(6)]
    batch = training_set(tiny_world)[draws]
    assert batch.labeled_image.shape == (7, 3, SIZE, SIZE)
    assert batch.unlabeled_image.shape == (6, 3, SIZE, SIZE)
    assert batch.disparity[~batch.mask].eq(0).all()
    assert 0 < batch.mask.float().mean() < 1


def test_batches_are_the_same_with_and_without_loader_processes(tiny_world, tmp_path: Path) -> None:
    alone, together = (read(training_set(tiny_world), tmp_path, workers) for workers in (0, 2))
    assert len(alone) == len(together) == 6
    assert all(equal(a, b) for a, b in zip(alone, together))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_an_error_of_one_line_that_names_it_and_the_way_out(
    own_world, tmp_path: Path, workers: int
) -> None:
    bad = own_world.root / "unlabeled/street_2.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(ValueError) as failure:
        read(training_set(own_world), tmp_path, workers)
    assert str(failure.value).startswith(f"{bad}: ")
    assert "data.unreadable=skip" in str(failure.value)
    assert "\n" not in str(failure.value)


HELD = """
import sys
from pathlib import Path
from depthany.data.dataset import TrainingSet
from depthany.data.loader import read_batches
from depthany.data.sampler import MixedBatches
from depthany.data.unlabeled import FolderImages

dataset = TrainingSet([], [FolderImages(sys.argv[1])], 28)
sampler = MixedBatches(0, dataset.unlabeled_count, 0, 2, total=12, seed=0)
held = read_batches(dataset, sampler, 2, Path(sys.argv[2]), pin=False)
next(held)
sys.held = held  # outlives the module, as what a traceback holds does
"""


def test_a_process_that_holds_on_to_its_loaders_ends_all_the_same(tiny_world, tmp_path: Path) -> None:
    images, unreadable = str(tiny_world.root / "unlabeled"), str(tmp_path / "unreadable.txt")
    subprocess.run([sys.executable, "-c", HELD, images, unreadable], timeout=60, check=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_listed_with_their_reason_and_the_others_stay(
    own_world, tmp_path: Path, workers: int
) -> None:
    whole = read(training_set(own_world), tmp_path)
    for name in ("street_1.jpg", "street_4.jpg"):
        (own_world.root / "unlabeled" / name).write_bytes(b"")
    batches = read(training_set(own_world, unreadable="skip"), tmp_path, workers)
    assert sum(len(batch.unlabeled_image) for batch in batches) == 12 - 4  # two passes
    lines = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 4
    assert {Path(line.split(": ")[0]).name for line in lines} == {"street_1.jpg", "street_4.jpg"}
    assert all(line.endswith("the file is empty (0 bytes)") for line in lines)
    assert all(torch.equal(a.labeled_image, b.labeled_image) for a, b in zip(whole, batches))


def test_unreadable_labeled_image_is_an_error_even_where_unlabeled_ones_are_skipped(own_world) -> None:
    (own_world.root / "labeled/images/room_0.png").write_bytes(b"")
    bad = training_set(own_world, unreadable="skip")[[Draw(True, 0, seed=0)]]
    assert isinstance(bad, BadFile)
    assert "room_0.png" in bad.message


def test_a_batch_all_of_whose_images_were_skipped_has_none(own_world) -> None:
    (own_world.root / "unlabeled/street_0.jpg").write_bytes(b"")
    batch = training_set(own_world, unreadable="skip")[[Draw(True, 0, seed=0), Draw(False, 0, seed=0)]]
    assert batch.unlabeled_image.shape == (0, 3, SIZE, SIZE)
    assert len(batch) == 1


def test_unknown_way_with_unreadable_files_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'ignore'; choose from error, skip"):
        TrainingSet([], [], SIZE, unreadable="ignore")


def test_unknown_way_to_decode_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'fast'; choose from exact, reduced"):
        TrainingSet([], [], SIZE, decode="fast")
