"""Pre-trains the sample's `vitt` encoder without labels: a small stand-in for DINOv2, which lacks this size.

    pip install -e ".[render,pretrain]"
    python scripts/render_pretraining.py --out outputs/pretraining
    python scripts/pretrain_sample_encoder.py --roots outputs/pretraining

Two parts in turn: a masked autoencoder, then self-distillation as in DINOv2 (DINO, iBOT and KoLeo of
lightly), which starts from it. `--parts` chooses one of them. Images alone are used: no depth, no class, no
image of the sample's validation and test splits. The state is saved every minute in `--work`: the same
command continues an interrupted run, and repeats what an uninterrupted one would have done.
`scripts/probe_encoder.py` says what the features are worth.
"""

import argparse
import math
import os
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


def train_part(plan: Plan, encoder: Dinov2, store: ImageStore, args: argparse.Namespace) -> Dinov2:
    """Trains one part to its end, from its saved state if there is one; returns its encoder."""
    device = store.canvas.device
    torch.manual_seed(args.seed)
    module = PARTS[plan.name](encoder).to(device)
    part, optimizer = cast(Part, module), optimizer_of(module)
    state_path = args.work / f"{plan.name}.pt"
    step = resume(state_path, module, optimizer, plan, args)
    start, saved_at, first = time.monotonic(), time.monotonic(), step
    sums: dict[str, Tensor] = {}
    while step < plan.steps:
        generator = Generator().manual_seed((args.seed * 1009 + len(plan.name)) * 10_000_019 + step)
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
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach()
        if step % args.log_every == 0 or step == plan.steps:
            report(plan, step, first, time.monotonic() - start, sums, args.log_every)
            sums = {}
        if time.monotonic() - saved_at > SAVE_EVERY_S or step == plan.steps:
            save_state(state_path, module, optimizer, plan, step, args)
            saved_at = time.monotonic()
    return part.result()


def identity(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Returns what a saved state must have in common with the run that continues it."""
    return {**vars(plan), "seed": args.seed, "images": args.count}


def save_state(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    step: int,
    args: argparse.Namespace,
) -> None:
    state = {"step": step, "plan": identity(plan, args), "module": module.state_dict()}
    state["optimizer"] = optimizer.state_dict()
    write_atomically(path, lambda partial: torch.save(state, partial))


def resume(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, args: argparse.Namespace
) -> int:
    """Loads a saved state; returns the step it had reached, 0 without one."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["plan"] != identity(plan, args):
        raise SystemExit(
            f"{path} is of another run ({state['plan']}, now {identity(plan, args)}): "
            "continue with its settings, or pass another --work"
        )
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"{plan.name}: continued after {state['step']} of {plan.steps} steps")
    return int(state["step"])


def report(plan: Plan, step: int, first: int, seconds: float, sums: dict[str, Tensor], every: int) -> None:
    """Prints a line of progress."""
    each = seconds / (step - first)
    count = (step - 1) % every + 1
    text = "  ".join(f"{name} {float(total) / count:.4f}" for name, total in sums.items())
    print(
        f"{plan.name} {step}/{plan.steps}  {text}  {plan.batch / each:.0f} images/s  "
        f"{each * (plan.steps - step) / 60:.1f} min left",
        flush=True,
    )


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
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="in this order")
    parser.add_argument("--init", type=Path, help="encoder to start from, such as one part's result")
    parser.add_argument("--mae-steps", type=int, default=4000)
    parser.add_argument("--mae-batch", type=int, default=512)
    parser.add_argument("--mae-lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--distill-steps", type=int, default=4000)
    parser.add_argument("--distill-batch", type=int, default=256)
    parser.add_argument("--distill-lr", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log-every", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    """Trains the chosen parts in turn and saves the encoder after each."""
    args = arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    paths = find_images(args.roots)
    args.count = len(paths)
    store = ImageStore(read_images(paths, args.threads), torch.device(args.device))
    torch.manual_seed(args.seed)
    encoder = Dinov2("vitt")
    if args.init:
        encoder.load_state_dict(load_file(args.init))
    print(
        f"{len(paths)} images, {sum(p.numel() for p in encoder.parameters()) / 1e6:.2f}M parameters",
        flush=True,
    )
    facts: dict[str, Any] = {"images": len(paths), "seed": args.seed}
    for name in args.parts:
        of = {key: getattr(args, f"{name}_{key}") for key in ("steps", "batch", "lr")}
        encoder = train_part(Plan(name, **of), encoder, store, args)
        facts[name] = ", ".join(f"{key} {value}" for key, value in of.items())
        last = name == args.parts[-1]
        save_encoder(encoder, args.out if last else args.work / f"{name}.safetensors", facts)


if __name__ == "__main__":
    main()
