"""An image processor for transformers that prepares images as `DenseModel.infer` does.

`format=huggingface` copies this file into the subfolder "exact" of what it writes, so it imports nothing of
depthany:

    processor = AutoImageProcessor.from_pretrained("student/exact", trust_remote_code=True)
    pipeline("depth-estimation", model="student", image_processor=processor)
"""

from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from transformers import BatchFeature, DPTImageProcessor


class DepthanyImageProcessor(DPTImageProcessor):
    """Resizes by OpenCV's bicubic kernel without antialiasing, and the map bilinearly with aligned corners.

    Source: test-time transform and infer_image of the released code of Depth Anything.
    """

    def preprocess(self, images: Any, *_: Any, return_tensors: Any = None, **__: Any) -> BatchFeature:
        """Returns `pixel_values` [b 3 h w] float32 of one image or a list of images of one input shape.

        Args:
            images: Pillow images, or arrays [height width 3] uint8 RGB.
        """
        several = images if isinstance(images, list | tuple) else [images]
        prepared = [self._prepare(image) for image in several]
        return BatchFeature({"pixel_values": torch.stack(prepared)}, tensor_type=return_tensors)

    def post_process_depth_estimation(self, outputs: Any, target_sizes: Any = None) -> list[dict[str, Any]]:
        """Returns {"predicted_depth": [height width]} of each map, resized to its (height, width)."""
        maps = outputs.predicted_depth  # [b h w]
        sizes = [each.shape for each in maps] if target_sizes is None else target_sizes
        resized = [
            F.interpolate(each[None, None], tuple(size), mode="bilinear", align_corners=True)[0, 0]
            for each, size in zip(maps, sizes, strict=True)
        ]
        return [{"predicted_depth": each} for each in resized]

    def _prepare(self, image: Any) -> torch.Tensor:
        """Returns [3 h w] float32 of an image."""
        pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        resized = pixels.astype(np.float32) / np.float32(255.0)
        h, w = self._input_shape(*pixels.shape[:2])
        if resized.shape[:2] != (h, w):
            resized = cv2.resize(resized, (w, h), interpolation=cv2.INTER_CUBIC)
        resized = (resized - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def _input_shape(self, height: int, width: int) -> tuple[int, int]:
        """Shorter side `size`; each side the nearest multiple, or up if that is below `size`."""
        least, multiple = min(self.size["height"], self.size["width"]), self.ensure_multiple_of
        sides = []
        for side in (height, width):
            scaled = least / min(height, width) * side
            nearest = round(scaled / multiple) * multiple
            sides.append(nearest if nearest >= least else -int(-scaled // multiple) * multiple)
        return sides[0], sides[1]
