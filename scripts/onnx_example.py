"""Depth of a photo from an exported ONNX file, with nothing but onnxruntime, NumPy and OpenCV.

    python -m depthany.export checkpoint=outputs/student format=onnx out=student.onnx
    python scripts/onnx_example.py student.onnx photo.jpg depth.npy

The file describes its preprocessing itself (docs/exports.md); this script follows the description and needs
neither torch nor depthany. The result equals `depthany.load_model(...).infer(photo)` within 1e-3 of the map's
range.
"""

import argparse
import json
import math

import cv2
import numpy as np
import onnxruntime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help=".onnx file")
    parser.add_argument("photo")
    parser.add_argument("out", help=".npy file: float32 [height width]")
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    about = description(session)
    photo = cv2.cvtColor(cv2.imread(arguments.photo), cv2.COLOR_BGR2RGB)  # [height width 3] uint8
    values = predict(session, photo)
    np.save(arguments.out, values)
    unit = "metres" if about["unit"] == "m" else "disparity of unknown scale and shift: larger is nearer"
    print(f"{arguments.out}: {values.min():.4g} to {values.max():.4g}, {unit}")


def description(session: onnxruntime.InferenceSession) -> dict:
    """What the file says of itself, such as "multiple" or "mean"."""
    texts = session.get_modelmeta().custom_metadata_map
    prefix = "depthany."
    return {key[len(prefix) :]: json.loads(text) for key, text in texts.items() if key.startswith(prefix)}


def predict(session: onnxruntime.InferenceSession, photo: np.ndarray) -> np.ndarray:
    """Returns the map [height width] float32 of a photo [height width 3] uint8 RGB."""
    about = description(session)
    image = prepare(photo, about)
    if about["batch"] is not None:
        image = np.repeat(image, about["batch"], axis=0)
    small = session.run([about["quantity"]], {"image": image})[0][0]  # [h w]
    return resize_aligned(small, photo.shape[:2])


def prepare(photo: np.ndarray, about: dict) -> np.ndarray:
    """Returns the input [1 3 h w] float32: resized by OpenCV's bicubic kernel on floats, then normalised."""
    h, w = about["size"] or input_shape(photo.shape[:2], about["input_size"], about["multiple"])
    image = photo.astype(np.float32) / 255
    if image.shape[:2] != (h, w):
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_CUBIC)  # a = -0.75, no antialiasing
    image = (image - np.float32(about["mean"])) / np.float32(about["std"])
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def input_shape(size: tuple[int, int], input_size: int, multiple: int) -> tuple[int, int]:
    """Shorter side `input_size`; each side the nearest multiple, or up if that is below `input_size`."""
    sides = []
    for side in size:
        scaled = input_size / min(size) * side
        nearest = round(scaled / multiple) * multiple
        sides.append(nearest if nearest >= input_size else math.ceil(scaled / multiple) * multiple)
    return sides[0], sides[1]


def resize_aligned(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a map [h w] at `size`, bilinear with aligned corners: corner pixels keep their places."""
    for axis, length in enumerate(size):
        at = np.linspace(0, values.shape[axis] - 1, length)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        share = np.expand_dims((at - low).astype(np.float32), 1 - axis)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


if __name__ == "__main__":
    main()
