"""Pre-trains the sample's `vitt` encoder on its training images: a small replacement of DINOv2.

No DINOv2 is this small. A masked autoencoder (He et al. 2022, arXiv 2111.06377) learns from images alone,
here from the training images of the bundled sample, never from depth and never from a held-out split.
Needs the extra `pretrain` (lightly). About a quarter of an hour on two cores:

    python scripts/pretrain_sample_encoder.py
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.utils import get_at_index, patchify, random_token_mask, set_at_index
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F

from depthany.models.dinov2 import PATCH, Dinov2
from depthany.models.preprocess import Preprocessing
from depthany.system.files import write_atomically

ROOTS = ("data/sample/labeled/train/images", "data/sample/unlabeled/train/images")
OUT = "data/sample/encoder_vitt.safetensors"
SIDE = 126  # pixels per side of a crop: the 9 x 9 patches of vitt's position grid
PATCHES = (SIDE // PATCH) ** 2
MASKED = 0.75  # share of patches that the encoder does not see
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class MaskedAutoencoder(nn.Module):
    """An encoder of visible patches and a small decoder that guesses the pixels of the masked ones."""

    def __init__(self, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.encoder = Dinov2("vitt")
        self.narrow = nn.Linear(self.encoder.spec.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=PATCHES, embed_dim=width, depth=depth, num_heads=heads, num_prefix_tokens=0
        )
        self.to_pixels = nn.Linear(width, 3 * PATCH * PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the mean squared error [] over the masked patches, normalised to mean 0 and variance 1.

        Args:
            image: [b 3 126 126] ImageNet-normalised.
        """
        keep, masked = random_token_mask((len(image), PATCHES), MASKED, mask_class_token=True)
        tokens = self.encoder.embed(image)  # [b 1+81 c]
        visible = torch.cat([tokens[:, :1], get_at_index(tokens[:, 1:], keep)], dim=1)
        visible = self.narrow(self.encoder.transform(visible)[-1])  # [b 20 d]
        canvas = self.decoder.mask_token.to(visible.dtype).expand(len(image), PATCHES, -1)  # [b 81 d]
        decoded = self.decoder(set_at_index(canvas, keep, visible))
        guess = self.to_pixels(get_at_index(decoded, masked))  # [b 61 3*14*14]
        pixels = get_at_index(patchify(image, PATCH), masked)
        target = F.layer_norm(pixels, pixels.shape[-1:])
        return F.mse_loss(guess.float(), target)


def load_images(roots: list[str]) -> list[np.ndarray]:
    """Returns all images below the roots, [h w 3] uint8 RGB."""
    images = []
    for root in roots:
        paths = sorted(path for path in Path(root).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise ValueError(f"{root} has no image; pass --roots with folders of {', '.join(IMAGE_SUFFIXES)}")
        for path in paths:
            bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if bgr is None:
                raise ValueError(f"{path} is not a readable image; delete it or render the sample again")
            images.append(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
    return images


def random_crop(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns a random crop [126 126 3] of 30-100 % of the area, aspect 3/4 to 4/3, perhaps mirrored."""
    h, w = image.shape[:2]
    area, aspect = draw.uniform(0.3, 1.0) * h * w, math.exp(draw.uniform(-1, 1) * math.log(4 / 3))
    height = min(h, max(1, round(math.sqrt(area / aspect))))
    width = min(w, max(1, round(math.sqrt(area * aspect))))
    top, left = draw.integers(h - height + 1), draw.integers(w - width + 1)
    crop = image[top : top + height, left : left + width]
    shrinks = min(height, width) > SIDE
    crop = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return crop[:, ::-1] if draw.random() < 0.5 else crop


def batches(images: list[np.ndarray], size: int, seed: int) -> Iterator[Tensor]:
    """Yields batches [b 3 126 126], ImageNet-normalised, without end; every pass takes every image once."""
    draw = np.random.default_rng(seed)
    order: list[int] = []
    while True:
        while len(order) < size:
            order.extend(draw.permutation(len(images)).tolist())
        picked, order = order[:size], order[size:]
        crops = np.stack([random_crop(images[index], draw) for index in picked])
        yield Preprocessing().normalise(torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Returns the rate of a step: linear warm-up over the first 5 %, then a half cosine to 0."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW as in He et al. 2022, table 8; weight decay 0.05, but none for vectors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def save_encoder(encoder: Dinov2, path: Path, facts: dict[str, str]) -> None:
    """Writes the encoder as float16 safetensors, atomically, with its training in the header."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in encoder.state_dict().items()}
    write_atomically(path, lambda partial: save_file(state, partial, metadata=facts))
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB), {facts}")


def pretrain(
    model: MaskedAutoencoder, images: list[np.ndarray], args: argparse.Namespace
) -> tuple[int, float]:
    """Trains in place; returns the steps done and the mean loss of the last 100. Ctrl-C ends it early."""
    optimizer = optimizer_of(model)
    losses: list[float] = []
    start = time.monotonic()
    stream = batches(images, args.batch, args.seed)
    try:
        for step in range(args.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(next(stream))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if (step + 1) % args.log_every == 0:
                report(step + 1, args, losses, time.monotonic() - start)
    except KeyboardInterrupt:
        print(f"interrupted after {len(losses)} of {args.steps} steps")
    return len(losses), float(np.mean(losses[-100:])) if losses else math.nan


def report(done: int, args: argparse.Namespace, losses: list[float], seconds: float) -> None:
    """Prints a line of progress."""
    left = seconds / done * (args.steps - done)
    print(
        f"step {done}/{args.steps}  loss {np.mean(losses[-args.log_every :]):.4f}  "
        f"{done * args.batch / seconds:.0f} images/s  {left / 60:.1f} min left",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--roots", nargs="+", default=list(ROOTS), help="folders of training images")
    parser.add_argument("--out", type=Path, default=Path(OUT))
    return parser.parse_args()


def main() -> None:
    """Trains and saves. An interrupted run is saved beside the target, not over it."""
    args = arguments()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(args.seed)
    set_fused_attn(False)  # bfloat16 on a CPU: plain matrix products are faster, see Dinov2
    images = load_images(args.roots)
    model = MaskedAutoencoder()
    print(f"{len(images)} images, {sum(p.numel() for p in model.encoder.parameters()) / 1e6:.2f}M parameters")
    done, loss = pretrain(model, images, args)
    path = args.out if done == args.steps else args.out.with_suffix(".interrupted.safetensors")
    facts = {"method": "masked autoencoder", "images": len(images), "steps": done, "batch": args.batch}
    facts |= {"seed": args.seed, "learning_rate": args.lr, "loss": round(loss, 4)}
    save_encoder(model.encoder, path, {name: str(value) for name, value in facts.items()})


if __name__ == "__main__":
    main()
