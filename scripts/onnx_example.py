"""Depth or classes of a photo from an exported ONNX file, with nothing but onnxruntime, NumPy and OpenCV.

    python -m depthany.export checkpoint=outputs/student format=onnx out=student.onnx
    python scripts/onnx_example.py student.onnx photo.jpg depth.npy

The file describes its preprocessing itself (docs/exports.md); this script follows the description and needs
neither torch nor depthany. Depth equals `depthany.load_model(...).infer(photo)` within 1e-3 of the map's
range; of a segmentation model the result has the number of each pixel's most likely class.
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
    parser.add_argument("out", help=".npy file [height width]: float32, or uint8 classes")
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    about = description(session)
    photo = cv2.cvtColor(cv2.imread(arguments.photo), cv2.COLOR_BGR2RGB)  # [height width 3] uint8
    values = predict(session, photo)
    np.save(arguments.out, values)
    if about["quantity"] == "classes":
        names = [about["class_names"][number] for number in np.unique(values)]
        print(f"{arguments.out}: {', '.join(names)}")
        return
    unit = "metres" if about["unit"] == "m" else "disparity of unknown scale and shift: larger is nearer"
    print(f"{arguments.out}: {values.min():.4g} to {values.max():.4g}, {unit}")


def description(session: onnxruntime.InferenceSession) -> dict:
    """What the file says of itself, such as "multiple" or "mean"."""
    texts = session.get_modelmeta().custom_metadata_map
    prefix = "depthany."
    return {key[len(prefix) :]: json.loads(text) for key, text in texts.items() if key.startswith(prefix)}


def predict(session: onnxruntime.InferenceSession, photo: np.ndarray) -> np.ndarray:
    """Returns float32 or uint8 class numbers [height width] of a photo [height width 3] uint8 RGB."""
    about = description(session)
    image = prepare(photo, about)
    if about["batch"] is not None:
        image = np.repeat(image, about["batch"], axis=0)
    small = session.run([about["quantity"]], {"image": image})[0][0]  # [h w], or logits [k h w]
    values = resize(small, photo.shape[:2], about["resize_output"]["align_corners"])
    return values.argmax(0).astype(np.uint8) if about["quantity"] == "classes" else values


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


def resize(values: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Returns a map [... h w] at `size`, bilinear; aligned corners: corner pixels keep their places."""
    for axis, length in zip((-2, -1), size):
        most = values.shape[axis] - 1
        if align_corners:
            at = np.linspace(0, most, length)
        else:
            at = np.clip((np.arange(length) + 0.5) * (most + 1) / length - 0.5, 0, most)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, most)
        share = (at - low).astype(np.float32)
        share = share[:, None] if axis == -2 else share  # along its axis
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


if __name__ == "__main__":
    main()
