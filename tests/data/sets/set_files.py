"""Tiny files in the true formats of the labeled sets."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import OpenEXR
import scipy.io
from PIL import Image

from benchmark_trees import write_scenes
from depthany.data.labeled import PairedDepth


def image(path: Path, height: int = 2, width: int = 3, level: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (level, level, level)).save(path)


def png(path: Path, stored: object, dtype: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(stored, dtype)).save(path)


def npy(path: Path, stored: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(stored, np.float32))


def pfm(path: Path, rows: object) -> None:
    """Little endian, the last row first."""
    stored = np.asarray(rows, "<f4")
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"Pf\n{stored.shape[1]} {stored.shape[0]}\n-1.000000\n".encode()
    path.write_bytes(header + stored[::-1].tobytes())


def exr(path: Path, rows: object) -> None:
    """One channel G, as IRS has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"G": np.asarray(rows, np.float32)}).write(str(path))


def hdf5(path: Path, key: str, rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = np.asarray(rows, np.float32)


def disparity(dataset: PairedDepth, index: int = 0) -> list[list[float | None]]:
    """The disparity of an image, None off the mask."""
    labels = dataset.labels(index)
    return [
        [round(float(value), 6) if known else None for value, known in zip(*row)]
        for row in zip(labels.disparity, labels.mask)
    ]


DEPTH_MM = [[3000, 4000, 5000], [6000, 0, 8000]]
DEPTH_M = [[3, 4, 5.5], [6, 0, 8]]


def _blendedmvs(root: Path) -> None:
    image(root / "scene/blended_images/00000000.jpg")
    pfm(root / "scene/rendered_depth_maps/00000000.pfm", DEPTH_M)


def _diml(root: Path) -> None:
    image(root / "store/color/1_c.png")
    png(root / "store/depth_filled/1_depth_filled.png", DEPTH_MM)


def _hrwsi(root: Path) -> None:
    image(root / "train/imgs/1.jpg")
    png(root / "train/gts/1.png", [[1, 2, 3], [4, 5, 6]], np.uint8)
    png(root / "train/valid_masks/1.png", [[255] * 3, [255, 0, 255]], np.uint8)


def _irs(root: Path) -> None:
    image(root / "Home/l_1.png")
    exr(root / "Home/d_1.exr", DEPTH_M)


def _megadepth(root: Path) -> None:
    image(root / "0001/dense0/imgs/1.jpg")
    hdf5(root / "0001/dense0/depths/1.h5", "depth", DEPTH_M)


def _tartanair(root: Path) -> None:
    image(root / "office/office/Easy/P000/image_left/000000_left.png")
    npy(root / "office/office/Easy/P000/depth_left/000000_left_depth.npy", DEPTH_M)


def _hypersim(root: Path) -> None:
    images = root / "ai_001_001/images"
    image(images / "scene_cam_00_final_preview/frame.0000.tonemap.jpg")
    hdf5(images / "scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5", "dataset", DEPTH_M)
    head = "scene_name,camera_name,frame_id,split_partition_name"
    (root / "metadata_images_split_scene_v1.csv").write_text(f"{head}\nai_001_001,cam_00,0,train\n")


def _vkitti2(root: Path) -> None:
    image(root / "Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg")
    png(root / "Scene01/clone/frames/depth/Camera_0/depth_00000.png", DEPTH_MM)


def _nyuv2(root: Path) -> None:
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = np.full((1, 3, 3, 2), 90, np.uint8)
        file["depths"] = file["rawDepths"] = np.asarray([DEPTH_M], np.float32).transpose(0, 2, 1)
        write_scenes(file, ["kitchen_0004"])
    scipy.io.savemat(root / "splits.mat", {"trainNdxs": [[1]], "testNdxs": [[1]]})


def _nyuv2_raw(root: Path) -> None:
    image(root / "kitchen/rgb_00000.jpg")
    png(root / "kitchen/sync_depth_00000.png", DEPTH_MM)


def _kitti(root: Path) -> None:
    date, drive = "2011_09_26", "2011_09_26_drive_0001_sync"
    image(root / f"{date}/{drive}/image_02/data/0000000005.png")
    for split in ("train", "val"):
        depth = f"{split}/{drive}/proj_depth/groundtruth/image_02/0000000005.png"
        png(root / "data_depth_annotated" / depth, DEPTH_MM)


def _folder_depth(root: Path) -> None:
    image(root / "images/1.png")
    png(root / "depth/1.png", DEPTH_MM)


# What configs/dataset/<name>.yaml needs for one pair (KITTI: one in each split) in the official layout.
ONE_PAIR: dict[str, Callable[[Path], None]] = {
    "blendedmvs": _blendedmvs,
    "diml": _diml,
    "folder_depth": _folder_depth,
    "hrwsi": _hrwsi,
    "hypersim": _hypersim,
    "irs": _irs,
    "kitti": _kitti,
    "megadepth": _megadepth,
    "nyuv2": _nyuv2,
    "nyuv2_raw": _nyuv2_raw,
    "tartanair": _tartanair,
    "vkitti2": _vkitti2,
}
