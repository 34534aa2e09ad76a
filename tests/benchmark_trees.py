"""Tiny benchmarks in their official layouts and true file formats, for the tests of readers and protocols."""

import json
import struct
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

IMAGE = (6, 8)  # height, width


def write_rgb(path: Path, size: tuple[int, int] = IMAGE, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (value, 20, 30)).save(path)
    return path


def write_png16(path: Path, stored: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored.astype(np.uint16)).save(path)
    return path


def write_npy(path: Path, stored: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, stored)
    return path


def write_nyu_mat(
    root: Path, count: int = 5, test: tuple[int, ...] = (2, 5), size: tuple[int, int] = IMAGE
) -> None:
    """Image n (from 1): red n at row 0, column 1, and a hole in the raw depth there; depth n m elsewhere."""
    root.mkdir(parents=True, exist_ok=True)
    height, width = size
    images = np.zeros((count, 3, width, height), np.uint8)
    depths = np.ones((count, width, height), np.float32) * np.arange(1, count + 1)[:, None, None]
    images[:, 0, 1, 0] = np.arange(1, count + 1)
    raw = depths.copy()
    raw[:, 1, 0] = 0
    # MATLAB 7.3 puts a block of 512 bytes of its own in front of the HDF5 file
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"], file["depths"], file["rawDepths"] = images, depths.astype(np.float32), raw
        write_scenes(file, [f"kitchen_{n + 1:04d}" for n in range(count)])
    savemat(root / "splits.mat", {"testNdxs": np.array(test, np.uint16)[:, None], "trainNdxs": [[1]]})


def write_scenes(file: h5py.File, names: list[str]) -> None:
    """The variable `scenes` as MATLAB 7.3 stores a cell array of strings: references to character codes."""
    scenes = file.create_dataset("scenes", (1, len(names)), h5py.ref_dtype)
    for n, name in enumerate(names):
        codes = np.array([ord(letter) for letter in name], np.uint16)
        scenes[0, n] = file.create_dataset(f"#refs#/{n}", data=codes[:, None]).ref


def write_nyu_png(root: Path) -> None:
    folder = root / "test/kitchen_0002"
    write_rgb(folder / "rgb_0002.png", value=2)
    filled = np.full(IMAGE, 2000)
    raw = filled.copy()
    raw[0, 1] = 0
    write_png16(folder / "depth_0002.png", raw)
    write_png16(folder / "filled_0002.png", filled)


def write_kitti(
    root: Path, depth_folder: str = "data_depth_annotated/val", size: tuple[int, int] = IMAGE
) -> None:
    """Two images with depth and one, listed, without: 20 m in the lower half, and three pixels of row 0."""
    lines = []
    for day, drive, frame in (
        ("2011_09_26", "0002", 69),
        ("2011_09_26", "0009", 16),
        ("2011_09_28", "0001", 3),
    ):
        name = f"{day}_drive_{drive}_sync"
        image = f"{day}/{name}/image_02/data/{frame:010d}.png"
        depth = f"{name}/proj_depth/groundtruth/image_02/{frame:010d}.png"
        write_rgb(root / image, size)
        if day == "2011_09_28":
            depth = "None"
        else:
            stored = np.zeros(size)
            stored[size[0] // 2 :] = 20 * 256
            stored[0, :3] = (256, 2560, 1)  # 1 m, 10 m, 1/256 m; the rest has no return
            write_png16(root / depth_folder / depth, stored)
        lines.append(f"{image} {depth} 721.5377")
    (root / "eigen_test_files_with_gt.txt").write_text("\n".join(lines) + "\n")


def write_sun_rgbd(root: Path, size: tuple[int, int] = IMAGE) -> None:
    """2 m; row 46, column 50 is 9 m and row 47, column 50 has no depth, where the map is as large as that."""
    depth_mm = np.full(size, 2000)
    depth_mm[46:47, 50:51], depth_mm[47:48, 50:51] = 9000, 0
    write_rgb(root / "rgb/img-000001.jpg", size)
    write_png16(root / "depth/1.png", (depth_mm << 3 | depth_mm >> 13) & 0xFFFF)


def write_diode(root: Path) -> None:
    """An indoor and an outdoor image: 2 m, and 300 m off the mask at row 0, column 0."""
    for part, scene in (("indoors", "00019"), ("outdoor", "00022")):
        stem = root / f"val/{part}/scene_{scene}/scan_00183/{scene}_00183_{part}_000_010"
        write_rgb(stem.with_suffix(".png"))
        depth_m, mask = np.full((*IMAGE, 1), 2, np.float32), np.ones(IMAGE, np.float32)
        depth_m[0, 0], mask[0, 0] = 300, 0
        write_npy(stem.with_name(stem.name + "_depth.npy"), depth_m)
        write_npy(stem.with_name(stem.name + "_depth_mask.npy"), mask)


def write_eth3d(root: Path, marigold: bool = False) -> None:
    """4 m; row 1, column 2 is 8 m, row 0 infinite. An undistorted image lies beside the original one."""
    images, depths = ("rgb/", "depth/office_dslr_depth/") if marigold else ("", "")
    write_rgb(root / f"{images}office/images/dslr_images/DSC_0219.JPG")
    write_rgb(root / f"{images}office/images/dslr_images_undistorted/DSC_0219.JPG", size=(5, 9))
    depth_m = np.full(IMAGE, 4, "<f4")
    depth_m[1, 2], depth_m[0] = 8, np.inf
    path = root / f"{depths}office/ground_truth_depth/dslr_images/DSC_0219.JPG"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(depth_m.tobytes())


def write_sintel(root: Path) -> None:
    """Two frames in either rendering: 5 m, row 1, column 2 at 10 m, row 0 sky at 1e5 m."""
    for frame in (1, 2):
        for value, render in enumerate(("final", "clean")):
            write_rgb(root / f"training/{render}/alley_1/frame_{frame:04d}.png", value=value)
        depth_m = np.full(IMAGE, 5, "<f4")
        depth_m[1, 2], depth_m[0] = 10, 1e5
        path = root / f"training/depth/alley_1/frame_{frame:04d}.dpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<fii", 202021.25, IMAGE[1], IMAGE[0]) + depth_m.tobytes())


def write_ddad(root: Path) -> None:
    """One image with depth in metres, one in 1/256 m; both 12.5 m at row 0, column 0, else no return."""
    depth_m = np.zeros(IMAGE, np.float32)
    depth_m[0, 0] = 12.5
    write_rgb(root / "000150/a_rgb.png")
    write_npy(root / "000150/a_depth.npy", depth_m)
    write_rgb(root / "000151/b_rgb.jpg")
    write_png16(root / "000151/b_depth.png", depth_m * 256)


def write_ibims(root: Path, size: tuple[int, int] = IMAGE) -> None:
    """50 m at column 0, 5 m else; row 1 is masked as invalid, row 2 as transparent, row 3 has no depth."""
    core = root / "ibims1_core_raw"
    write_rgb(core / "rgb/corridor_01.png", size)
    stored = np.full(size, 6553.5).round()  # 6554: 5.0004 m
    stored[:, 0], stored[3] = 65535, 0
    write_png16(core / "depth/corridor_01.png", stored)
    for row, folder in ((1, "mask_invalid"), (2, "mask_transp")):
        mask = np.full(size, 255, np.uint8)
        mask[row] = 0
        (core / folder).mkdir()
        Image.fromarray(mask).save(core / folder / "corridor_01.png")


def write_scannet(root: Path) -> None:
    """2.5 m at row 0, column 0, else none."""
    stored = np.zeros(IMAGE)
    stored[0, 0] = 2500
    for scene, frame in (("scene0064_00", "000800"), ("scene0378_01", "000300")):
        write_rgb(root / f"{scene}/color/{frame}.jpg")
        write_png16(root / f"{scene}/depth/{frame}.png", stored)
    (root / "list.txt").write_text("scene0378_01/color/000300.jpg scene0378_01/depth/000300.png\n")


def write_vkitti2(root: Path, size: tuple[int, int] = IMAGE) -> None:
    """A frame of four clips and two cameras each: row 0 sky, row 1, column 2 at 655.34 m, the rest at 5 m.

    A training list names the left camera of two clips.
    """
    stored = np.full(size, 500)
    stored[0], stored[1, 2] = 65535, 65534
    for clip in ("Scene01/clone", "Scene01/fog", "Scene01/30-deg-left", "Scene20/clone"):
        for camera in (0, 1):
            folder = root / clip / "frames"
            write_rgb(folder / f"rgb/Camera_{camera}/rgb_00000.jpg", size)
            write_png16(folder / f"depth/Camera_{camera}/depth_00000.png", stored)
    frames = [f"/mnt/{clip}/frames" for clip in ("Scene01/fog", "Scene20/clone")]
    lines = [f"{f}/rgb/Camera_0/rgb_00000.jpg {f}/depth/Camera_0/depth_00000.png\n" for f in frames]
    (root / "vkitti2_train.txt").write_text("".join(lines))


def write_hypersim(root: Path, size: tuple[int, int] = IMAGE) -> None:
    """A frame of each split, and one that is not released: 3 m from the camera."""
    rows = ["scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name"]
    for frame, released, part in ((0, True, "val"), (1, True, "train"), (2, False, "val"), (3, True, "test")):
        reason = "" if released else "bad frame"
        rows.append(f"ai_003_010,cam_00,{frame},{released},{reason},{part if released else ''}")
        if released:
            folder = root / "ai_003_010/images"
            write_rgb(folder / f"scene_cam_00_final_preview/frame.{frame:04d}.tonemap.jpg", size)
            path = folder / f"scene_cam_00_geometry_hdf5/frame.{frame:04d}.depth_meters.hdf5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["dataset"] = np.full(size, 3, np.float16)
    (root / "metadata_images_split_scene_v1.csv").write_text("\n".join(rows) + "\n")


def write_da2k(root: Path) -> None:
    """The second pair has its points the other way round, which the format allows."""
    annotations = {
        "underwater/fish.png": [
            {"point1": [1, 7], "point2": [5, 0], "closer_point": "point1"},
            {"point1": [2, 3], "point2": [4, 6], "closer_point": "point2"},
        ],
        "indoor/room.jpg": [{"point1": [0, 0], "point2": [5, 7], "closer_point": "point1"}],
    }
    for path in annotations:
        write_rgb(root / path)
    Image.new("RGBA", IMAGE[::-1], (9, 8, 7, 255)).save(root / "underwater/fish.png")
    (root / "annotations.json").write_text(json.dumps(annotations))
