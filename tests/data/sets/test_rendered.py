"""IRS, TartanAir, Virtual KITTI 2, Hypersim: units, sky, distance and depth."""

from pathlib import Path

import numpy as np
import pytest
import set_files as files
from set_files import disparity

from benchmark_trees import write_vkitti2
from depthany.data.sets.hypersim import PINHOLE, Hypersim, cosine
from depthany.data.sets.irs import IRS
from depthany.data.sets.tartan_air import TartanAir
from depthany.data.sets.vkitti2 import VirtualKITTI2


def test_irs_disparity_in_pixels_is_48_over_depth(tmp_path: Path) -> None:
    folder = tmp_path / "Store/CashRegister"
    files.image(folder / "l_1.png")
    files.image(folder / "r_1.png")
    files.exr(folder / "d_1.exr", [[48, 24, 0], [0.24, 0.2, np.nan]])  # 1 m, 2 m, none, 200 m, 240 m, none
    files.exr(folder / "n_1.exr", np.zeros((2, 3)))  # surface normals lie in the same folder
    assert disparity(IRS(str(tmp_path))) == [[1, 0.5, None], [0.005, None, None]]


def test_wrong_root_names_the_expected_layout(tmp_path: Path) -> None:
    files.image(tmp_path / "Store/left.png")
    with pytest.raises(
        ValueError, match=r"no pair of image and depth found; IRS expects `\.\.\./l_N\.png` with"
    ):
        IRS(str(tmp_path))


def tartan(root: Path, env: str) -> None:
    for difficulty, trajectory in (("Easy", "P000"), ("Hard", "P001")):
        folder = root / env / env / difficulty / trajectory
        files.image(folder / "image_left/000007_left.png")
        files.image(folder / "image_right/000007_right.png")
        files.npy(folder / "depth_left/000007_left_depth.npy", [[2, 80, 9999], [10000, 65504, 0]])


def test_tartan_air_has_sky_from_ten_kilometres(tmp_path: Path) -> None:
    tartan(tmp_path, "hospital")
    assert disparity(TartanAir(str(tmp_path))) == [[0.5, 0.0125, 0.0001], [0, 0, None]]
    assert disparity(TartanAir(str(tmp_path), sky_beyond_m=None, max_depth=80))[1] == [None] * 3


def test_tartan_air_counts_left_out_environments(
    tmp_path: Path,
) -> None:
    tartan(tmp_path, "amusement")
    tartan(tmp_path, "hospital")
    dataset = TartanAir(str(tmp_path), exclude=["amusement"])
    assert dataset.left_out == {"in amusement": 2}
    for pair in dataset.pairs:
        assert pair.image.parents[1] == pair.depth.parents[1]
        assert "hospital" in pair.name


def vkitti(root: Path, scene: str = "Scene01", variant: str = "clone", camera: int = 0) -> None:
    frames = root / scene / variant / "frames"
    files.image(frames / f"rgb/Camera_{camera}/rgb_00000.jpg")
    files.png(frames / f"depth/Camera_{camera}/depth_00000.png", [[0, 250, 8000], [8001, 65534, 65535]])


def test_vkitti2_is_in_centimetres_with_65535_as_sky(tmp_path: Path) -> None:
    vkitti(tmp_path)
    assert disparity(VirtualKITTI2(str(tmp_path))) == [[None, 0.4, 0.0125], [None, None, 0]]
    assert disparity(VirtualKITTI2(str(tmp_path), max_depth=1000))[1] == [0.012498, 0.001526, 0]


def test_vkitti2_selects_cameras_and_variants(tmp_path: Path) -> None:
    for variant in ("clone", "fog", "15-deg-left"):
        for camera in (0, 1):
            vkitti(tmp_path, variant=variant, camera=camera)
    assert len(VirtualKITTI2(str(tmp_path))) == 3
    assert len(VirtualKITTI2(str(tmp_path), cameras=[0, 1])) == 6
    chosen = VirtualKITTI2(str(tmp_path), cameras=[1], variants=["fog", "clone"])
    assert [pair.name for pair in chosen.pairs] == [
        f"Scene01/{variant}/frames/rgb/Camera_1/rgb_00000.jpg" for variant in ("clone", "fog")
    ]
    assert chosen.left_out == {"of other variants": 1}


@pytest.mark.parametrize(
    "rgb, depth, options",
    [
        ("vkitti_2.0.3_rgb", "vkitti_2.0.3_depth", {}),
        ("rgb", "depth", {}),  # Marigold
        ("", "depth", {}),
        ("", "../elsewhere", {"depth_root": "../elsewhere"}),
    ],
)
def test_vkitti2_archives_may_have_own_folders(tmp_path: Path, rgb: str, depth: str, options: dict) -> None:
    root = tmp_path / "root"
    for variant in ("clone", "fog"):
        vkitti(tmp_path / "one", variant=variant)
        for archive, kind in ((rgb, "rgb"), (depth, "depth")):
            frames = Path("Scene01", variant, "frames")
            (root / archive / frames).mkdir(parents=True, exist_ok=True)
            (tmp_path / "one" / frames / kind).rename(root / archive / frames / kind)
    dataset = VirtualKITTI2(str(root), **options)
    assert len(dataset) == 2
    assert disparity(dataset, 1) == [[None, 0.4, 0.0125], [None, None, 0]]
    assert [pair.depth.parts[-5] for pair in dataset.pairs] == ["clone", "fog"]
    chosen = VirtualKITTI2(str(root), scenes=["Scene01"], variants=["fog"], **options)
    assert [pair.name for pair in chosen.pairs] == [
        f"{rgb}/Scene01/fog/frames/rgb/Camera_0/rgb_00000.jpg".lstrip("/")
    ]


def test_frame_that_lies_twice_is_refused(tmp_path: Path) -> None:
    vkitti(tmp_path / "a")
    vkitti(tmp_path / "b")
    with pytest.raises(ValueError, match=r"a/Scene01/\S+ and b/Scene01/\S+ are the same frame: remove one"):
        VirtualKITTI2(str(tmp_path))


def test_vkitti2_complement_of_a_training_list(tmp_path: Path) -> None:
    write_vkitti2(tmp_path)
    rest = VirtualKITTI2(str(tmp_path), except_list="vkitti2_train.txt")
    names = [rest.name(i).split("/frames")[0] for i in range(len(rest))]
    assert names == ["Scene01/30-deg-left", "Scene01/clone"]
    assert rest.left_out == {"named in vkitti2_train.txt": 2}
    (tmp_path / "other.txt").write_text("rgb_00000.jpg depth_00000.png\n")
    with pytest.raises(ValueError, match=r"other\.txt, line 1: expected SceneXX/.*got 'rgb_00000\.jpg'"):
        VirtualKITTI2(str(tmp_path), except_list="other.txt")
    (tmp_path / "other.txt").write_text("Scene99/clone/frames/rgb/Camera_0/rgb_00000.jpg\n")
    with pytest.raises(ValueError, match=r"except_list=other\.txt names no frame below .*such as Scene01/"):
        VirtualKITTI2(str(tmp_path), except_list="other.txt")
    with pytest.raises(ValueError, match=r"none\.txt: no such file: put the list there"):
        VirtualKITTI2(str(tmp_path), except_list="none.txt")


def test_validation_part_of_vkitti2(tmp_path: Path) -> None:
    write_vkitti2(tmp_path)
    variants = ["clone", "morning", "overcast", "sunset", "15-deg-left", "15-deg-right"]
    options = {"scenes": ["Scene01"], "variants": variants, "max_depth": 1e6}
    images = VirtualKITTI2(str(tmp_path), cameras=[0, 1], **options)
    assert [images.name(i) for i in range(len(images))] == [
        f"Scene01/clone/frames/rgb/Camera_{camera}/rgb_00000.jpg" for camera in (0, 1)
    ]  # neither fog, nor 30 degrees to the left, nor another scene
    assert images.left_out == {"of other scenes": 2, "of other variants": 4}
    labels = images.labels(1)
    assert labels.mask.all()
    assert labels.sky is not None and labels.sky.sum(1).tolist() == [8, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(labels.values[1, 1:4], [5, 655.34, 5], rtol=1e-7)
    with pytest.raises(
        ValueError, match=r"found; VirtualKITTI2 expects .*; 2 pair\(s\) of other scenes are left"
    ):
        VirtualKITTI2(str(tmp_path / "Scene20"), cameras=[0, 1], **options)


def hypersim(root: Path, scene: str, frame: int, distance_m: object) -> None:
    images = root / scene / "images"
    height, width = np.shape(distance_m)
    files.image(images / f"scene_cam_00_final_preview/frame.{frame:04d}.tonemap.jpg", height, width)
    files.image(images / f"scene_cam_00_final_preview/frame.{frame:04d}.color.jpg", height, width)
    files.hdf5(
        images / f"scene_cam_00_geometry_hdf5/frame.{frame:04d}.depth_meters.hdf5", "dataset", distance_m
    )


def test_hypersim_distance_becomes_depth_by_the_published_formula() -> None:
    x = np.arange(1024) + 0.5 - 512
    y = np.arange(768)[:, None] + 0.5 - 384
    expected = 886.81 / np.sqrt(x**2 + y**2 + 886.81**2)  # ml-hypersim#9
    np.testing.assert_allclose(cosine(768, 1024, PINHOLE), expected, rtol=1e-6)
    assert 0.81 < cosine(768, 1024, PINHOLE)[0, 0] < 0.82  # the corner: up to 19 % off without it


def test_hypersim_wall_facing_the_camera_is_flat(tmp_path: Path) -> None:
    distance = (4 / cosine(6, 8, PINHOLE)).astype(np.float32)
    distance[0, 0] = np.nan
    hypersim(tmp_path, "ai_001_001", 3, distance)
    labels = Hypersim(str(tmp_path), split="all").labels(0)
    assert labels.mask.sum() == 47 and not labels.mask[0, 0]
    np.testing.assert_allclose(labels.disparity[labels.mask], 0.25, rtol=1e-6)


def test_ray_that_hits_nothing_may_be_sky(tmp_path: Path) -> None:
    distance = (4 / cosine(2, 3, PINHOLE)).astype(np.float32)
    distance[0, 1] = np.nan
    hypersim(tmp_path, "ai_001_001", 3, distance)
    assert disparity(Hypersim(str(tmp_path), split="all")) == [[0.25, None, 0.25], [0.25] * 3]
    assert disparity(Hypersim(str(tmp_path), split="all", missing="sky")) == [[0.25, 0, 0.25], [0.25] * 3]
    with pytest.raises(ValueError, match="unknown missing of Hypersim 'far'; choose from sky"):
        Hypersim(str(tmp_path), split="all", missing="far")


def test_list_leaves_out_bad_scenes_and_images(tmp_path: Path) -> None:
    for environment in ("amusement", "hospital", "amusement2"):
        tartan(tmp_path, environment)
    bad = "hospital/hospital/Easy/P000/image_left/000007_left.png"
    (tmp_path / "bad.txt").write_text(f"# scenes that look wrong\namusement\n\n{bad}\nnowhere\n")
    dataset = TartanAir(str(tmp_path), exclude_file="bad.txt")
    assert {pair.name.split("/")[0] for pair in dataset.pairs} == {"hospital", "amusement2"}
    assert len(dataset) == 3 and bad not in [pair.name for pair in dataset.pairs]
    assert dataset.pairs[0].depth.is_file()
    assert dataset.left_out == {"named in bad.txt": 3}
    unused = "exclude_file=bad.txt: 1 of its 3 lines name no image or folder of this set, the first: nowhere"
    assert dataset.warnings == [unused]
    for text, message in (
        ("elsewhere", "names no image or folder below .*, such as amusement/"),
        ("#", "names no"),
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            TartanAir(str(tmp_path), exclude_file="bad.txt")
    with pytest.raises(ValueError, match=r"none\.txt: cannot read the list of what is left out"):
        TartanAir(str(tmp_path), exclude_file="none.txt")


def test_what_is_left_out_of_a_list_is_counted(tmp_path: Path) -> None:
    for environment in ("amusement", "hospital"):
        tartan(tmp_path, environment)
    pairs = TartanAir(str(tmp_path)).pairs
    lines = [f"{pair.image.relative_to(tmp_path)} {pair.depth.relative_to(tmp_path)}" for pair in pairs]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = {"list_file": str(tmp_path / "list.txt")}
    dataset = TartanAir(str(tmp_path), exclude=["amusement"], **options)
    assert (len(dataset), dataset.left_out) == (2, {"in amusement": 2})
    root = tmp_path / "vkitti"
    for variant in ("clone", "fog"):
        vkitti(root, variant=variant)
    pairs = VirtualKITTI2(str(root)).pairs
    lines = [f"{pair.image.relative_to(root)} {pair.depth.relative_to(root)}" for pair in pairs]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    chosen = VirtualKITTI2(str(root), variants=["fog"], **options)
    assert {pair.name.split("/")[1] for pair in chosen.pairs} == {"fog"}
    assert chosen.left_out == {"of other variants": len(pairs) - len(chosen)}


def test_published_list_has_folders_of_its_authors(tmp_path: Path) -> None:
    vkitti(tmp_path / "vkitti")
    pairs = VirtualKITTI2(str(tmp_path / "vkitti")).pairs
    rows = [[path.relative_to(tmp_path / "vkitti") for path in (p.image, p.depth)] for p in pairs]
    listed = tmp_path / "train.txt"
    for before in ("/mnt/bn/somebody/vKitti2/", "vKitti2/", ""):
        listed.write_text("".join(f"{before}{image} {before}{depth}\n" for image, depth in rows))
        found = VirtualKITTI2(str(tmp_path / "vkitti"), list_file=str(listed)).pairs
        assert [(p.name, p.depth) for p in found] == [(p.name, p.depth) for p in pairs]
    listed.write_text("/mnt/vKitti2/Scene09/clone/frames/rgb/Camera_0/rgb_0.jpg x.png\n")
    with pytest.raises(ValueError, match=r"do not exist below .*/mnt/vKitti2/Scene09"):
        VirtualKITTI2(str(tmp_path / "vkitti"), list_file=str(listed))


def test_words_where_lists_belong_are_refused(tmp_path: Path) -> None:
    tartan(tmp_path, "amusement")
    with pytest.raises(ValueError, match=r"exclude=amusement: expected a list, exclude=\[amusement\]"):
        TartanAir(str(tmp_path), exclude="amusement")
    with pytest.raises(ValueError, match=r"exclude=\['amusment'\] names no folder .*, such as amusement/"):
        TartanAir(str(tmp_path), exclude=["amusment"])
    with pytest.raises(ValueError, match=r"cameras=0: expected a list, cameras=\[0\]"):
        VirtualKITTI2(str(tmp_path), cameras=0)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for frame in range(4):
        hypersim(tmp_path, "ai_001_001", frame, np.full((6, 8), 3.0))
    (tmp_path / "metadata_images_split_scene_v1.csv").write_text(
        "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"
        "ai_001_001,cam_00,0,True,,train\n"
        "ai_001_001,cam_00,1,False,black image,\n"
        "ai_001_001,cam_00,2,True,,val\n"
        "ai_001_001,cam_00,3,True,,train\n"
    )
    return tmp_path


def test_hypersim_follows_the_official_split(scenes: Path) -> None:
    train = Hypersim(str(scenes))
    assert [pair.name.split(".")[1] for pair in train.pairs] == ["0000", "0003"]
    assert train.left_out == {"not in the split train": 2}
    assert len(Hypersim(str(scenes), split="val")) == 1
    assert len(Hypersim(str(scenes), split="all")) == 4
    with pytest.raises(ValueError, match=r"no pair .*; 4 pair\(s\) not in the split test are left out"):
        Hypersim(str(scenes), split="test")


def test_hypersim_without_split_file_is_an_error(scenes: Path) -> None:
    (scenes / "metadata_images_split_scene_v1.csv").unlink()
    with pytest.raises(ValueError, match=r"split_scene_v1\.csv: cannot read Hypersim's table: No such file"):
        Hypersim(str(scenes))


def test_hypersim_takes_the_camera_table_in_root(scenes: Path) -> None:
    pinhole = Hypersim(str(scenes), split="val")
    assert len(pinhole.warnings) == 1 and "146 of the table's 482 scenes" in pinhole.warnings[0]
    names = ",".join(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))
    wide = "2,0,0,0,1.5,0,0,0,-1"
    (scenes / "metadata_camera_parameters.csv").write_text(f"scene_name,{names}\nai_001_001,{wide}\n")
    found = Hypersim(str(scenes), split="val")
    assert found.warnings == []
    depth_m = 3 / np.sqrt((2 / 8) ** 2 + (1.5 / 6) ** 2 + 1)
    assert found.labels(0).values[2, 4] == pytest.approx(depth_m, rel=1e-6)
    chosen = Hypersim(str(scenes), split="val", camera_csv="pinhole")
    assert chosen.warnings == []
    assert np.array_equal(chosen.labels(0).values, pinhole.labels(0).values)


def test_hypersim_camera_table_has_shifted_lenses(scenes: Path, tmp_path: Path) -> None:
    names = ",".join(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))
    shifted = "0.5,0,0.25,0,0.5,0,0,0,-1"  # (u, v) -> (0.5 u + 0.25, 0.5 v, -1)
    (tmp_path / "cameras.csv").write_text(f"scene_name,{names}\nai_001_001,{shifted}\n")
    labels = Hypersim(str(scenes), split="val", camera_csv=str(tmp_path / "cameras.csv")).labels(0)
    u, v = 1 / 8 + 0 / 4, 1 / 6  # the pixel right and above of the centre
    depth_m = 3 / np.sqrt((0.5 * u + 0.25) ** 2 + (0.5 * v) ** 2 + 1)
    assert labels.disparity[2, 4] == pytest.approx(1 / depth_m, rel=1e-6)
    (tmp_path / "cameras.csv").write_text(f"scene_name,{names}\nai_002_001,{shifted}\n")
    with pytest.raises(ValueError, match="has no line for scene ai_001_001"):
        Hypersim(str(scenes), split="val", camera_csv=str(tmp_path / "cameras.csv")).labels(0)
