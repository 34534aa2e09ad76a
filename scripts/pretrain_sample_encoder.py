"""Pre-trains the sample's `vitt` encoder without labels: a small stand-in for DINOv2, which lacks this size.

    pip install -e ".[render,pretrain]"
    python scripts/render_pretraining.py --out outputs/pretraining
    python scripts/pretrain_sample_encoder.py --roots outputs/pretraining

A masked autoencoder, which made the bundled encoder; with `--parts mae distill` self-distillation as in
DINOv2 (DINO, iBOT and KoLeo of lightly) starts from it. It uses only images: no depth, no classes, and no
image of the sample's validation and test splits. The state is saved every minute in `--work`: the same
command continues an interrupted run and, on a CPU, ends with the same bits as an uninterrupted one.
`scripts/probe_encoder.py` says what the features are worth.
"""

import argparse
import hashlib
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from depthany.models.dinov2 import Dinov2
from depthany.system.files import write_atomically
from pretraining.images import ImageStore, drawn_images, find_images, read_images
from pretraining.masked_autoencoder import MaskedAutoencoder
from pretraining.self_distillation import SelfDistillation


class Part(Protocol):
    """A way to train an encoder without labels."""

    def loss(
        self, store: ImageStore, index: Tensor, progress: float, generator: Generator
    ) -> dict[str, Tensor]:
        """Returns the losses [] of some images, by name."""

    def after_step(self, progress: float) -> None:
        """Does what follows a gradient step."""

    def result(self) -> Dinov2:
        """Returns the trained encoder."""


PARTS: dict[str, type[MaskedAutoencoder] | type[SelfDistillation]] = {
    "mae": MaskedAutoencoder,
    "distill": SelfDistillation,
}
SAVE_EVERY_S = 60


@dataclass
class Plan:
    """How long and how fast a part is trained."""

    name: str
    steps: int
    batch: int
    lr: float


def learning_rate(step: int, plan: Plan) -> float:
    """Returns the rate of a step: linear warm-up over the first 8 %, then a half cosine to 0."""
    warm_up = max(1, round(0.08 * plan.steps))
    if step < warm_up:
        return plan.lr * (step + 1) / warm_up
    return plan.lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, plan.steps - warm_up)))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW; weight decay 0.05, but none for vectors (He et al. 2022, table 8)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train_part(
    plan: Plan, encoder: Dinov2, store: ImageStore, args: argparse.Namespace, start: dict[str, Any]
) -> Dinov2:
    """Trains one part to its end, from its saved state if there is one; returns its encoder.

    Args:
        start: what a saved state must have in common with this run, besides plan and seed.
    """
    device = store.canvas.device
    torch.manual_seed(args.seed)
    module = PARTS[plan.name](encoder).to(device)
    part, optimizer = cast(Part, module), optimizer_of(module)
    state_path, identity = args.work / f"{plan.name}.pt", {**vars(plan), "seed": args.seed, **start}
    step = first = resume(state_path, module, optimizer, identity)
    began = saved_at = time.monotonic()
    sums, summed = dict[str, Tensor](), 0
    part_seed = args.seed * 1009 + list(PARTS).index(plan.name)
    while step < plan.steps:
        generator = Generator().manual_seed(part_seed * 10_000_019 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        index = drawn_images(len(store), step, plan.batch, args.seed)
        with torch.autocast(device.type, torch.bfloat16):
            losses = part.loss(store, index, step / plan.steps, generator)
        optimizer.zero_grad()
        cast(Tensor, sum(losses.values())).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        part.after_step(step / plan.steps)
        step += 1
        sums, summed = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}, summed + 1
        if step % args.log_every == 0 or step == plan.steps:
            report(plan, step, (time.monotonic() - began) / (step - first), sums, summed)
            sums, summed = {}, 0
        if time.monotonic() - saved_at > SAVE_EVERY_S or step == plan.steps:
            save_state(state_path, module, optimizer, step, identity)
            saved_at = time.monotonic()
    return part.result()


def save_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, identity: dict[str, Any]
) -> None:
    """Writes what `resume` needs, atomically."""
    state = {"step": step, "run": identity, "module": module.state_dict()}
    state["optimizer"] = optimizer.state_dict()
    write_atomically(path, lambda partial: torch.save(state, partial))


def resume(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> int:
    """Loads a saved state; returns the step it had reached, 0 without one."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["run"] != identity:
        differences = (
            f"{key}: began with {state['run'].get(key)}, now {value}"
            for key, value in identity.items()
            if state["run"].get(key) != value
        )
        raise ValueError(
            f"{path} is of another run ({'; '.join(differences)}): continue with its settings, or pass "
            "another --work"
        )
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"{path.stem}: continued after {state['step']} of {identity['steps']} steps")
    return int(state["step"])


def report(plan: Plan, step: int, each_s: float, sums: dict[str, Tensor], summed: int) -> None:
    """Prints a line of progress: mean losses since the last one, speed and remaining time."""
    text = "  ".join(f"{name} {float(total) / summed:.4f}" for name, total in sums.items())
    left_min = each_s * (plan.steps - step) / 60
    speed = f"{plan.batch / each_s:.0f} images/s  {left_min:.1f} min left"
    print(f"{plan.name} {step}/{plan.steps}  {text}  {speed}", flush=True)


def checksum(*parts: bytes) -> str:
    """Returns a short hash of bytes, in their order."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def checksum_of(encoder: Dinov2) -> str:
    """Returns a short hash of the weights."""
    return checksum(*(tensor.detach().cpu().numpy().tobytes() for tensor in encoder.state_dict().values()))


def save_encoder(encoder: Dinov2, path: Path, facts: dict[str, Any]) -> None:
    """Writes the encoder as float16 safetensors, atomically, with its training in the header."""
    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in encoder.state_dict().items()}
    header = {name: str(value) for name, value in facts.items()}
    write_atomically(path, lambda partial: save_file(state, partial, metadata=header))
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB), {header}", flush=True)


def arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--roots", nargs="+", default=["outputs/pretraining"], help="folders of images")
    parser.add_argument("--out", type=Path, default=Path("outputs/encoder_vitt.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("outputs/pretraining_state"), help="saved states")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["mae"],
        choices=PARTS,
        help="in this order (default mae, which made the bundled encoder)",
    )
    parser.add_argument("--init", type=Path, help="encoder to start from, such as one part's result")
    parser.add_argument("--mae-steps", type=int, default=3600)
    parser.add_argument("--mae-batch", type=int, default=128)
    parser.add_argument("--mae-lr", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--distill-steps", type=int, default=400)
    parser.add_argument("--distill-batch", type=int, default=32)
    parser.add_argument("--distill-lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log-every", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    """Trains, or says in one line why not. Ctrl-C ends it; at most a minute of work is lost."""
    args = arguments()
    try:
        pretrain(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: the same command continues from the last state in {args.work}")


def pretrain(args: argparse.Namespace) -> None:
    """Trains the chosen parts in turn and saves the encoder after each."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    paths = find_images(args.roots)
    images = checksum(*(path.name.encode() for path in paths))
    store = ImageStore(read_images(paths, args.threads), torch.device(args.device))
    torch.manual_seed(args.seed)
    encoder = Dinov2("vitt")
    if args.init:
        encoder.load_state_dict(load_file(args.init))
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    print(f"{len(paths)} images, {parameters / 1e6:.2f}M parameters", flush=True)
    facts: dict[str, Any] = {"images": len(paths), "seed": args.seed}
    for name in args.parts:
        of = {key: getattr(args, f"{name}_{key}") for key in ("steps", "batch", "lr")}
        start = {"images": images, "start": checksum_of(encoder)}
        encoder = train_part(Plan(name, **of), encoder, store, args, start)
        facts[name] = ", ".join(f"{key} {value}" for key, value in of.items())
        last = name == args.parts[-1]
        save_encoder(encoder, args.out if last else args.work / f"{name}.safetensors", facts)


if __name__ == "__main__":
    main()
