"""Videos in and out: times, scale, order, memory and damage."""

import json
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import pixels, read_video, write_video
from PIL import Image

from depthany import load_model
from depthany.data.depth_files import read_depth
from depthany.display.captions import legend_steps
from depthany.display.pictures import COLOUR_MAPS
from depthany.display.progress import Bar
from depthany.inference.outputs import OutputSettings
from depthany.inference.prediction_counts import PredictionCounts
from depthany.inference.predictor import Predictor
from depthany.inference.video_in import probe_video
from depthany.inference.video_out import colour_range_m, predict_video, scale_of
from depthany.models.output import Prediction, Quantity
from depthany.models.preprocess import Preprocessing


class BrightnessIsDisparity(torch.nn.Module):
    """A network whose map is the mean of the colours."""

    preprocessing, quantity, input_size = Preprocessing(), Quantity("disparity"), 28

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> Prediction:
        return Prediction(image.mean(1))


def ramps(count: int, height: int = 28, width: int = 42) -> list[np.ndarray]:
    """Gray ramps, each brighter than the one before."""
    ramp = np.linspace(0, 100, width)
    return [
        np.repeat(np.tile(ramp + 150 * i / (count - 1), (height, 1))[:, :, None], 3, 2).astype(np.uint8)
        for i in range(count)
    ]


def depth_of(path: Path, out: Path, scale: str = "frame", batch_size: int = 4) -> list[np.ndarray]:
    clip = probe_video(path)
    settings = OutputSettings(Quantity("disparity"), colour_map="gray")
    with Bar("frames", clip.frames) as bar:
        predictor = Predictor(BrightnessIsDisparity(), 28)
        predict_video(clip, {"color": out}, predictor, settings, batch_size, scale, bar, PredictionCounts())
    return read_video(out)[0]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".avi"])
@pytest.mark.parametrize("rate", [Fraction(12), Fraction(30000, 1001)])
def test_frame_count_and_rate_are_kept(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    write_video(tmp_path / f"a{suffix}", ramps(10), rate)
    depth_of(tmp_path / f"a{suffix}", tmp_path / "b.mp4")
    frames, written_rate, _ = read_video(tmp_path / "b.mp4")
    assert len(frames) == 10
    assert float(written_rate) == pytest.approx(float(rate), rel=1e-4)


def test_frames_at_uneven_times_keep_them(tmp_path: Path) -> None:
    times = [Fraction(t, 100) for t in (0, 3, 20, 21, 50, 90)]
    write_video(tmp_path / "a.mp4", ramps(6), Fraction(10), times)
    depth_of(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert [float(t) for t in read_video(tmp_path / "b.mp4")[2]] == pytest.approx(
        [float(t) for t in times], abs=1e-3
    )


def test_video_scale_is_per_frame_or_per_clip(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramps(5), Fraction(5))
    own = depth_of(tmp_path / "a.mp4", tmp_path / "own.mp4", "frame")
    one = depth_of(tmp_path / "a.mp4", tmp_path / "one.mp4", "clip")
    for frame in own:
        assert frame.min() < 20 and frame.max() > 235
    assert one[0].min() < 20 and one[0].max() < 130  # the ramp 0..100 within 0..250
    assert one[-1].min() > 125 and one[-1].max() > 235
    assert all(earlier.mean() < later.mean() for earlier, later in pairwise(one))


@pytest.mark.parametrize(
    "quantity, range_m, scale, span",
    [
        (Quantity("disparity"), None, "frame", None),
        (Quantity("depth_m", 20.0), None, "metres", (0.0, 20.0)),
        (Quantity("depth_m"), (1.0, 8.0), "metres", (1.0, 8.0)),
        (
            Quantity("depth_m", trained_to_m=10.0),
            None,
            "metres",
            (0.0, 10.0),
        ),  # of bins
        (Quantity("depth_m"), None, "clip", None),
    ],
)
def test_metres_keep_one_scale_of_colours(quantity, range_m, scale, span) -> None:
    settings = OutputSettings(quantity, range_m=range_m)
    assert (scale_of("auto", settings), colour_range_m(settings)) == (scale, span)
    assert scale_of("frame", settings) == "frame"


def test_one_depth_has_one_colour_in_every_frame(tmp_path: Path) -> None:
    model = BrightnessIsDisparity()
    model.quantity = Quantity("depth_m", 3.0)
    write_video(tmp_path / "a.mp4", ramps(3), Fraction(5))
    settings = OutputSettings(model.quantity, colour_map="gray")
    clip = probe_video(tmp_path / "a.mp4")
    with Bar("frames", clip.frames) as bar:
        targets = {"color": tmp_path / "b.mp4"}
        predict_video(clip, targets, Predictor(model, 28), settings, 2, "metres", bar, PredictionCounts())
    mean, std = model.preprocessing.mean, model.preprocessing.std
    frames, shown = (read_video(tmp_path / name)[0] for name in ("a.mp4", "b.mp4"))
    for frame, picture in zip(frames, shown, strict=True):
        depth_m = ((frame / 255 - mean) / std).mean(2)
        expected = 255 * (1 - np.clip(depth_m, 0, 3) / 3)
        assert np.abs(picture[:, :, 0] - expected).mean() < 6  # of 255, after two encodings


@pytest.mark.parametrize("quantity", [Quantity("disparity"), Quantity("depth_m", 3.0)])
def test_frames_have_the_legend_of_photos(tmp_path: Path, quantity: Quantity) -> None:
    model = BrightnessIsDisparity()
    model.quantity = quantity
    write_video(tmp_path / "a.mp4", ramps(2, 100, 160), Fraction(5))
    settings = OutputSettings(quantity, colour_map="gray", legend=True)
    clip, predictor = probe_video(tmp_path / "a.mp4"), Predictor(model, 28)
    targets = {name: tmp_path / f"{name}.mp4" for name in ("color", "side")}
    scale = scale_of("auto", settings)
    with Bar("frames", clip.frames) as bar:
        predict_video(clip, targets, predictor, settings, 2, scale, bar, PredictionCounts())
    words = ("far 3.00 m", "near 0.00 m") if quantity.is_metric else ("far", "near (no unit)")
    legend = legend_steps((100, 160), *words, COLOUR_MAPS["gray"])
    assert legend is not None
    rows = len(legend)
    for name, path in targets.items():
        first, last = (frame[:, :, 0].astype(int) for frame in read_video(path)[0])
        assert first.shape == (100 + rows + rows % 2, 160 if name == "color" else 320)
        for frame in (first, last):
            assert np.abs(frame[100 : 100 + rows, -160:] - legend).mean() < 6  # of 255, after the encoding
            assert name == "color" or frame[100:, :160].min() > 240


def test_frames_stay_in_order_whatever_the_batch_size(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramps(7), Fraction(5))
    for batch_size in (1, 3, 8):
        frames = depth_of(tmp_path / "a.mp4", tmp_path / "b.mp4", "clip", batch_size)
        brightness = [frame.mean() for frame in frames]
        assert brightness == sorted(brightness)
        assert len(frames) == 7


def test_few_batches_of_frames_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", ramps(60), Fraction(5))
    prepared, predicted, ahead = [], [], []
    prepare, predict = Predictor.prepare, Predictor.maps_of

    def counting_prepare(self: Predictor, image: np.ndarray, name: str) -> tuple[torch.Tensor, ...]:
        prepared.append(1)
        return prepare(self, image, name)

    def counting_predict(self: Predictor, images: list) -> torch.Tensor:
        ahead.append(len(prepared) - len(predicted))
        predicted.extend(images)
        return predict(self, images)

    monkeypatch.setattr(Predictor, "prepare", counting_prepare)
    monkeypatch.setattr(Predictor, "maps_of", counting_predict)
    assert len(depth_of(tmp_path / "a.mp4", tmp_path / "b.mp4", batch_size=4)) == 60
    assert max(ahead) <= 4 + 2 * 4 + 1


def test_odd_sides_grow_by_one_pixel(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", [frame[:27, :41] for frame in ramps(4)], Fraction(5))
    assert depth_of(tmp_path / "a.avi", tmp_path / "b.mp4")[0].shape == (28, 42, 3)


def test_rotated_video_is_predicted_upright(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramps(4), Fraction(5))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # of the track header: turn right by 90 degrees
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    frame = depth_of(tmp_path / "a.mp4", tmp_path / "b.mp4")[0]
    assert frame.shape == (42, 28, 3)
    assert frame[0].mean() < 30 and frame[-1].mean() > 220, "dark was left and is now at the top"


def test_video_is_predicted_from_the_command_line(predict, tmp_path: Path) -> None:
    frames = [pixels(28, 42) // 4 + 96] * 5
    write_video(tmp_path / "clip ü.mp4", frames, Fraction(25))
    ended = predict(
        f"images={tmp_path / 'clip ü.mp4'}", "save=color,side", "video_scale=clip", "batch_size=2"
    )
    assert (ended.code, ended.err) == (0, "")
    side, rate, _ = read_video(tmp_path / "out" / "clip ü_side.mp4")
    assert (len(side), side[0].shape, rate) == (5, (28, 84, 3), 25)
    assert np.abs(side[0][:, :42].astype(int) - read_video(tmp_path / "clip ü.mp4")[0][0]).mean() < 12
    assert len(read_video(tmp_path / "out" / "clip ü_color.mp4")[0]) == 5
    again = predict(f"images={tmp_path / 'clip ü.mp4'}", "save=color,side")
    assert "0 predicted, 1 there already" in again.out


def damaged(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Returns videos that cannot be read to their end, with the message for each."""
    write_video(tmp_path / "whole.mp4", [pixels(56, 84, i) for i in range(30)], Fraction(10))
    data = (tmp_path / "whole.mp4").read_bytes()
    cases = {"zero": b"", "headless": data[: len(data) // 2], "text": b"no video at all\n" * 50}
    noise = bytearray(data)
    middle = data.index(b"mdat") + 2000
    noise[middle : middle + 20_000] = np.random.default_rng(0).bytes(20_000)
    cases["noise"] = bytes(noise)
    said = {"zero": "the file is empty (0 bytes)", "noise": "damaged after frame"}
    for name, content in cases.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    return {name: (tmp_path / f"{name}.mp4", said.get(name, "cannot read the video")) for name in cases}


def test_damaged_videos_are_named_and_leave_nothing(predict, tmp_path: Path) -> None:
    cases = damaged(tmp_path)
    (tmp_path / "list.txt").write_text(
        "\n".join(str(path) for path, _ in cases.values()) + f"\n{tmp_path}/whole.mp4"
    )
    ended = predict(f"images={tmp_path / 'list.txt'}")
    assert ended.code == 1
    assert "1 predicted, 4 unreadable" in ended.out
    lines = dict(zip(cases, ended.err.splitlines(), strict=True))
    for name, (path, said) in cases.items():
        assert f"error: {path}: {said}" in lines[name]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predict.json", "whole_color.mp4"]


def index_first(path: Path, out: Path) -> None:
    """Copies a video with its index at the front, so that it can be opened without its end."""
    whole, front = av.open(str(path)), av.open(str(out), "w", options={"movflags": "faststart"})
    with whole, front:
        stream = front.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                front.mux(packet)


def test_video_without_its_end_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", [pixels(56, 84, i) for i in range(30)], Fraction(10))
    index_first(tmp_path / "whole.mp4", tmp_path / "front.mp4")
    data = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(ValueError, match=r"cut\.mp4: (ends after frame \d+ of 30|damaged after)"):
        depth_of(tmp_path / "cut.mp4", tmp_path / "b.mp4")
    assert not list(tmp_path.glob("*b.mp4*"))


def test_interrupted_video_leaves_nothing(predict, ctrl_c_at_batch, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramps(40), Fraction(10))
    with ctrl_c_at_batch(3) as calls:
        ended = predict(f"images={tmp_path / 'a.mp4'}", "batch_size=2")
    assert ended.code == 130
    assert len(calls) == 3
    assert not list((tmp_path / "out").iterdir())


def test_point_clouds_are_refused_for_videos(predict, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramps(2), Fraction(10))
    ended = predict(f"images={tmp_path / 'a.mp4'}", "save=color,ply")
    assert ended.code == 2
    assert ended.err == (
        "error: save=ply: a video can be saved as color, side, png16, npy, exr, pfm only, but "
        f"{tmp_path / 'a.mp4'} is one\n"
    )
    assert not (tmp_path / "out").exists()


def test_raw_frames_are_the_values_as_predicted(predict, checkpoint: Path, tmp_path: Path) -> None:
    times = [Fraction(t, 100) for t in (0, 3, 20, 21, 50)]
    write_video(tmp_path / "a.mp4", ramps(5), Fraction(10), times)
    model = load_model(checkpoint)
    expected = [model.infer(frame) for frame in read_video(tmp_path / "a.mp4")[0]]
    ended = predict(f"images={tmp_path / 'a.mp4'}", "save=npy,exr,png16,pfm,color", "batch_size=2")
    assert (ended.code, ended.err) == (0, "")
    out = tmp_path / "out"
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    suffixes = {"16bit": "png", "exr": "exr", "npy": "npy", "pfm": "pfm"}
    wanted = [f"a_{name}/{i:06d}.{suffix}" for name, suffix in suffixes.items() for i in range(1, 6)]
    indices = (f"a_{name}/frames.json" for name in suffixes)
    assert names == sorted(["a_color.mp4", *wanted, *indices, "predict.json"])
    for i, values in enumerate(expected, start=1):
        found = np.load(out / f"a_npy/{i:06d}.npy")
        np.testing.assert_allclose(found, values, rtol=1e-5)
        np.testing.assert_array_equal(read_depth(out / f"a_pfm/{i:06d}.pfm"), found)
        np.testing.assert_array_equal(read_depth(out / f"a_exr/{i:06d}.exr"), found)
        png = Image.open(out / f"a_16bit/{i:06d}.png")
        restored = float(png.text["offset"]) + float(png.text["scale"]) * np.asarray(png, np.float64)
        np.testing.assert_allclose(restored, found, atol=np.ptp(found) / 65535)
    told = json.loads((out / "a_npy/frames.json").read_text())
    assert told["times_s"] == pytest.approx([float(t) for t in times], abs=1e-3)
    assert (told["frames"], told["size"], told["files"]) == (5, [28, 42], "%06d.npy, from 1")
    assert (told["quantity"], told["unit"], told["larger_is_nearer"]) == ("disparity", None, True)
    assert told["made_with"]["checkpoint"] == str(checkpoint)


@pytest.mark.parametrize("scale, is_one", [("clip", True), ("frame", False)])
def test_16bit_frames_of_clip_share_one_scale(tmp_path: Path, scale: str, is_one: bool) -> None:
    write_video(tmp_path / "a.mp4", ramps(4), Fraction(5))
    raw_frames(tmp_path, "png16", "_16bit", scale)
    texts = [Image.open(path).text["scale"] for path in sorted((tmp_path / "a_16bit").glob("*.png"))]
    assert (len(set(texts)) == 1) == is_one and len(texts) == 4
    stored = json.loads((tmp_path / "a_16bit/frames.json").read_text())["stored"]
    assert (
        (float(texts[0]) == stored["scale"])
        if is_one
        else (stored == "scale and offset are texts of each file")
    )


def raw_frames(
    folder: Path,
    name: str = "npy",
    ending: str = "_npy",
    scale: str = "frame",
    about: dict | None = None,
    overwrite: bool = False,
) -> None:
    """The frames of folder/a.mp4 in a folder beside it."""
    clip, settings = probe_video(folder / "a.mp4"), OutputSettings(Quantity("disparity"))
    targets, predictor = {name: folder / f"a{ending}" / "frames.json"}, Predictor(BrightnessIsDisparity(), 28)
    with Bar("frames", clip.frames) as bar:
        predict_video(clip, targets, predictor, settings, 2, scale, bar, PredictionCounts(), about, overwrite)


def test_raw_frames_continue_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", ramps(9), Fraction(5))
    predict, calls = Predictor.maps_of, list[int]()

    def counted(self: Predictor, images: list) -> torch.Tensor:
        calls.append(len(images))
        if sum(calls) > 5:
            raise KeyboardInterrupt
        return predict(self, images)

    monkeypatch.setattr(Predictor, "maps_of", counted)
    with pytest.raises(KeyboardInterrupt):
        raw_frames(tmp_path)
    done = sorted(path.name for path in (tmp_path / "a_npy").glob("*.npy"))
    assert 0 < len(done) < 9 and not (tmp_path / "a_npy/frames.json").exists()
    np.save(tmp_path / "a_npy" / done[0], np.zeros((1, 1), np.float32))  # to see that it is left alone
    (tmp_path / "a_npy/notes.txt").write_text("mine")
    calls[:] = [-100]
    raw_frames(tmp_path)
    assert 100 + sum(calls) == 9 - len(done)
    assert np.load(tmp_path / "a_npy" / done[0]).shape == (1, 1)
    assert json.loads((tmp_path / "a_npy/frames.json").read_text())["frames"] == 9
    for more in ({"about": {"flip": True}}, {"overwrite": True}):  # other settings begin anew
        (tmp_path / "a_npy/frames.json").rename(tmp_path / "a_npy/unfinished.json")
        (tmp_path / "a_npy/unfinished.json").write_text('{"video_bytes": 1}')
        np.save(tmp_path / "a_npy/000042.npy", np.zeros(1))
        raw_frames(tmp_path, **more)
        assert np.load(tmp_path / "a_npy" / done[0]).shape == (28, 42)
        names = sorted(path.name for path in (tmp_path / "a_npy").iterdir())
        assert names == [*(f"{i:06d}.npy" for i in range(1, 10)), "frames.json", "notes.txt"]


def test_damaged_video_leaves_no_raw_frames(tmp_path: Path) -> None:
    path, _ = damaged(tmp_path)["noise"]
    path.rename(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="damaged after frame"):
        raw_frames(tmp_path)
    assert not (tmp_path / "a_npy").exists()
