"""From draws to batches, and what happens to files that cannot be read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthany.data.batch import BadFile, Batch
from depthany.data.dataset import TrainingSet
from depthany.data.folder_depth import FolderDepth
from depthany.data.left_out import ImageIssue, ImageReport, summary
from depthany.data.loading.loader import read_batches
from depthany.data.perturb import Perturb
from depthany.data.sampler import Draw, MixedBatches
from depthany.data.unlabeled import FolderImages
from depthany.system.distributed import ALONE
from depthany.system.packages import optional
from depthany.training.parallel import shared_count

SIZE = 28


def training_set(world, crop_size: int | list[int] = SIZE, **options) -> TrainingSet:
    labeled = [
        FolderDepth(str(world.root / "labeled"), depth_scale=1000),
        FolderDepth(str(world.root / "val"), depth_scale=1000),
    ]
    return TrainingSet(labeled, [FolderImages(str(world.root / "unlabeled"))], crop_size, **options)


def read(dataset: TrainingSet, tmp_path: Path, workers: int = 0) -> list[Batch]:
    sampler = MixedBatches(dataset.labeled_count, dataset.unlabeled_count, 1, 2, total=12, seed=0)
    return list(
        read_batches(
            dataset, sampler, workers, False, shared_count(ALONE, sampler, tmp_path / "unreadable.txt", 1.0)
        )
    )


def equal(a: Batch, b: Batch) -> bool:
    names = ("labeled_image", "target", "mask", "unlabeled_image")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def photo(path: Path, height: int, width: int, **options) -> Path:
    """A JPEG of smooth colours, the same at any size."""
    rows, columns = np.mgrid[:height, :width]
    bands = [255 * rows / height, 255 * columns / width, 127 + 100 * np.sin(9 * columns / width)]
    Image.fromarray(np.stack(bands, axis=2).astype(np.uint8)).save(path, quality=95, **options)
    return path


@pytest.mark.parametrize("height, width", [(54, 90), (57, 90), (90, 57), (113, 240), (447, 500)])
def test_reduced_decoding_hardly_changes_a_smooth_image(tmp_path: Path, height: int, width: int) -> None:
    photo(tmp_path / "a.jpg", height, width)
    sets = [TrainingSet([], [FolderImages(str(tmp_path))], SIZE, decode=way) for way in ("exact", "reduced")]
    for seed in range(10):
        exact, reduced = (each[[Draw(False, 0, seed)]].unlabeled_image.float() for each in sets)
        assert not torch.equal(exact, reduced)
        assert (exact - reduced).abs().mean() < 2
        assert (exact - reduced).mean(dim=(0, 2, 3)).abs().max() < 1


def test_reduced_decoding_enlarges_by_at_most_5_percent(
    tmp_path: Path,
) -> None:
    photo(tmp_path / "a.jpg", 2 * 26, 90)  # 27 = 28 / 1.05
    sets = [TrainingSet([], [FolderImages(str(tmp_path))], SIZE, decode=way) for way in ("exact", "reduced")]
    assert equal(*(each[[Draw(False, 0, 7)]] for each in sets))


def test_reduced_decoding_compares_sizes_of_whole_images(tmp_path: Path) -> None:
    for folder in ("images", "depth"):
        (tmp_path / folder).mkdir()
    photo(tmp_path / "images/a.jpg", 60, 90)
    for shape, fits in (((60, 90), True), ((30, 45), False)):
        Image.fromarray(np.full(shape, 1000, np.uint16)).save(tmp_path / "depth/a.png")
        batch = TrainingSet([FolderDepth(str(tmp_path), depth_scale=1000)], [], SIZE, decode="reduced")[
            [Draw(True, 0, 0)]
        ]
        assert isinstance(batch, Batch) is fits
    assert isinstance(batch, BadFile)
    assert "depth is 45x30, its image" in batch.message
    assert "a.png" in batch.message and "a.jpg is 90x60" in batch.message


def test_labeled_sets_are_concatenated_in_order(tiny_world) -> None:
    dataset = training_set(tiny_world)
    assert (dataset.labeled_count, dataset.unlabeled_count) == (4 + 3, 6)
    joined = dataset[[Draw(True, i, seed=1) for i in (3, 4)]]
    apart = [part[[Draw(True, i, seed=1)]] for part, i in zip(_single_sets(tiny_world), (3, 0))]
    for k in (0, 1):
        assert torch.equal(joined.labeled_image[k], apart[k].labeled_image[0])
        assert torch.equal(joined.target[k], apart[k].target[0])


def _single_sets(world) -> list[TrainingSet]:
    return [
        TrainingSet([FolderDepth(str(world.root / name), depth_scale=1000)], [], SIZE)
        for name in ("labeled", "val")
    ]


def test_images_of_all_sizes_become_one_batch(tiny_world) -> None:
    draws = [Draw(True, i, seed=i) for i in range(7)] + [Draw(False, i, i, i, 6) for i in range(6)]
    batch = training_set(tiny_world)[draws]
    assert batch.labeled_image.shape == (7, 3, SIZE, SIZE)
    assert batch.unlabeled_image.shape == (6, 3, SIZE, SIZE)
    assert batch.target[~batch.mask].eq(0).all()
    assert 0 < batch.mask.float().mean() < 1


@pytest.mark.parametrize("decode", ["exact", "reduced"])
def test_batch_of_crops_that_are_not_square(tiny_world, decode: str) -> None:
    root = tiny_world.root
    labeled, unlabeled = (
        FolderDepth(str(root / "labeled"), depth_scale=1000),
        FolderImages(str(root / "unlabeled")),
    )
    batch = TrainingSet([labeled], [unlabeled], [14, 42], decode=decode)[
        [Draw(True, i, seed=i) for i in range(4)] + [Draw(False, i, i, i, 6) for i in range(6)]
    ]
    assert batch.labeled_image.shape == (4, 3, 14, 42)
    assert batch.unlabeled_image.shape == (6, 3, 14, 42)
    assert batch.target.shape == batch.mask.shape == (4, 14, 42)
    assert batch.target[batch.mask].max() <= 1


def test_crops_not_square_are_read_and_perturbed(tiny_world, tmp_path: Path) -> None:
    alone, together = (read(training_set(tiny_world, [14, 42]), tmp_path, workers) for workers in (0, 2))
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))
    batch, generator = alone[0], torch.Generator().manual_seed(0)
    image = Perturb().colour(batch.unlabeled_image, generator, batch.share)
    target = torch.rand(2, 14, 42)
    mixed = Perturb(cutmix_p=1.0).cutmix(image, target, target > 0, generator, batch.share)
    assert [tuple(part.shape) for part in mixed] == [(2, 3, 14, 42), *3 * [(2, 14, 42)]]
    box = mixed[3]
    assert box.any() and torch.equal(mixed[1], torch.where(box, target.flip(0), target))


def test_loader_processes_do_not_change_batches(tiny_world, tmp_path: Path) -> None:
    alone, together = (read(training_set(tiny_world), tmp_path, workers) for workers in (0, 2))
    assert len(alone) == len(together) == 6
    assert all(equal(a, b) for a, b in zip(alone, together))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_an_error_with_remedy(own_world, tmp_path: Path, workers: int) -> None:
    bad = own_world.root / "unlabeled/street_2.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(ValueError) as failure:
        read(training_set(own_world), tmp_path, workers)
    assert str(failure.value).startswith(f"{bad}: ")
    assert "data.unreadable=skip" in str(failure.value)
    assert "\n" not in str(failure.value)


HELD = """
import sys
from depthany.data.dataset import TrainingSet
from depthany.data.loading.loader import read_batches
from depthany.data.sampler import MixedBatches
from depthany.data.unlabeled import FolderImages
from depthany.system.distributed import ALONE
from depthany.training.parallel import shared_count

dataset = TrainingSet([], [FolderImages(sys.argv[1])], 28)
sampler = MixedBatches(0, dataset.unlabeled_count, 0, 2, total=12, seed=0)
held = read_batches(dataset, sampler, 2, False, lambda k, batch: None)
next(held)
sys.held = held  # outlives the module, as what a traceback holds does
sys.exit(5)
"""


def test_process_exits_while_it_holds_its_loaders(nursery, tiny_world) -> None:
    child = nursery.start("train", [str(tiny_world.root / "unlabeled")], HELD)
    assert child.result(60).code == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_listed_with_their_reason(own_world, tmp_path: Path, workers: int) -> None:
    whole = read(training_set(own_world), tmp_path)
    for name in ("street_1.jpg", "street_4.jpg"):
        (own_world.root / "unlabeled" / name).write_bytes(b"")
    batches = read(training_set(own_world, unreadable="skip"), tmp_path, workers)
    assert sum(len(batch.unlabeled_image) for batch in batches) == 12 - 4  # two passes
    lines = [line.split("\t") for line in (tmp_path / "unreadable.txt").read_text().splitlines()]
    assert len(lines) == 4
    assert {Path(image.split(": ")[0]).name for *_, image in lines} == {"street_1.jpg", "street_4.jpg"}
    assert all(line[1:4] == ["unlabeled", "left out", "empty"] for line in lines)
    assert all(line[4].endswith("the file is empty (0 bytes)") for line in lines)
    assert all(torch.equal(a.labeled_image, b.labeled_image) for a, b in zip(whole, batches))


def grow_labeled(folder: Path) -> None:
    """Six labeled images, room_0 to room_5, instead of four."""
    for name in ("room_4.png", "room_5.png"):
        for kind in ("images", "depth"):
            shutil.copy(folder / kind / "room_0.png", folder / kind / name)


def damage_labeled(folder: Path) -> dict[str, str]:
    """Makes most of the labeled images unusable in different ways; returns the reasons."""
    images, depth = folder / "images", folder / "depth"
    (images / "room_0.png").write_bytes(b"")
    (images / "room_1.png").unlink()
    (depth / "room_2.png").write_bytes((depth / "room_2.png").read_bytes()[:60])
    shutil.copy(depth / "room_0.png", depth / "room_3.png")  # of another size
    Image.new("I;16", Image.open(depth / "room_4.png").size).save(depth / "room_4.png")
    reasons = ("empty", "damaged or missing", "unreadable depth", "sizes differ", "no valid pixel")
    return {f"room_{i}.png": reason for i, reason in enumerate(reasons)}


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_labeled_images_are_skipped_with_their_reason(
    own_world, tmp_path: Path, workers: int
) -> None:
    grow_labeled(own_world.root / "labeled")
    dataset = training_set(own_world, unreadable="skip")
    wanted = damage_labeled(own_world.root / "labeled")
    count = dataset.labeled_count
    sampler = MixedBatches(count, 0, 2, 0, total=count, seed=0)
    report = tmp_path / "list.txt"
    batches = list(read_batches(dataset, sampler, workers, False, shared_count(ALONE, sampler, report, 1.0)))
    assert sum(len(batch.labeled_image) for batch in batches) == count - len(wanted)
    assert all(len(batch.labeled_image) == len(batch.target) == len(batch.mask) for batch in batches)
    lines = [line.split("\t") for line in report.read_text().splitlines()]
    assert {Path(line[4].split(": ")[0]).name: line[3] for line in lines} == wanted
    assert all(line[1:3] == ["labeled", "left out"] for line in lines)
    assert (summary(report) or "").startswith("5 labeled images were left out (1 unreadable depth, ")


def test_skipped_image_does_not_change_the_others(own_world) -> None:
    grow_labeled(own_world.root / "labeled")
    draws = [Draw(True, i, seed=i) for i in (4, 5, 0)]
    dataset = training_set(own_world, unreadable="skip")
    whole = dataset[draws]
    damage_labeled(own_world.root / "labeled")
    rest = dataset[draws]
    assert torch.equal(rest.labeled_image, whole.labeled_image[1:2])
    assert torch.equal(rest.target, whole.target[1:2])
    assert torch.equal(rest.mask, whole.mask[1:2])


@pytest.mark.parametrize("index", range(5))
def test_unusable_labeled_image_is_an_error_with_remedy(own_world, index) -> None:
    grow_labeled(own_world.root / "labeled")
    dataset = training_set(own_world)
    damage_labeled(own_world.root / "labeled")
    bad = dataset[[Draw(True, index, seed=0)]]
    assert f"room_{index}.png" in bad.message
    assert bad.message.endswith(" (data.unreadable=skip leaves such images out)")


@pytest.mark.parametrize("labeled", [True, False])
def test_image_like_a_line_is_left_out(own_world, labeled: bool) -> None:
    path = own_world.root / ("labeled/images/room_0.png" if labeled else "unlabeled/street_0.jpg")
    Image.new("RGB", (20000, 1)).save(path)
    ramp = np.arange(1, 20001, dtype=np.uint16).reshape(1, -1)
    Image.fromarray(ramp).save(own_world.root / "labeled/depth/room_0.png")
    bad = training_set(own_world)[[Draw(labeled, 0, seed=0)]]
    assert bad.message.startswith(
        f"{path}: the image is (1, 20000) and would be (28, 560000) to cover a crop"
    )
    (issue,) = training_set(own_world, unreadable="skip")[[Draw(labeled, 0, seed=0)]].issues
    assert (issue.action, issue.reason, issue.labeled) == ("left out", "too long", labeled)


def test_no_image_is_skipped_for_a_missing_package(own_world, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = training_set(own_world, unreadable="skip")
    monkeypatch.setattr(dataset.labeled[0], "decode", lambda _: optional("no_such_package", "reading X"))
    bad = dataset[[Draw(True, 0, seed=0)]]
    assert isinstance(bad, BadFile)
    assert bad.message == "reading X needs the package no_such_package: pip install no_such_package"


def test_batch_of_skipped_images_is_empty(own_world) -> None:
    (own_world.root / "unlabeled/street_0.jpg").write_bytes(b"")
    (own_world.root / "labeled/images/room_0.png").write_bytes(b"")
    batch = training_set(own_world, unreadable="skip")[[Draw(True, 0, seed=0), Draw(False, 0, seed=0)]]
    assert batch.labeled_image.shape == batch.unlabeled_image.shape == (0, 3, SIZE, SIZE)
    assert batch.target.shape == batch.mask.shape == (0, SIZE, SIZE)
    assert len(batch) == 0


def test_unknown_setting_of_unreadable_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="'ignore'; choose from error, skip"):
        TrainingSet([], [], SIZE, unreadable="ignore")


def test_unknown_setting_of_decode_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="'fast'; choose from exact, reduced"):
        TrainingSet([], [], SIZE, decode="fast")


def write_strange(folder: Path) -> dict[str, tuple[str, str]]:
    """Writes images as the web has them; returns action and reason by name."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    plain = Image.fromarray(pixels)
    frames = [Image.fromarray(np.roll(pixels, 9 * k, axis=1)) for k in range(3)]
    plain.convert("L").save(folder / "gray.jpg")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    plain.convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    frames[0].save(folder / "frames.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(folder / "camera.jpg", format="MPO", save_all=True, append_images=frames[1:])
    plain.crop((0, 0, 50, 20)).save(folder / "tiny.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>404</html>")
    plain.save(folder / "plain.jpg")
    (folder / "half.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:700])
    return {
        "gray.jpg": ("converted", "gray"),
        "cmyk.jpg": ("converted", "CMYK"),
        "rgba.png": ("converted", "RGBA"),
        "deep.png": ("converted", "16-bit gray"),
        "frames.webp": ("converted", "animated"),
        "tiny.png": ("left out", "below 21 pixels"),
        "empty.jpg": ("left out", "empty"),
        "page.jpg": ("left out", "damaged or missing"),
        "half.jpg": ("left out", "damaged or missing"),
    }


def of_folder(folder: Path, **options) -> TrainingSet:
    return TrainingSet([], [FolderImages(str(folder))], SIZE, unreadable="skip", **options)


def left_out(name: str, labeled: bool = False) -> ImageIssue:
    return ImageIssue("left out", "empty", name, labeled)


def one_pass(dataset: TrainingSet, report: Path, start: int = 0, share: float = 1.0) -> list[Batch]:
    sampler = MixedBatches(
        0, dataset.unlabeled_count, 0, 2, total=dataset.unlabeled_count, seed=0, start=start
    )
    return list(read_batches(dataset, sampler, 0, False, shared_count(ALONE, sampler, report, share)))


def test_strange_images_are_converted_or_skipped_and_listed(tmp_path: Path) -> None:
    wanted = write_strange(tmp_path / "images")
    dataset = of_folder(tmp_path / "images", convert_images=True, min_side=21)
    batches = one_pass(dataset, tmp_path / "list.txt")
    assert sum(len(batch) for batch in batches) == 11 - 4, "the camera's MPO and the plain one need nothing"
    lines = [line.split("\t") for line in (tmp_path / "list.txt").read_text().splitlines()]
    found = {Path(image.split(": ")[0]).name: (action, reason) for _, _, action, reason, image in lines}
    assert found == wanted
    assert summary(tmp_path / "list.txt") == (
        "4 unlabeled images were left out (2 damaged or missing, 1 empty, 1 below 21 pixels); "
        "5 unlabeled images were converted (1 gray, 1 animated, 1 RGBA, 1 CMYK, 1 16-bit gray): "
        f"{tmp_path / 'list.txt'}"
    )


def test_strange_colours_are_skipped_without_conversion(tmp_path: Path) -> None:
    write_strange(tmp_path / "images")
    one_pass(of_folder(tmp_path / "images", min_side=21), tmp_path / "list.txt")
    said = summary(tmp_path / "list.txt") or ""
    for reason in ("1 gray without data.convert_images", "1 CMYK without", "2 damaged or missing"):
        assert reason in said
    assert "1 unlabeled images were converted (1 animated)" in said


def test_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    frames = [Image.new("RGB", (30, 30), (200 - 90 * k, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / "images/a.webp", save_all=True, append_images=frames[1:], lossless=True)
    batch = of_folder(tmp_path / "images")[[Draw(False, 0, seed=0)]]
    assert batch.unlabeled_image[0, 0].unique().tolist() == [200]


def test_image_below_min_side_is_an_error(tmp_path: Path) -> None:
    write_strange(tmp_path / "images")
    dataset = TrainingSet([], [FolderImages(str(tmp_path / "images"))], SIZE, min_side=21)
    last = dataset.unlabeled_count - 1
    assert "its smaller side has 20 pixels, data.min_side is 21" in dataset[[Draw(False, last, 0)]].message


def test_resumed_run_counts_issues_once(tmp_path: Path) -> None:
    write_strange(tmp_path / "images")
    dataset, report = of_folder(tmp_path / "images", convert_images=True), tmp_path / "list.txt"
    one_pass(dataset, report)
    whole = report.read_text()
    for start in (0, 2, 4, 6):
        with open(report, "a") as file:
            file.write("5\tunlabeled\tleft o")  # killed within a line
        one_pass(dataset, report, start=start)
        assert report.read_text() == whole


def test_too_many_bad_images_end_a_run(tmp_path: Path) -> None:
    report, bad = ImageReport(tmp_path / "list.txt", 0, max_share=0.05), left_out("a.jpg")
    report.add(0, [bad] * 10, read=(0, 10))  # all of the first ten: 5 % of 200
    with pytest.raises(ValueError, match=r"11 of 11 .* data.max_unreadable_share=0.05 .*: 11 empty; they"):
        report.add(1, [bad], read=(0, 11))
    again = ImageReport(tmp_path / "list.txt", 2, max_share=0.05)
    again.add(2, [bad] * 39, read=(0, 1000))  # 50 of 1000
    again.add(3, [ImageIssue("converted", "gray", "b.jpg", labeled=False)] * 500, read=(0, 1500))
    with pytest.raises(ValueError, match="76 of 1500"):
        again.add(4, [bad] * 26, read=(0, 1500))


def test_full_disk_loses_lines_only_if_told(tmp_path: Path) -> None:
    told, bad = list[str](), left_out("a.jpg")
    stops = ImageReport(tmp_path / "list.txt", 0, max_share=0.05)
    goes_on = ImageReport(tmp_path / "list.txt", 0, max_share=0.05, goes_on=True, tell=told.append)
    stops.path = goes_on.path = Path("/dev/full")
    with pytest.raises(ValueError, match=r"/dev/full: No space left .*: make room, then the same command"):
        stops.add(0, [bad], read=(0, 10))
    goes_on.add(0, [bad] * 4, read=(0, 10))
    goes_on.add(1, [bad] * 4, read=(0, 20))
    assert goes_on.lost == 8
    assert len(told) == 1 and told[0].endswith("training goes on, and images are missing in it from here on")
    with pytest.raises(ValueError, match=r"11 of 30 .* were left out"):
        goes_on.add(2, [bad] * 3, read=(0, 30))


def test_labeled_and_unlabeled_shares_are_separate(
    tmp_path: Path,
) -> None:
    report = ImageReport(tmp_path / "list.txt", 0, max_share=0.05)
    report.add(0, [left_out("a.png", labeled=True)] * 50 + [left_out("b.jpg")] * 100, read=(1000, 2000))
    with pytest.raises(ValueError, match=r"51 of 1000 labeled images were left out"):
        report.add(1, [left_out("c.png", labeled=True)], read=(1000, 2000))


def test_file_that_is_no_report_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("0\tleft out\tempty\ta.jpg\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 1: not a line of this list"):
        ImageReport(path, 0, max_share=1.0)
    assert path.read_text() == "0\tleft out\tempty\ta.jpg\n"


def test_bad_image_ends_a_run_at_share_0(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 1 unlabeled images were left out"):
        one_pass(of_folder(tmp_path / "images"), tmp_path / "list.txt", share=0.0)


def test_names_with_line_ends_stay_one_line(tmp_path: Path) -> None:
    report = ImageReport(tmp_path / "list.txt", 0, max_share=1.0)
    report.add(0, [left_out("a\tb\nc\rd\u2028\udcff.jpg")], read=(0, 1))
    again = ImageReport(tmp_path / "list.txt", 1, max_share=1.0)
    assert again.counts == {(False, "left out", "empty"): 1}
